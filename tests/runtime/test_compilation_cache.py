"""What is compiled is kept between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lattec_jax.runtime import compilation_cache, sharding
from tests.runs import arguments, assert_equal

# A program, then how many came from the cache and how many were compiled.
COUNTING = """
import sys
import jax
from lattec_jax.runtime import compilation_cache
counted = {{}}
def count(event, **_):
    counted[event] = counted.get(event, 0) + 1
jax.monitoring.register_event_listener(count)
{program}
for end in ("cache_hits", "cache_misses"):
    print(end, counted.get(f"/jax/compilation_cache/{{end}}", 0))
"""
SMALL = """
compilation_cache.enable()
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3)))
"""
TRAIN = """
from lattec_jax import train
train.main(["train", *sys.argv[1:]])
"""


def run(cache: Path, program: str, *argv: str) -> tuple[int, int]:
    """Compiled programs of a process that came from the cache and that were compiled."""
    own = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in own}
    environment |= {"LATTECLIP_CACHE": str(cache)}
    command = [sys.executable, "-c", COUNTING.format(program=program), *argv]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    lines = dict(line.split() for line in found.stdout.splitlines() if line.startswith("cache_"))
    return int(lines["cache_hits"]), int(lines["cache_misses"])


def test_the_second_process_compiles_nothing(tmp_path):
    hits, misses = run(tmp_path, SMALL)
    assert misses >= 1
    kept = sorted((tmp_path / "compiled").iterdir())
    assert run(tmp_path, SMALL) == (hits + misses, 0)
    assert sorted((tmp_path / "compiled").iterdir()) == kept


@pytest.mark.full
def test_the_second_run_compiles_nothing_and_gives_the_same_bits(place):
    short = arguments("labeled", "--config.train.max_steps=2")[1:]
    hits, misses = run(place / "cache", TRAIN, *short, "--workdir=first")
    assert misses > 5
    kept = sorted((place / "cache/compiled").iterdir())
    again = run(place / "cache", TRAIN, *short, "--workdir=second")
    assert again == (hits + misses, 0)
    assert sorted((place / "cache/compiled").iterdir()) == kept
    assert_equal(place / "first", place / "second")


@pytest.fixture
def settings():
    """JAX's settings of the cache, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_directory_that_cannot_be_written_is_a_warning(settings, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATTECLIP_CACHE", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not cached" in caplog.text


def test_jax_own_settings_go_first(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("LATTECLIP_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


def test_options_are_for_gpus_and_known_to_the_compiler():
    assert compilation_cache.options(sharding.make_mesh()) is None
    on_gpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")], dtype=object))
    options = compilation_cache.options(on_gpu)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_unheard_of"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_unheard_of": False})(1)
