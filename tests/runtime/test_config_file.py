"""Configuration files: which one is run, how often, with which options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from lattec_jax.methods import METHODS
from lattec_jax.runtime import cli, config_file
from lattec_jax.runtime.config import load_run_config, parse
from lattec_jax.runtime.config_schema import RENAMED, SCHEMA
from lattec_jax.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def read(*arguments: str) -> ConfigDict:
    return parse(["train", *arguments])[0]


def write(path: Path, *lines: str, signature: str = "options=''", options: str = "options") -> str:
    """A configuration file of these lines between the shared values and the return."""
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        f"from configs import common\n\ndef get_config({signature}):\n"
        f"    config = common.get_config({options})\n{body}    return config\n"
    )
    return f"--config={path}"


def test_a_missing_file_lists_the_available_ones():
    with pytest.raises(ConfigError, match=r"Did you mean 'eurosat\.py'.*Available: .*demo\.py"):
        read("--config=configs/eurosta.py")
    with pytest.raises(ConfigError, match="--config is missing; for example"):
        read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", r"broken\.py defines no function get_config; expected one"),
        ("def get_config(:\n", r"broken\.py cannot be read: invalid syntax.*line 1"),
        ("import not_there\ndef get_config():\n    return None\n", "No module named 'not_there'"),
        ("def get_config():\n    return 3\n", "returned int; expected the ConfigDict of"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(f"--config={path}")


def test_what_goes_wrong_in_a_users_get_config_keeps_its_traceback(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        read(f"--config={path}")


def test_packaged_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("--config=configs/demo.py").dataset.kind == "digits"
    with pytest.raises(ConfigError, match=r"no configuration file mine/demo\.py"):
        read("--config=mine/demo.py")  # a slip is not taken for the packaged one
    # A file of that name in the current directory comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.py").write_text(
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.get_config()\n"
        "    config.dataset.name = 'mine'\n"
        "    return config\n"
    )
    assert read("--config=configs/demo.py").dataset.name == "mine"


@pytest.mark.parametrize("kind", ["fifo", "endless", "large"])
def test_a_pipe_an_endless_and_a_large_file_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "mine.py"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"cannot be read: .*(regular file|more than 1,048,576)"):
        read(f"--config={path}")


def test_a_file_is_executed_once_per_command(tmp_path, capsys):
    mine = write(tmp_path / "mine.py")
    count = tmp_path / "count"
    with open(tmp_path / "mine.py", "a") as file:
        file.write(f"with open({str(count)!r}, 'a') as file:\n    file.write('x')\n")
    twice = [f"{mine}:preset=paper"]  # the last one is used
    for extra in ([], ["--config.seed=3"], ["--help"], ["--print_config"], twice):
        count.write_text("")
        try:
            cli.read_config(["train", mine, *extra], "Doc.")
        except SystemExit as ended:
            assert ended.code == 0
        assert count.read_text() == "x", extra
    capsys.readouterr()


def test_a_file_of_ones_own_needs_no_options(tmp_path):
    mine = write(tmp_path / "mine.py", "config.seed = 5", signature="", options="")
    assert read(mine).seed == 5
    assert read(f"{mine}:").seed == 5
    with pytest.raises(
        ConfigError, match=r"(?s)mine\.py takes no options.*def get_config\(options"
    ):
        read(f"{mine}:preset=released_code")
    fixed = write(tmp_path / "mine.py", signature="", options="'preset=released_code'")
    assert read(fixed).method.momentum == 0
    required = write(tmp_path / "mine.py", signature="options")
    assert read(required).preset == "paper"
    assert read(f"{required}:preset=released_code").preset == "released_code"


def test_the_methods_are_known_without_importing_them():
    names = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from lattec_jax.runtime.config_file import method_names\n"
            "print(*method_names()); assert not {'jax', 'lattec_jax.methods'} & sys.modules.keys()",
        ],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.split()  # fmt: skip
    assert sorted(names) == sorted(METHODS)


def use_methods(monkeypatch, folder: Path, text: str) -> None:
    """Let `folder` with a file of this text stand for `lattec_jax/methods`."""
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    monkeypatch.setattr(config_file, "_METHODS", folder)
    monkeypatch.delitem(sys.modules, "lattec_jax.methods", raising=False)


def test_a_method_of_ones_own_needs_no_values(tmp_path, monkeypatch):
    use_methods(monkeypatch, tmp_path / "literal", "METHODS = {'my_method': None}\n")
    config = read("--config=configs/folder.py:method=my_method")
    assert (config.method.name, config.train.batch_size) == ("my_method", 512)
    with pytest.raises(ConfigError, match="Did you mean 'my_method'"):
        read("--config=configs/folder.py:method=my_methd")


def test_a_method_whose_name_is_computed_is_not_refused(tmp_path, monkeypatch):
    use_methods(monkeypatch, tmp_path / "computed", "METHODS = dict(my_method=None)\n")
    assert read("--config=configs/folder.py:method=another").method.name == "another"


def test_the_new_names_exist_and_the_former_do_not():
    sections = {key.rpartition(".")[0] for key in SCHEMA}
    known = {*SCHEMA, *sections}
    assert set(RENAMED.values()) <= known
    assert not RENAMED.keys() & known


FORMER = {former: new for former, new in RENAMED.items() if new in SCHEMA}


@pytest.mark.parametrize("former", FORMER)
def test_an_override_of_a_former_key_names_the_new_one(former):
    message = rf"config\.{former} is now called config\.{FORMER[former]}$"
    with pytest.raises(ConfigError, match=message):
        read("--config=configs/demo.py", f"--config.{former}=1")


@pytest.mark.parametrize("former", FORMER)
def test_a_file_with_a_former_key_names_the_new_one(tmp_path, former):
    mine = write(tmp_path / "mine.py", f"config.{former} = 1")
    # A section that is missing is told before any key of it.
    new = RENAMED.get(former.partition(".")[0], FORMER[former])
    with pytest.raises(ConfigError, match=rf"is now called config\.{new}$"):
        read(mine)


@pytest.mark.parametrize("former", FORMER)
def test_a_run_with_a_former_key_names_the_new_one(tmp_path, former):
    content = parse(["train", "--config=configs/demo.py"])[0].to_dict()
    *sections, last = former.split(".")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
    target[last] = 1
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    message = rf"config\.json: config\.{former} is now called config\.{FORMER[former]}$"
    with pytest.raises(ConfigError, match=message):
        load_run_config(path)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("config.presets.paper.train.epochs = 3", "preset=NAME"),
        ("config.method_presets.mine = {'train': {'epochs': 3}}", "method=NAME"),
        ("config.presets = {'paper': {'seed': 3}}", "preset=NAME"),
    ],
)
def test_a_file_with_presets_of_its_own_names_the_option(tmp_path, line, option):
    with pytest.raises(ConfigError, match=rf"no longer exists; choose with --config=FILE:{option}"):
        read(write(tmp_path / "mine.py", line))


def test_a_slip_in_a_file_keeps_its_traceback(tmp_path):
    with pytest.raises(AttributeError, match="trian"):
        read(write(tmp_path / "mine.py", "config.trian.epochs = 3"))
    with pytest.raises(ConfigError, match=r"mine\.py, line 5: .*int"):
        read(write(tmp_path / "mine.py", "config.train.epochs = 'three'"))
