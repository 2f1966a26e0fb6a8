"""Any `--config.key=value`: a checked configuration, or an error naming the key."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import event, example
from hypothesis import strategies as st
from ml_collections import ConfigDict

from lattec_jax.methods import make_method
from lattec_jax.runtime.config import flatten, from_json, parse, to_json
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.training.augmentation import Augmentation
from tests.fuzz.tiers import inputs


def read(*arguments: str, options: str = "") -> ConfigDict:
    """What a command makes of its arguments before any file is looked at."""
    config, _ = parse(["train", f"--config=configs/eurosat.py:{options}", *arguments])
    Augmentation.from_config(config.augment)
    make_method(config.method)
    return config


KEYS = [key for key, _ in flatten(read())]
# Values that the key's documentation allows.
VALID = {
    "seed": st.integers(0, 2**32 - 1),
    "method.alpha": st.floats(0, 1),
    "method.momentum": st.floats(0, 1),
    "method.mixer": st.booleans(),
    "method.loss_reduction": st.sampled_from(["sum", "mean"]),
    "method.mixer_prototypes": st.sampled_from(["current", "epoch_start"]),
    "method.group_text": st.sampled_from(["own", "redrawn"]),
    "method.prototype_update": st.sampled_from(["sequential", "joint"]),
    "method.flyp.pseudo_labels": st.sampled_from(["current", "zero_shot"]),
    "train.batch_size": st.integers(2, 10**6),
    "train.epoch_batch_multiple": st.integers(0, 100),
    "train.learning_rate": st.floats(1e-9, 1),
    "augment.flip_probability": st.floats(0, 1),
    "log_every": st.integers(1, 10**6),
    "checkpoint_every": st.integers(1, 10**6),
    "eval_every": st.integers(0, 10**6),
    "wise_ft": st.floats(0, 1),
    "dataset.name": st.text("abcxyz019-_.", min_size=1).filter(lambda name: name.strip("-.")),
    "descriptions.group_size": st.sampled_from([2, 4, 8, 16]),
    "descriptions.group_members": st.sampled_from(["with_image", "drawn"]),
    "image_cache.max_side": st.integers(16, 10**5),
}


@inputs(2500, st.data())
def test_valid_values_are_accepted_and_kept(data):
    keys = data.draw(st.lists(st.sampled_from(sorted(VALID)), min_size=1, max_size=5, unique=True))
    values = {key: data.draw(VALID[key]) for key in keys}
    preset = data.draw(st.sampled_from(["paper", "released_code"]))
    method = data.draw(st.sampled_from(["latteclip", "flyp", "flyp_oracle", "reclip", "zero_shot"]))
    overrides = (f"--config.{key}={value}" for key, value in values.items())
    config = read(*overrides, options=f"preset={preset},method={method}")
    values |= {"preset": preset, "method.name": method}
    found = dict(flatten(config))
    for key, value in values.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value)


ODD = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers(), max_size=5).map(lambda v: str(tuple(v))),
    st.sampled_from(
        ["None", "()", "('class',)", '("class","class")', "[1", "{}", "nan", "-1", "0"]
    ),
)


@inputs(2500, st.sampled_from(KEYS), ODD)
@example("method.texts", "(1, 2)")
@example("templates", "(3,)")
@example("augment.scale", "(nan, 1.0)")
@example("augment.ratio", "()")
def test_any_value_is_accepted_or_refused_by_name(key, value):
    try:
        config = read(f"--config.{key}={value}")
    except ConfigError as error:
        event("refused")
        # The last part of the key, a part of a tuple's check, or the flag that absl refuses.
        assert key.rpartition(".")[2] in str(error) or key in str(error), (key, value, str(error))
    else:
        event("accepted")
        assert isinstance(config, ConfigDict)


@inputs(
    2500, st.sampled_from(KEYS), st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=12)
)
def test_a_misspelled_key_is_refused_by_name(key, tail):
    wrong = key + tail
    known = {*KEYS, *(k.rpartition(".")[0] for k in KEYS)}
    if wrong in known or wrong.endswith(".") or ".." in wrong:
        return
    with pytest.raises(ConfigError) as refused:
        read(f"--config.{wrong}=1")
    assert any(part in str(refused.value) for part in wrong.split(".")), str(refused.value)


@inputs(500, st.lists(st.text(max_size=20), max_size=4))
def test_any_command_line_ends_in_a_configuration_or_an_error(arguments):
    try:
        parse(["train", "--config=configs/demo.py", *arguments])
    except ConfigError as error:
        assert str(error), shlex.join(arguments)


@inputs(500, st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_config_json_is_read_or_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    try:
        config = from_json(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(config, ConfigDict) and to_json(config)
