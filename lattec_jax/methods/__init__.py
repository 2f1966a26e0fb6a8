"""The methods by name. A new one is a file beside these and one entry in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from lattec_jax.config import did_you_mean
from lattec_jax.errors import ConfigError
from lattec_jax.methods.base import Method
from lattec_jax.methods.flyp import FLYP
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.methods.zero_shot import ZeroShot

CHOICES = {
    "prototype_update": ("sequential", "joint"),
    "weigh_by": ("current", "epoch_start"),
    "group_text": ("own", "redrawn"),
    "loss": ("sum", "mean"),
}


def _latteclip(config: ConfigDict) -> LatteCLIP:
    unknown = set(config.labels) - {"zero_shot", "current"}
    if unknown or not config.labels:
        raise ConfigError(
            "config.method.labels: expected one or both of 'zero_shot' and 'current', "
            f"found {tuple(config.labels)}"
        )
    if not config.texts:
        raise ConfigError("config.method.texts: expected at least one kind of text, found none")
    for key in ("alpha", "momentum"):
        if not 0 <= config[key] <= 1:
            raise ConfigError(f"config.method.{key}: expected 0 to 1, found {config[key]}")
    return LatteCLIP(
        alpha=config.alpha,
        momentum=config.momentum,
        class_text="class" in config.texts,
        description_kinds=tuple(kind for kind in config.texts if kind != "class"),
        label_names=tuple(config.labels),
        mixer=config.mixer,
        prototype_update=config.prototype_update,
        weigh_by=config.weigh_by,
        loss_reduction=config.loss,
    )


METHODS: dict[str, Callable[[ConfigDict], Method]] = {
    "latteclip": _latteclip,
    "flyp": lambda config: FLYP(oracle=False, loss_reduction=config.loss),
    "flyp_oracle": lambda config: FLYP(oracle=True, loss_reduction=config.loss),
    "zero_shot": lambda config: ZeroShot(),
}


def make_method(config: ConfigDict) -> Method:
    """The method that `config` (the section `config.method`) describes.

    Raises:
        ConfigError: an unknown method or a setting outside its choices.
    """
    if config.name not in METHODS:
        raise ConfigError(
            f"config.method.name: expected one of {', '.join(METHODS)}, found {config.name!r}. "
            f"{did_you_mean(config.name, METHODS)}"
        )
    for key, choices in CHOICES.items():
        if config[key] not in choices:
            raise ConfigError(
                f"config.method.{key}: expected one of {', '.join(choices)}, "
                f"found {config[key]!r}. {did_you_mean(str(config[key]), choices)}"
            )
    return METHODS[config.name](config)
