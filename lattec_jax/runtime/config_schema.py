"""What each value of the configuration may be: the one declaration of ranges and choices.

`lattec_jax.runtime.config` checks every configuration with it before anything is read or computed,
`--help` prints it, and `docs/configuration.md` is generated from it (`python -m
lattec_jax.runtime.config_reference`). What depends on two values or on the data, such as a batch
that the devices divide, is checked where these meet. Imports no JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lattec_jax.runtime.errors import ConfigError, did_you_mean, short_repr

MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9  # steps, epochs, images
MAX_BATCH = 2**20  # images or texts in a batch
MAX_TEXT = 10_000  # characters of a template or prompt
MAX_NAME_BYTES = 150  # of a name that becomes part of a folder's or file's name
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux
MIN_FLOAT = 1e-30  # of what must be above 0 in float32 too


class Allowed(NamedTuple):
    """The values that a key may have."""

    words: str  # after "expected"
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    secret: bool = False  # whether a value may hold a password, and is never shown


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether a value is an int or a finite float, and no bool."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_integer(value) and abs(value) < 2**1000  # a larger int is no float


def _is_text(value: Any, max_bytes: int) -> bool:
    """Whether a value is text without NUL; undecodable bytes of a path are `os.fsdecode`'s."""
    if not isinstance(value, str) or "\0" in value or len(value) > max_bytes:
        return False
    return len(value.encode("utf-8", "surrogatepass")) <= max_bytes


def _is_address(value: Any) -> bool:
    """Whether a value is an address without user name, password and query."""
    if not _is_text(value, MAX_PATH_BYTES) or not value.isascii() or not value.isprintable():
        return False
    if re.search(r"[@?#%\s]", value):  # "%40" is an "@" too
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, (tuple, list)) and len(values) == count and all(map(_is_number, values))
    )


def integer(low: int, high: int) -> Allowed:
    """Whole numbers, the bounds included."""
    return Allowed(
        f"a whole number from {low} to {high}",
        lambda value: _is_integer(value) and low <= value <= high,
    )


def zero_or(meaning: str, low: int, high: int) -> Allowed:
    """0 with a meaning of its own, or whole numbers with the bounds included."""
    return Allowed(
        f"0 ({meaning}) or a whole number from {low} to {high}",
        lambda value: _is_integer(value) and (value == 0 or low <= value <= high),
    )


def number(low: float, high: float) -> Allowed:
    """Finite numbers, the bounds included."""
    return Allowed(
        f"a number from {low:g} to {high:g}",
        lambda value: _is_number(value) and low <= value <= high,
    )


def number_below(low: float, high: float) -> Allowed:
    """Finite numbers, the upper bound excluded."""
    return Allowed(
        f"a number of at least {low:g} and below {high:g}",
        lambda value: _is_number(value) and low <= value < high,
    )


def number_above(low: float, high: float) -> Allowed:
    """Finite numbers, the lower bound excluded."""
    return Allowed(
        f"a number above {low:g} and at most {high:g}",
        lambda value: _is_number(value) and low < value <= high,
    )


def choice(*values: str) -> Allowed:
    """One of some words."""
    return Allowed(
        f"one of {', '.join(values)}",
        lambda value: isinstance(value, str) and value in values,
        values,
    )


def text(max_chars: int = MAX_TEXT) -> Allowed:
    """Text that people or models read, possibly empty: valid Unicode, one or more lines."""
    return Allowed(
        f"text of at most {max_chars} characters, without control characters",
        lambda value: (
            isinstance(value, str)
            and len(value) <= max_chars
            and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value)
        ),
    )


def string() -> Allowed:
    """A path, an address or another name that a program reads; may be empty."""
    return Allowed(
        f"a string of at most {MAX_PATH_BYTES} bytes, without NUL",
        lambda value: _is_text(value, MAX_PATH_BYTES),
    )


def folder_name(pattern: str, characters: str, also: str = "") -> Allowed:
    """A name that becomes part of a folder's or file's name."""
    return Allowed(
        f"a name of {characters}, of at most {MAX_NAME_BYTES} bytes{also}",
        lambda value: _is_text(value, MAX_NAME_BYTES) and bool(re.fullmatch(pattern, value)),
    )


