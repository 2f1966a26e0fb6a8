"""Configuration files, overrides and presets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import common
from lattec_jax.runtime.cli import command
from lattec_jax.runtime.config import default_workdir, from_json, leaves, parse, resolve, to_json
from lattec_jax.runtime.errors import ConfigError, DataError

FOLDER = "--config=configs/folder.py"


def read(*arguments: str) -> ConfigDict:
    return parse(["train", *arguments])[0]


def test_the_papers_preset_is_the_default():
    config = read(FOLDER)
    assert (config.method.momentum, config.method.alpha, config.method.prototype_update) == (
        0.99,
        0.99,
        "sequential",
    )
    assert (config.train.max_steps, config.train.epochs, config.train.learning_rate) == (
        2000,
        50,
        1e-7,
    )
    assert not any(config.augment.color_jitter)
    assert "presets" not in config
    with pytest.raises(AttributeError, match="epoch"):
        config.train.epoch = 3  # locked: a slip in the code makes no new key


def test_the_released_codes_preset():
    config = read(FOLDER, "--config.preset=released_code")
    assert (
        config.method.momentum,
        config.method.prototype_update,
        config.method.loss_reduction,
    ) == (
        0.0,
        "joint",
        "mean",
    )
    assert tuple(config.augment.color_jitter) == (0.5, 0.5, 0.5, 0.1)
    assert read("--config=configs/eurosat.py", "--config.preset=released_code").train.epochs == 15
    assert read("--config=configs/eurosat.py").train.epochs == 50


def test_the_preset_chooses_the_prompts():
    paper = read("--config=configs/eurosat.py").descriptions.prompts
    assert paper.image == "Describe the land use in the photo concisely, using less than 20 words."
    released = read("--config=configs/eurosat.py", "--config.preset=released_code")
    assert "less than 20 words" in released.descriptions.prompts.group
    assert "all the satellite images" in released.descriptions.prompts.group
    own = read("--config=configs/eurosat.py", "--config.descriptions.prompts.image=What is it?")
    assert own.descriptions.prompts.image == "What is it?"
    assert own.descriptions.prompts.group == paper.group


def test_an_explicit_value_wins_over_the_preset():
    config = read(
        FOLDER,
        "--config.preset=released_code",
        "--config.method.momentum=0.5",
        "--config.train.epochs=3",
        "--config.method.texts=('class',)",
    )
    assert (config.method.momentum, config.train.epochs) == (0.5, 3)
    assert config.method.texts == ("class",)
    # Of a value that is given twice the last counts, of a tuple too.
    texts = ("--config.method.texts=('class',)", "--config.method.texts=('image','group')")
    assert read(FOLDER, *texts).method.texts == ("image", "group")
    # A value that the file sets wins as well: the demo's momentum.
    assert read("--config=configs/demo.py").method.momentum == 0.74


def test_a_method_s_own_values_come_before_the_preset_s():
    reclip = "--config.method.name=reclip"
    for preset in ("paper", "released_code"):
        config = read(FOLDER, reclip, f"--config.preset={preset}")
        assert (config.train.batch_size, config.train.optimizer) == (64, "sgd")
        assert config.templates == ("a photo of a {}.",)  # what the method leaves open
    assert "method_presets" not in config
    assert read(FOLDER, reclip, "--config.train.batch_size=8").train.batch_size == 8
    assert read(FOLDER).train.batch_size == 512
    with pytest.raises(ConfigError, match="preset: expected one of paper, released_code, found"):
        read(FOLDER, "--config.preset=reclip")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.trian.epochs=3",
            r"unknown configuration key config\.trian\.epochs\. Did you mean 'train\.epochs'\?",
        ),
        (
            "--config.train.epoch=3",
            r"unknown configuration key config\.train\.epoch\. Did you mean 'train\.epochs'\?",
        ),
        ("--config.train.epochs=many", "config.train.epochs=many: invalid literal"),
        ("--config.preset=papr", "expected one of paper, released_code.*Did you mean 'paper'"),
        ("--confg.train.epochs=3", "Unknown command line flag"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_said_with_what_was_meant(argument, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(FOLDER, argument)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_said_with_what_there_is():
    with pytest.raises(ConfigError, match=r"Did you mean 'eurosat\.py'.*Available: .*common\.py"):
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
def test_a_broken_file_is_said(tmp_path, content, message):
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


def test_json_and_back(tmp_path):
    config = read(FOLDER)
    (tmp_path / "config.json").write_text(to_json(config), encoding="utf-8")
    again = from_json(tmp_path / "config.json")
    assert json.loads(to_json(again)) == json.loads(to_json(config))
    with pytest.raises(ConfigError, match=r"no config\.json in .*nowhere; expected the work dir"):
        from_json(tmp_path / "nowhere" / "config.json")


def test_no_key_hides_behind_a_method_of_the_dictionary():
    """`config.update` would be a bound method, not the value."""
    config = read(FOLDER)
    keys = {part for path, _ in leaves(config) for part in path.split(".")}
    assert not [key for key in keys if hasattr(ConfigDict, key)]


def test_a_preset_that_names_no_key_is_refused():
    broken = common.get_config()
    broken.preset, broken.presets.a = "a", ConfigDict({"train": {"x": 1}})
    with pytest.raises(ConfigError, match=r"'a' sets train\.x, which does not exist"):
        resolve(broken)


def test_the_default_work_directory():
    config = read("--config=configs/demo.py", "--config.seed=4", "--config.method.name=flyp")
    assert str(default_workdir(config)) == "runs/digits-flyp-s4"


def test_errors_of_the_users_are_one_line_and_no_traceback(capsys):
    def fail(argv):
        raise DataError("expected images, found none; add some")

    with pytest.raises(SystemExit) as ended:
        command(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: expected images, found none; add some\n"

    def interrupt(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command(interrupt)
    assert ended.value.code == 130

    def defect(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a defect of ours keeps its traceback
        command(defect)


def test_the_command_line_as_a_user_types_it():
    done = subprocess.run(
        [sys.executable, "-m", "lattec_jax.pseudo_label", "--config=configs/demo.py", "--nope=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Unknown command line flag 'nope")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "endless", "large"])
def test_a_configuration_file_that_is_none_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "mine.py"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"cannot be read: .*(regular file|more than 1,048,576)"):
        parse(["train", f"--config={path}"])
