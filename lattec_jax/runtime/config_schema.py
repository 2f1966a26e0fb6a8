"""What each value of the configuration may be: the one declaration of ranges and choices.

`lattec_jax.runtime.config` checks every configuration with it before anything is read or computed,
`--help` prints it, and `docs/configuration.md` is generated from it (`python -m
lattec_jax.runtime.config_reference`). What depends on two values or on the data, such as a batch
size that the number of devices must divide, is checked where these are known. Imports no JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lattec_jax.runtime.config_values import (
    FLAG,
    STRING,
    WEB_ADDRESS,
    Allowed,
    are_numbers,
    auto_or,
    choice,
    folder_name,
    integer,
    is_sequence,
    number,
    number_above,
    number_below,
    optional,
    ordered_pair,
    text,
    zero_or,
)
from lattec_jax.runtime.errors import ConfigError, did_you_mean, short_repr

MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9  # steps, epochs, images
MAX_BATCH = 2**20  # images or texts in a batch
MAX_TEMPLATES, MAX_KINDS = 1000, 32
MIN_FLOAT = 1e-30  # above 0 in float32 too


def _are_templates(values: Any) -> bool:
    return is_sequence(values, lambda v: _TEXT.accepts(v) and "{}" in v, MAX_TEMPLATES)


def _are_distinct(values: Any, accepts: Callable[[Any], bool]) -> bool:
    return is_sequence(values, accepts, MAX_KINDS) and len(set(values)) == len(values)


_TEXT = text()
_SEED = integer(0, MAX_SEED)
_PROBABILITY = number(0, 1)
_COUNT = integer(0, MAX_COUNT)
_TRACKER = choice("tensorboard", "wandb")
_FILE_PART = folder_name(r"\w[\w.-]*", "letters, digits, '-', '_' and '.'")
_NAME = folder_name(r"\w[\w.+-]*", "letters, digits, '-', '_', '.' and '+'")

SCHEMA: dict[str, Allowed] = {
    "preset": _NAME,
    "seed": _SEED,
    "artifacts": STRING,
    "weights": STRING,
    "init": STRING,
    "templates": Allowed(
        f"1 to {MAX_TEMPLATES} strings with {{}} for the class name, such as "
        "--config.templates='(\"a photo of a {}.\",)'",
        _are_templates,
    ),
    "dataset.kind": choice("folder", "coop", "fgvc", "tfds", "digits"),
    "dataset.name": folder_name(
        r"([\w.+-]*\w[\w.+-]*)?", "letters, digits, '-', '_', '.' and '+'", "; it names folders"
    ),
    "dataset.root": STRING,
    "dataset.train": STRING,
    "dataset.test": STRING,
    "dataset.held_out_fraction": number_below(0, 1),
    "dataset.train_fraction": number_above(0, 1),
    "dataset.split_seed": _SEED,
    "dataset.class_names": STRING,
    "dataset.labels": STRING,
    "dataset.images": STRING,
    "dataset.split": STRING,
    "dataset.name_spaces": text(100),
    "dataset.source": _TEXT,
    "dataset.expected.classes": _COUNT,
    "dataset.expected.train": _COUNT,
    "dataset.expected.test": _COUNT,
    "dataset.tfds.builder": STRING,
    "dataset.tfds.file_name": STRING,
    "dataset.tfds.data_dir": STRING,
    "dataset.tfds.train": STRING,
    "dataset.tfds.test": STRING,
    "image_cache.max_side": optional(zero_or("no bound", 16, 100_000)),
    "image_cache.max_unreadable_fraction": _PROBABILITY,
    "image_cache.placement": choice("auto", "device", "host"),
    "descriptions.engine": _FILE_PART,
    "descriptions.prompts.*": _TEXT,
    "descriptions.group_size": integer(2, 64),
    "descriptions.group_members": choice("with_image", "drawn"),
    "descriptions.correct_per_group": optional(integer(0, 64)),
    "descriptions.correct_label": choice("pseudo", "true"),
    "descriptions.max_new_tokens": integer(1, 65_536),
    "descriptions.seed": _SEED,
    "descriptions.max_missing_fraction": _PROBABILITY,
    "descriptions.shuffle": FLAG,
    "descriptions.llava.model": STRING,
    "descriptions.llava.revision": STRING,
    "descriptions.llava.precision": choice("nf4", "int8", "bfloat16", "float32"),
    "descriptions.llava.device": choice("auto", "cuda", "cpu"),
    "descriptions.llava.batch_size": integer(0, 4096),
    "descriptions.openai.base_url": WEB_ADDRESS,
    "descriptions.openai.model": STRING,
    "descriptions.openai.concurrency": integer(1, 1024),
    "descriptions.openai.timeout": number_above(0, 86_400),
    "descriptions.openai.retries": integer(0, 100),
    "descriptions.openai.allow_redirects": FLAG,
    "descriptions.openai.key_variable": Allowed(
        "the name of an environment variable: letters, digits and '_'",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z_]\w{0,99}", value)),
    ),
    "method.name": _NAME,
    "method.alpha": number(0, 1),
    "method.momentum": number(0, 1),
    "method.texts": Allowed(
        f"1 to {MAX_KINDS} different kinds of text, such as ('class', 'image', 'group')",
        lambda values: _are_distinct(values, _FILE_PART.accepts),
    ),
    "method.labels": Allowed(
        "one or both of 'zero_shot' and 'current', such as ('zero_shot',)",
        lambda values: _are_distinct(values, choice("zero_shot", "current").accepts),
    ),
    "method.mixer": FLAG,
    "method.prototype_update": choice("sequential", "joint"),
    "method.mixer_prototypes": choice("current", "epoch_start"),
    "method.group_text": choice("own", "redrawn"),
    "method.loss_reduction": choice("sum", "mean"),
    "method.flyp.pseudo_labels": choice("current", "zero_shot"),
    "method.reclip.neighbors": integer(1, 10_000),
    "method.reclip.diffusion": number_below(0, 1),
    "method.reclip.iterations": integer(1, 10_000),
    "method.reclip.tolerance": number(0, 1),
    "method.reclip.cut_dim": integer(2, 65_536),
    "method.reclip.images_per_epoch": _COUNT,
    "train.batch_size": integer(2, MAX_BATCH),
    "train.microbatch_size": auto_or(integer(0, MAX_BATCH)),
    "train.max_steps": _COUNT,
    "train.epochs": _COUNT,
    "train.epoch_batch_multiple": integer(0, 10_000),
    "train.learning_rate": number(0, 1e30),  # float32 holds it
    "train.warmup_steps": _COUNT,
    "train.schedule": choice("cosine", "constant"),
    "train.optimizer": choice("adamw", "sgd"),
    "train.weight_decay": number(0, 1000),
    "train.momentum": number_below(0, 1),
    "train.beta1": number_below(0, 1),
    "train.beta2": number_below(0, 1),
    "train.epsilon": number(MIN_FLOAT, 1),
    "wise_ft": optional(number(0, 1)),
    "augment.scale": ordered_pair(1),
    "augment.ratio": ordered_pair(100),
    "augment.flip_probability": _PROBABILITY,
    "augment.color_jitter": Allowed(
        "four numbers from 0 to 100, the last (hue) at most 0.5",
        lambda v: are_numbers(v, 4) and all(0 <= x <= 100 for x in v) and v[3] <= 0.5,
    ),
    "augment.color_jitter_probability": _PROBABILITY,
    "augment.grayscale_probability": _PROBABILITY,
    "compute.dtype": choice("float32", "bfloat16"),
    "compute.remat": FLAG,
    "compute.fsdp": integer(1, 65_536),
    "compute.eval_batch_size": integer(1, MAX_BATCH),
    "log_every": integer(1, MAX_COUNT),
    "eval_every": _COUNT,
    "checkpoint_every": integer(1, MAX_COUNT),
    "max_checkpoints": integer(1, 1000),
    "trackers": Allowed(
        "none, one or both of 'tensorboard' and 'wandb', such as --config.trackers="
        "tensorboard,wandb",
        lambda values: values in ((), []) or _are_distinct(values, _TRACKER.accepts),
    ),
    "profile": STRING,
}
# A key that is not declared, such as one of a method of your own.
_UNDECLARED = Allowed("finite numbers", lambda value: not _contains_nonfinite(value))

# Keys of earlier versions: former -> new. A section's entry holds for all of its keys.
RENAMED: dict[str, str] = {
    "store": "image_cache",
    "store.long_side": "image_cache.max_side",
    "store.max_unreadable": "image_cache.max_unreadable_fraction",
    "store.placement": "image_cache.placement",
    "dataset.share": "dataset.train_fraction",
    "dataset.held_out": "dataset.held_out_fraction",
    "descriptions.max_missing": "descriptions.max_missing_fraction",
    "method.weigh_by": "method.mixer_prototypes",
    "method.loss": "method.loss_reduction",
    "method.reclip.neighbours": "method.reclip.neighbors",
    "train.micro_batch": "train.microbatch_size",
    "augment.greyscale_probability": "augment.grayscale_probability",
    "keep_checkpoints": "max_checkpoints",
}
# Sections of earlier versions that an option behind the file's name has replaced.
OPTIONS = {"presets": "preset=NAME", "method_presets": "method=NAME"}


def _contains_nonfinite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_contains_nonfinite, value))
    return isinstance(value, float) and not math.isfinite(value)


def allowed(key: str) -> Allowed | None:
    """Return what a dotted key may be, or None if the key is not declared."""
    section, _, _ = key.rpartition(".")
    return SCHEMA.get(key) or SCHEMA.get(f"{section}.*")


def check(values: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError for values, by dotted keys, that are outside their range.

    Args:
        where: the file that they come from, for messages.
    """
    start = f"{where}: " if where else ""
    check_renamed(values, where)
    for key, value in values.items():
        if key.startswith("descriptions.prompts."):
            kind = key.removeprefix("descriptions.prompts.")
            if not _FILE_PART.accepts(kind):
                raise ConfigError(
                    f"{start}config.descriptions.prompts: expected keys that are "
                    f"{_FILE_PART.description}, found {short_repr(kind)}"
                )
        expected = allowed(key) or _UNDECLARED
        if not expected.accepts(value):
            hint = did_you_mean(str(value), expected.choices)
            found = "another value" if expected.secret else short_repr(value, 200)
            message = f"{start}config.{key}: expected {expected.description}, found {found}. {hint}"
            raise ConfigError(message.rstrip(". "))


