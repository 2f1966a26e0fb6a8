"""Configuration files, overrides and presets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import common
from configs.presets import METHODS, PRESETS
from lattec_jax.runtime.cli import command
from lattec_jax.runtime.config import default_workdir, flatten, from_json, parse, to_json
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
    with pytest.raises(AttributeError, match="epoch"):
        config.train.epoch = 3  # locked: a slip in the code makes no new key


def test_the_released_codes_preset():
    config = read(f"{FOLDER}:preset=released_code")
    method = config.method
    assert (method.momentum, method.prototype_update, method.loss_reduction) == (0, "joint", "mean")
    assert tuple(config.augment.color_jitter) == (0.5, 0.5, 0.5, 0.1)
    assert read("--config=configs/eurosat.py:preset=released_code").train.epochs == 15
    assert read("--config=configs/eurosat.py").train.epochs == 50


def test_the_preset_chooses_the_prompts():
    paper = read("--config=configs/eurosat.py").descriptions.prompts
    assert paper.image == "Describe the land use in the photo concisely, using less than 20 words."
    released = read("--config=configs/eurosat.py:preset=released_code")
    assert "less than 20 words" in released.descriptions.prompts.group
    assert "all the satellite images" in released.descriptions.prompts.group
    own = read("--config=configs/eurosat.py", "--config.descriptions.prompts.image=What is it?")
    assert own.descriptions.prompts.image == "What is it?"
    assert own.descriptions.prompts.group == paper.group


def test_every_value_is_concrete_before_the_command_line_overrides_it():
    config = common.get_config()
    empty = [key for key, value in flatten(config) if value is None]
    assert set(empty) == {"image_cache.max_side", "descriptions.correct_per_group", "wise_ft"}
    assert (config.preset, config.method.name) == ("paper", "latteclip")
    assert config.train.max_steps == 2000


@pytest.mark.parametrize("preset", PRESETS)
def test_each_value_of_a_preset_and_of_a_method_arrives(preset):
    """A key that `common.py` does not take from the preset would be ignored."""
    assert PRESETS[preset].keys() == PRESETS["paper"].keys()
    found = dict(flatten(common.get_config(f"preset={preset}")))
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]
    for method, values in METHODS.items():
        with_method = dict(flatten(common.get_config(f"preset={preset},method={method}")))
        assert with_method == found | values | {"method.name": method}


def test_an_override_wins_over_the_preset_and_the_file():
    config = read(
        f"{FOLDER}:preset=released_code",
        "--config.method.momentum=0.5",
        "--config.train.epochs=3",
        "--config.method.texts=('class',)",
    )
    assert (config.method.momentum, config.train.epochs) == (0.5, 3)
    assert config.method.texts == ("class",)
    # Of a repeated override the last is used, of a tuple too.
    texts = ("--config.method.texts=('class',)", "--config.method.texts=('image','group')")
    assert read(FOLDER, *texts).method.texts == ("image", "group")
    # The file's value wins over the preset's.
    assert read("--config=configs/demo.py:preset=released_code").method.momentum == 0.74


def test_a_methods_values_win_over_the_presets_and_the_data_sets_schedule():
    for preset in ("paper", "released_code"):
        for file in ("folder", "food101", "demo"):
            config = read(f"--config=configs/{file}.py:preset={preset},method=reclip")
            train = config.train
            assert (train.batch_size, train.learning_rate, train.epochs) == (64, 1e-3, 100)
    assert config.templates == ("a photo of a {}.",)  # the method has none
    reclip = f"{FOLDER}:method=reclip"
    assert read(reclip, "--config.train.batch_size=8").train.batch_size == 8
    assert read(FOLDER).train.batch_size == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("preset=papr", "preset: expected one of paper, released_code, found 'papr'. Did you"),
        (
            "method=lateclip",
            "method.name: expected one of .*, found 'lateclip'. Did you mean",
        ),
        (
            "presset=paper",
            "unknown option 'presset=paper' .*:preset=NAME,method=NAME. Did you",
        ),
        ("released_code", "unknown option 'released_code' after the configuration file"),
        ("preset=", "unknown option 'preset='"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        read(f"{FOLDER}:{options}")


@pytest.mark.parametrize(
    ("override", "form"),
    [
        ("--config.preset=released_code", "--config=configs/folder.py:preset=released_code"),
        ("--config.method.name=flyp", "--config=configs/folder.py:method=flyp"),
    ],
)
def test_preset_and_method_are_no_overrides(override, form):
    with pytest.raises(ConfigError) as refused:
        read(FOLDER, override)
    assert form in str(refused.value)


def test_preset_and_method_cannot_be_assigned(tmp_path):
    """Their other values would stay: the paper's under the name of the released code."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import common\n"
        "def get_config(options=''):\n"
        "    config = common.get_config(options)\n"
        "    config.preset = 'released_code'\n"
        "    return config\n"
    )
    message = r"mine\.py, line 4: .*common\.get_config\(\"preset=released_code\"\)"
    with pytest.raises(ConfigError, match=message):
        read(f"--config={path}")
    assert read(f"--config={path}:preset=released_code").method.momentum == 0
    with pytest.raises(ConfigError, match=r"common\.get_config\(\"method=flyp\"\)"):
        common.get_config().method.name = "flyp"


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
        ("--config.train.epochs=many", "epochs=many: expected a whole number, found 'many'"),
        ("--config.train.learning_rate=a", "learning_rate=a: expected a number, found 'a'"),
        ("--confg.train.epochs=3", "Unknown command line flag"),
        ("--epochs=3", r"'epochs'; write --config\.train\.epochs=VALUE"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_error_messages_suggest_the_nearest_name(argument, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(FOLDER, argument)
    assert "\n" not in str(refused.value)


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
    keys = {part for path, _ in flatten(config) for part in path.split(".")}
    assert not [key for key in keys if hasattr(ConfigDict, key)]


def test_the_default_work_directory():
    config = read("--config=configs/demo.py:method=flyp", "--config.seed=4")
    assert str(default_workdir(config)) == "runs/digits-flyp-s4"


def test_user_errors_are_one_line_without_traceback(capsys):
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