def optional(allowed: Allowed) -> Allowed:
    """None, or what `allowed` says."""
    comma = "," if " or " in allowed.words else " or"
    return Allowed(
        f"None{comma} {allowed.words}", lambda value: value is None or allowed.accepts(value)
    )


def _ordered_pair(values: Any, high: float) -> bool:
    return _numbers(values, 2) and 0 < values[0] <= values[1] <= high


def _are_strengths(values: Any) -> bool:
    return _numbers(values, 4) and all(0 <= v <= 100 for v in values) and values[3] <= 0.5


def _are_templates(values: Any) -> bool:
    return (
        isinstance(values, (tuple, list))
        and 0 < len(values) <= MAX_TEMPLATES
        and all(_TEXT.accepts(value) and "{}" in value for value in values)
    )


def _are_names(values: Any, names: Callable[[Any], bool]) -> bool:
    """Whether values are at least one name, none of them twice."""
    return (
        isinstance(values, (tuple, list))
        and 0 < len(values) <= MAX_KINDS
        and all(map(names, values))
        and len(set(values)) == len(values)
    )


MAX_TEMPLATES, MAX_KINDS = 1000, 32
_TEXT, _STRING = text(), string()
_SEED = integer(0, MAX_SEED)
_FLAG = Allowed("True or False", lambda value: isinstance(value, bool))
_PROBABILITY = number(0, 1)
_COUNT = integer(0, MAX_COUNT)
_FILE_PART = folder_name(r"\w[\w.-]*", "letters, digits, '-', '_' and '.'")
_LABELS = ("zero_shot", "current")

SCHEMA: dict[str, Allowed] = {
    "preset": Allowed(
        "the name of one of the configuration's presets", lambda value: isinstance(value, str)
    ),
    "seed": _SEED,
    "artifacts": _STRING,
    "weights": _STRING,
    "init": _STRING,
    "templates": Allowed(
        f"1 to {MAX_TEMPLATES} strings with {{}} for the class name, such as "
        "--config.templates='(\"a photo of a {}.\",)'",
        _are_templates,
    ),
    "dataset.kind": choice("folder", "coop", "fgvc", "tfds", "digits"),
    "dataset.name": folder_name(
        r"([\w.+-]*\w[\w.+-]*)?", "letters, digits, '-', '_', '.' and '+'", "; it names folders"
    ),
    "dataset.root": _STRING,
    "dataset.train": _STRING,
    "dataset.test": _STRING,
    "dataset.held_out_fraction": number_below(0, 1),
    "dataset.train_fraction": number_above(0, 1),
    "dataset.split_seed": _SEED,
    "dataset.class_names": _STRING,
    "dataset.labels": _STRING,
    "dataset.images": _STRING,
    "dataset.split": _STRING,
    "dataset.name_spaces": text(100),
    "dataset.source": _TEXT,
    "dataset.expected.classes": _COUNT,
    "dataset.expected.train": _COUNT,
    "dataset.expected.test": _COUNT,
    "dataset.tfds.builder": _STRING,
    "dataset.tfds.file_name": _STRING,
    "dataset.tfds.data_dir": _STRING,
    "dataset.tfds.train": _STRING,
    "dataset.tfds.test": _STRING,
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
    "descriptions.shuffle": _FLAG,
    "descriptions.llava.model": _STRING,
    "descriptions.llava.revision": _STRING,
    "descriptions.llava.precision": choice("nf4", "int8", "bfloat16", "float32"),
    "descriptions.llava.device": choice("auto", "cuda", "cpu"),
    "descriptions.llava.batch_size": integer(0, 4096),
    "descriptions.openai.base_url": Allowed(
        "an address such as http://localhost:8000/v1, in ASCII, without user name, password and "
        "query (the key is taken from the environment)",
        _is_address,
        secret=True,
    ),
    "descriptions.openai.model": _STRING,
    "descriptions.openai.concurrency": integer(1, 1024),
    "descriptions.openai.timeout": number_above(0, 86_400),
    "descriptions.openai.retries": integer(0, 100),
    "descriptions.openai.allow_redirects": _FLAG,
    "descriptions.openai.key_variable": Allowed(
        "the name of an environment variable: letters, digits and '_'",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z_]\w{0,99}", value)),
    ),
    "method.name": folder_name(r"\w[\w.+-]*", "letters, digits, '-', '_', '.' and '+'"),
    "method.alpha": number(0, 1),
    "method.momentum": number(0, 1),
    "method.texts": Allowed(
        f"1 to {MAX_KINDS} different kinds of text, such as ('class', 'image', 'group')",
        lambda values: _are_names(values, _FILE_PART.accepts),
    ),
    "method.labels": Allowed(
        "one or both of 'zero_shot' and 'current', such as ('zero_shot',)",
        lambda values: _are_names(values, choice(*_LABELS).accepts),
    ),
    "method.mixer": _FLAG,
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
    "train.microbatch_size": integer(0, MAX_BATCH),
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
    "augment.scale": Allowed(
        "two numbers above 0 and at most 1, the smaller one first",
        lambda values: _ordered_pair(values, 1),
    ),
    "augment.ratio": Allowed(
        "two numbers above 0 and at most 100, the smaller one first",
        lambda values: _ordered_pair(values, 100),
    ),
    "augment.flip_probability": _PROBABILITY,
    "augment.color_jitter": Allowed(
        "four numbers from 0 to 100, the last (hue) at most 0.5", _are_strengths
    ),
    "augment.color_jitter_probability": _PROBABILITY,
    "augment.grayscale_probability": _PROBABILITY,
    "compute.dtype": choice("float32", "bfloat16"),
    "compute.remat": _FLAG,
    "compute.fsdp": integer(1, 65_536),
    "compute.eval_batch_size": integer(1, MAX_BATCH),
    "log_every": integer(1, MAX_COUNT),
    "eval_every": _COUNT,
    "checkpoint_every": integer(1, MAX_COUNT),
    "max_checkpoints": integer(1, 1000),
    "profile": _STRING,
}
# Of a key that is not declared, such as one of a method of your own.
_UNDECLARED = Allowed("finite numbers", lambda value: not _holds_infinite(value))


