"""From configuration to method."""

from __future__ import annotations

import pytest

from lattec_jax.methods import METHODS, collect, make_method
from lattec_jax.methods.flyp import FLYP
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError


def method(*overrides: str, options: str = ""):
    config, _ = parse(["train", f"--config=configs/folder.py:{options}", *overrides])
    return make_method(config.method)


def test_the_presets_make_the_methods_that_they_describe():
    assert method() == LatteCLIP(
        alpha=0.99,
        momentum=0.99,
        class_text=True,
        description_kinds=("image", "group"),
        label_names=("zero_shot", "current"),
        use_mixer=True,
        prototype_update="sequential",
        mixer_prototypes="current",
        loss_reduction="sum",
    )
    assert method(options="preset=released_code") == LatteCLIP(
        alpha=0.99,
        momentum=0.0,
        redrawn_kinds=("group",),
        prototype_update="joint",
        mixer_prototypes="epoch_start",
        loss_reduction="mean",
    )


def test_ablations_of_the_configuration():
    found = method("--config.method.texts=('group',)", "--config.method.labels=('current',)")
    assert (found.class_text, found.description_kinds) == (False, ("group",))
    assert found.requires == {"descriptions"}
    assert not method("--config.method.mixer=False").use_mixer
    without_momentum = method("--config.method.momentum=0", "--config.method.alpha=0")
    assert (without_momentum.momentum, without_momentum.alpha) == (0, 0)
    for one in ("zero_shot", "current"):
        for written in (f"('{one}',)", f'("{one}",)'):
            assert method(f"--config.method.labels={written}").label_names == (one,)


def test_every_method_answers_to_its_name():
    for name in METHODS:
        assert method(options=f"method={name}").name == name
    assert method(options="method=flyp_oracle") == FLYP(oracle=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config=configs/folder.py:method=flip",
            "expected one of flyp, flyp_oracle, latteclip.*Did you mean 'flyp'",
        ),
        ("--config.method.prototype_update=join", "found 'join'. Did you mean 'joint'"),
        ("--config.method.labels=('zero',)", "labels: expected one or both"),
        ("--config.method.labels=()", "labels: expected one or both"),
        ("--config.method.labels=('current','current')", "labels: expected one or both"),
        ("--config.method.texts=()", "texts: expected 1 to 32 different kinds"),
        ("--config.method.alpha=1.5", "alpha: expected a number from 0 to 1, found 1.5"),
        ("--config.method.momentum=-0.1", "momentum: expected a number from 0 to 1, found -0.1"),
    ],
)
def test_settings_outside_their_choices_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        method(override)


def test_a_file_beside_the_others_is_a_method(tmp_path, monkeypatch):
    """Without a line anywhere else; modules without methods are no matter."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_one.py").write_text("METHODS = {'one': list, 'two': dict}\n")
    (tmp_path / "mine_help.py").write_text("x = 1\n")
    assert collect([str(tmp_path)], "") == {"one": list, "two": dict}
    (tmp_path / "mine_other.py").write_text("METHODS = {'two': list}\n")
    with pytest.raises(ImportError, match="mine_other defines two, and so does a module before"):
        collect([str(tmp_path)], "")
    assert list(METHODS) == ["flyp", "flyp_oracle", "latteclip", "reclip", "zero_shot"]
