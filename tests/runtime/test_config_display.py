"""`--print_config`: each key, its value and where it comes from."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from lattec_jax import train
from lattec_jax.runtime.config import flatten, parse

EUROSAT = "--config=configs/eurosat.py"


def printed(capsys, *arguments: str) -> dict[str, tuple[str, str]]:
    """Key -> origin and value, as a command prints them."""
    with pytest.raises(SystemExit) as ended:
        train.main(["train", *arguments, "--print_config"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    columns = {re.match(r"(\S+ +)(.*?\S  +)", line).end() for line in lines}
    assert len(columns) == 1  # aligned
    cells = [re.split(r"  +", line, maxsplit=2) for line in lines]
    return {key.removeprefix("config."): (origin, value) for key, origin, value in cells}


def test_each_value_is_printed_with_its_origin(capsys):
    overrides = ("--config.train.epochs=3", "--config.seed=0")
    found = printed(capsys, f"{EUROSAT}:preset=released_code,method=reclip", *overrides)
    config, _ = parse(["train", f"{EUROSAT}:preset=released_code,method=reclip", *overrides])
    assert {key: value for key, (_, value) in found.items()} == {
        key: repr(value) for key, value in flatten(config)
    }
    for key, origin in {
        "preset": "command line",
        "method.name": "command line",
        "train.epochs": "command line",
        "seed": "command line",  # also where the value stays the same
        "train.batch_size": "method reclip",
        "train.max_steps": "method reclip",
        "method.momentum": "preset released_code",
        "dataset.kind": "data set eurosat.py",
        "descriptions.prompts.image": "data set eurosat.py (preset released_code)",
        "train.beta1": "shared default",
    }.items():
        assert found[key][0] == origin, key


def test_origins_of_the_default_preset(capsys):
    found = printed(capsys, EUROSAT)
    assert found["preset"] == ("shared default", "'paper'")
    assert found["method.momentum"] == ("preset paper", "0.99")
    assert found["train.batch_size"] == ("shared default", "512")


def test_a_file_without_options_is_printed_too(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.get_config('preset=released_code')\n"
        "    config.method.own = 3\n"
        "    return config\n"
    )
    found = printed(capsys, f"--config={mine}")
    assert found["method.own"] == ("data set mine.py", "3")
    assert found["method.momentum"] == ("preset released_code", "0.0")


def test_it_reads_nothing_else_and_loads_no_jax(tmp_path):
    script = (
        "import sys; from captioning import describe\n"
        f"try: describe.main(['describe', '{EUROSAT}', '--print_config'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert not {'jax', 'torch', 'pydantic'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("config.preset") and not any(tmp_path.iterdir())