def check_renamed(keys: Iterable[str], where: str = "") -> None:
    """Raise ConfigError for keys of earlier versions, naming the new key."""
    for key in keys:
        if message := renamed(key):
            raise ConfigError(f"{where}: {message}" if where else message)


def renamed(key: str) -> str:
    """Return what has become of a key or section of an earlier version, "" for any other."""
    former = key
    while former and former not in RENAMED:
        former = former.rpartition(".")[0]
    if former:
        return f"config.{key} is now called config.{RENAMED[former]}{key.removeprefix(former)}"
    section = key.partition(".")[0]
    if section in OPTIONS:
        return (
            f"config.{section} no longer exists; choose with --config=FILE:{OPTIONS[section]}, or "
            f'common.get_config("{OPTIONS[section]}")'
        )
    return ""


def check_sections(content: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raise ConfigError for a value where a section is expected, or a section where a value is."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        expected = allowed(key)
        if isinstance(value, dict):
            if expected:
                raise ConfigError(
                    f"{where}: config.{key}: expected {expected.description}, found a section"
                )
            check_sections(value, where, f"{key}.")
        elif any(known.startswith(f"{key}.") for known in SCHEMA):
            raise ConfigError(
                f"{where}: config.{key}: expected a section of values, found {short_repr(value)}"
            )
