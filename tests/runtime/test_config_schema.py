"""Ranges and choices of the configuration, and what is generated from their declaration."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from configs import common
from lattec_jax.data.datasets import KINDS
from lattec_jax.runtime import cli
from lattec_jax.runtime.config import (
    flatten,
    from_json,
    load_run_config,
    parse,
    to_json,
    validate,
)
from lattec_jax.runtime.config_file import packaged_configs
from lattec_jax.runtime.config_reference import reference
from lattec_jax.runtime.config_schema import SCHEMA, allowed
from lattec_jax.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def read(*overrides: str):
    """A configuration with overrides, such as "seed=3"."""
    return parse(["train", "--config=configs/demo.py", *(f"--config.{o}" for o in overrides)])[0]


def test_each_key_is_declared_and_nothing_else():
    keys = {key for key, _ in flatten(validate(common.get_config()))}
    assert [key for key in keys if allowed(key) is None] == []
    assert [key for key in SCHEMA if not key.endswith(".*") and key not in keys] == []
    assert SCHEMA["dataset.kind"].choices == tuple(KINDS)


@pytest.mark.parametrize("file", packaged_configs(), ids=lambda file: file.stem)
@pytest.mark.parametrize("preset", ["paper", "released_code"])
def test_packaged_configurations_are_accepted(file, preset):
    for method in ("latteclip", "reclip"):
        parse(["train", f"--config={file}:preset={preset},method={method}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=-1", r"a number from 0 to 1e\+30, found -1.0"),
        ("train.learning_rate=inf", r"a number from 0 to 1e\+30, found inf"),
        ("train.learning_rate=1e308", r"a number from 0 to 1e\+30, found 1e.308"),
        ("image_cache.max_side=-1", r"None, 0 \(no bound\) or a whole number from 16 to 100000"),
        ("image_cache.max_unreadable_fraction=nan", "a number from 0 to 1, found nan"),
        ("compute.eval_batch_size=0", "from 1 to 1048576, found 0"),
        ("train.batch_size=1000000000000", "from 2 to 1048576"),
        ("max_checkpoints=1000000000", "from 1 to 1000"),
        ("descriptions.max_new_tokens=1000000000", "from 1 to 65536"),
        ("descriptions.openai.concurrency=1000000", "from 1 to 1024"),
        ("descriptions.group_members=draw", "one of with_image, drawn, found 'draw'"),
        ("descriptions.llava.precision=int4", "one of nf4, int8, bfloat16, float32, found 'int4'"),
        ("descriptions.llava.device=gpu", "one of auto, cuda, cpu, found 'gpu'"),
        ("descriptions.llava.batch_size=-1", "from 0 to 4096, found -1"),
        ("descriptions.openai.timeout=nan", "a number above 0 and at most 86400"),
        ("descriptions.seed=-1", "from 0 to 4294967295"),
        ("dataset.split_seed=4294967296", "from 0 to 4294967295"),
        ("dataset.held_out_fraction=1.0", "a number of at least 0 and below 1"),
        ("dataset.train_fraction=0", "a number above 0 and at most 1"),
        ("dataset.name=../up", "a name of letters.*it names folders"),
        ("dataset.name=..", "a name of letters"),
        ("dataset.name=a\0b", "a name of letters"),
        ("dataset.name=a\x1bb", "a name of letters"),
        (f"dataset.name={'a' * 151}", "at most 150 bytes"),
        ("descriptions.engine=a/b", "a name of letters"),
        ("descriptions.engine=", "a name of letters"),
        ("dataset.root=a\0b", "without NUL"),
        ("descriptions.prompts.image=a\x1b[2J", "without control characters"),
        ("templates=('a {}', 3)", "strings with {}"),
        ("templates=()", "strings with {}"),
        ("augment.scale=(0.9,)", "two numbers"),
        ("augment.scale=(nan, 1.0)", "two numbers"),
        ("augment.scale=(1.0, 0.9)", "the smaller one first"),
        ("augment.color_jitter=(0.5, 0.5, 0.5, 0.6)", r"the last \(hue\) at most 0.5"),
        ("method.texts=('class', 'class')", "different kinds of text"),
        ("method.texts=('../a',)", "different kinds of text"),
        ("method.labels=('zero_shot', 'now')", "one or both of"),
        ("train.optimizer=adam", "one of adamw, sgd, found 'adam'. Did you mean 'adamw'"),
        ("train.schedule=cosin", "one of cosine, constant, found 'cosin'. Did you mean"),
        ("compute.dtype=float16", "one of float32, bfloat16"),
        ("descriptions.correct_label=truth", "one of pseudo, true"),
        ("descriptions.group_size=1", "from 2 to 64"),
        ("descriptions.openai.key_variable=A B", "environment variable"),
    ],
)
def test_values_outside_their_range_are_refused(override, message):
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"config\.{key}: expected .*{message}"):
        read(override)


def with_address(url: str):
    config = common.get_config()
    config.descriptions.openai.base_url = url
    return config


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@localhost:8000/v1",
        "user:hunter2@localhost/v1",
        "https://localhost/v1?api-key=hunter2",
        "https://localhost/v1#hunter2",
        "hunter2:8000/v1",
        "http://localhost:hunter2/v1",
        "http:///v1/hunter2",
        "http://user:hunter2%40localhost/v1",
        "http://hunter2/\x1b[31m",
        "http://hunter2\u202ehost/",
        "http://hunter2/\ud83d",
        "http://hunter2/v1\n",
        "http://hunter2a\u0300\u2488b/v1",
    ],
)
def test_an_address_that_may_hold_a_secret_is_refused_without_being_shown(url):
    with pytest.raises(ConfigError, match=r"openai\.base_url: expected an address") as caught:
        validate(with_address(url))
    assert "hunter2" not in str(caught.value)


def test_an_int_is_a_number_and_a_bool_is_none():
    config = common.get_config()
    with config.ignore_type():
        config.method.alpha = 1
    assert validate(config).method.alpha == 1
    assert not SCHEMA["method.alpha"].accepts(True)
    assert not SCHEMA["seed"].accepts(True)
    assert not SCHEMA["seed"].accepts(1.0)
    assert not SCHEMA["train.learning_rate"].accepts(10**400)


def test_numbers_of_numpy_are_those_of_python():
    config = common.get_config()
    with config.ignore_type():
        config.seed, config.train.learning_rate = np.int64(4), np.float32(0.5)
    found = validate(config)
    assert [type(v) for v in (found.seed, found.train.learning_rate)] == [int, float]
    assert (found.seed, found.train.learning_rate) == (4, 0.5)


def test_a_project_with_configurations_of_its_own(tmp_path, monkeypatch):
    config = read()
    (tmp_path / "config.json").write_text(to_json(config), encoding="utf-8")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('not of this package')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert to_json(load_run_config(tmp_path / "config.json")) == to_json(config)


def test_a_key_of_a_method_of_your_own_only_has_to_be_finite():
    config = common.get_config()
    config.method.mine = 0.5
    assert validate(config).method.mine == 0.5
    config.method.mine = float("nan")
    with pytest.raises(ConfigError, match=r"config\.method\.mine: expected finite numbers"):
        validate(config)


def test_a_configuration_without_a_key_is_refused():
    config = common.get_config()
    del config.train["epochs"]
    with pytest.raises(ConfigError, match=r"lacks config\.train\.epochs; expected all keys"):
        validate(config)
    del config["train"]
    config.train = 3
    with pytest.raises(ConfigError, match=r"lacks config\.train\.batch_size"):
        validate(config)


def test_the_configuration_of_an_older_run_is_completed(tmp_path):
    path = tmp_path / "config.json"
    config = read().copy_and_resolve_references().unlock()
    del config.image_cache
    del config.train["epochs"]
    path.write_text(to_json(config), encoding="utf-8")
    assert "image_cache" not in from_json(path)  # as it is
    whole = load_run_config(path)
    assert (whole.image_cache.max_unreadable_fraction, whole.train.epochs) == (0.01, 50)
    assert whole.method.alpha == 0.74  # of the file
    del config.dataset["kind"]
    path.write_text(to_json(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: config\.dataset\.kind is missing; rest"):
        load_run_config(path)


@pytest.mark.parametrize("value", ['"a"', "NaN", "[1]", "{}", "-1", "true"])
def test_values_of_a_run_are_checked(tmp_path, value):
    path = tmp_path / "config.json"
    text = to_json(read()).replace('"eval_batch_size": 256', f'"eval_batch_size": {value}')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: config\.compute\.eval_batch_size"):
        load_run_config(path)


def test_the_reference_is_up_to_date():
    """Otherwise: python -m lattec_jax.runtime.config_reference > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


def test_help_shows_the_range(capsys):
    with pytest.raises(SystemExit):
        cli.read_config(["train", "--config=configs/demo.py", "--help"], "Doc.")
    shown = capsys.readouterr().out
    assert "Expects a number from 0 to 1e+30." in shown
    assert "Expects one of adamw, sgd." in shown