def _holds_infinite(value: Any) -> bool:
    """Whether NaN or an infinity is in a value or a tuple."""
    if isinstance(value, (tuple, list)):
        return any(map(_holds_infinite, value))
    return isinstance(value, float) and not math.isfinite(value)


def allowed(key: str) -> Allowed | None:
    """What a dotted key may be; None of a key that is not declared."""
    section, _, _ = key.rpartition(".")
    return SCHEMA.get(key) or SCHEMA.get(f"{section}.*")


def check(values: Mapping[str, Any], where: str = "") -> None:
    """Refuse values outside their range.

    Args:
        values: by dotted keys.
        where: the file that they come from, for messages.

    Raises:
        ConfigError: naming key, expected and found.
    """
    start = f"{where}: " if where else ""
    for key, value in values.items():
        if key.startswith("descriptions.prompts."):
            kind = key.removeprefix("descriptions.prompts.")
            if not _FILE_PART.accepts(kind):
                raise ConfigError(
                    f"{start}config.descriptions.prompts: expected keys that are "
                    f"{_FILE_PART.words}, found {short_repr(kind)}"
                )
        expected = allowed(key) or _UNDECLARED
        if not expected.accepts(value):
            hint = did_you_mean(str(value), expected.choices)
            found = "another value" if expected.secret else short_repr(value, 200)
            raise ConfigError(
                f"{start}config.{key}: expected {expected.words}, found {found}. {hint}".rstrip(
                    ". "
                )
            )


def check_sections(content: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Refuse a value in the place of a section, and a section in that of a value.

    Raises:
        ConfigError: naming the key.
    """
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            if allowed(key):
                raise ConfigError(
                    f"{where}: config.{key}: expected {allowed(key).words}, found a section"
                )
            check_sections(value, where, f"{key}.")
        elif any(known.startswith(f"{key}.") for known in SCHEMA):
            raise ConfigError(
                f"{where}: config.{key}: expected a section of values, found {short_repr(value)}"
            )


def missing(values: Mapping[str, Any]) -> list[str]:
    """The declared keys that a configuration lacks."""
    return [key for key in SCHEMA if not key.endswith(".*") and key not in values]
