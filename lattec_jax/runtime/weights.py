"""From `config.weights` to a checkpoint directory. Imports neither JAX nor torch.

`config.weights` is one of

    weights/ViT-B-32                              a directory that convert.openclip_to_flax wrote
    FOLDER/open_clip_model.safetensors            a file, its open_clip_config.json beside it
    FOLDER/epoch_10.pt                            the same; a state dict (needs torch)
    ViT-B-32:laion2b_s34b_b79k                    MODEL:TAG of open_clip (needs torch)
    hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K      a repository of the Hugging Face hub; @REVISION

All but the first are converted at first use, below $LATTECLIP_CACHE (~/.cache/lattec_jax) in
`weights/<name>-<digest>`, and taken from there ever after, without a network. A tag or a repository
stays what it was at first use; a file is converted again when it has changed. Conversion runs in a
process of its own (`python -m convert.openclip_to_flax`), which gives its memory back and may
import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from lattec_jax.runtime.errors import ConfigError, WeightsError, short_repr
from lattec_jax.runtime.files import partial_directory, remove_abandoned
from lattec_jax.runtime.text import print_escaped

# Of a checkpoint directory (`lattec_jax.models.checkpoint`).
FORMAT = "lattec_jax-clip-1"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"

FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
HUB_PREFIXES = ("hf:", "hf-hub:")
# What decides, beside the weights themselves, what a file becomes.
_BESIDE = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
_FORMS = (
    "a converted directory (weights/ViT-B-32), a file (FOLDER/open_clip_model.safetensors or .pt), "
    "MODEL:TAG of open_clip (ViT-B-32:laion2b_s34b_b79k) or a repository of the hub "
    "(hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K)"
)


def locate(weights: str | os.PathLike[str]) -> Path:
    """The checkpoint directory of `config.weights`, converted now where it has not been before.

    Raises:
        ConfigError: nothing is named.
        WeightsError: there are no such weights, or they cannot be had or converted.
    """
    weights = os.fspath(weights)
    if not weights:
        raise ConfigError(f"config.weights: expected {_FORMS}, found nothing")
    path = Path(weights)
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # not allowed to look there, or far too long a name
        raise WeightsError(
            f"config.weights: {short_repr(weights)} cannot be read: {error.strerror}"
        ) from error
    if is_directory:
        return path
    if weights.startswith(HUB_PREFIXES):
        repository = weights.partition(":")[2]
        return _converted(repository.rpartition("/")[2], ["hf", repository], f"hf:{repository}")
    if is_file or weights.endswith(FILE_SUFFIXES):
        return _converted(path.stem, _identity(path), str(path))
    model, colon, tag = weights.partition(":")
    if not (colon and model and tag) or os.sep in weights:
        raise WeightsError(f"config.weights: expected {_FORMS}, found {short_repr(weights)}")
    return _converted(f"{model}-{tag}", ["tag", model, tag], tag, f"--model={model}")


def cache_root() -> Path:
    """Where what can be made again is kept: $LATTECLIP_CACHE or ~/.cache/lattec_jax."""
    root = os.environ.get("LATTECLIP_CACHE") or Path.home() / ".cache" / "lattec_jax"
    return Path(root).expanduser()


def cache_directory() -> Path:
    """Where converted weights are kept."""
    return cache_root() / "weights"


def _identity(path: Path) -> list[str]:
    """What tells a weights file, and the files beside it that matter, from all others."""
    if not path.is_file():
        raise WeightsError(f"config.weights: no file {path}. Expected {_FORMS}")
    beside = [path.parent / name for name in _BESIDE]
    stats = [(file.name, file.stat()) for file in (path, *beside) if file.is_file()]
    states = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return ["file", str(path.resolve()), *states]


def _converted(name: str, identity: list[str], pretrained: str, *flags: str) -> Path:
    """The cached conversion, made where it is missing."""
    digest = hashlib.sha256(json.dumps([FORMAT, *identity]).encode()).hexdigest()[:12]
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    directory = cache_directory() / f"{safe}-{digest}"
    remove_abandoned(directory.parent, directory.name)
    if (directory / CONFIG_FILE).is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with partial_directory(directory) as scratch:
        new = scratch / "new"
        print_escaped(
            f"converting {' '.join([*flags, pretrained])} -> {directory}", file=sys.stderr
        )
        _convert([f"--pretrained={pretrained}", *flags], new)
        try:
            os.rename(new, directory)
        except OSError:  # another process was faster: its conversion is as good as this one
            if not (directory / CONFIG_FILE).is_file():
                raise
    return directory


def _convert(flags: list[str], out: Path) -> None:
    """Run the conversion in a process of its own, its progress shown here as it comes.

    Raises:
        WeightsError: with the message of the command, or that it ended otherwise.
    """
    command = [sys.executable, "-m", "convert.openclip_to_flax", *flags]
    process = subprocess.Popen(
        [*command, f"--out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    by_hand = (
        f"To convert by hand, perhaps on another machine or with further flags: python -m "
        f"convert.openclip_to_flax {' '.join(flags)} --out=DIR, and pass --config.weights=DIR"
    )
    with process:
        message = _relay(process.stderr)
    if message:
        raise WeightsError(f"config.weights: {message.rstrip('.')}. {by_hand}")
    if process.returncode != 0:
        raise WeightsError(
            f"config.weights: the conversion ended with status {process.returncode} (its messages "
            f"are above; a negative one is a signal, and 9 often means too little memory). "
            f"{by_hand}"
        )


def _relay(stream: IO[bytes]) -> str:
    """Show what a command says while it says it; return its last word, the error, if any."""
    mark, held = b"\nerror: ", b"\n"
    while (chunk := stream.read1(4096)) or held:
        held += chunk
        place = held.find(mark)
        if place >= 0:
            sys.stderr.write(held[:place].decode(errors="replace"))
            return (held[place + len(mark) :] + stream.read()).decode(errors="replace").strip()
        # A mark may be cut in two; a progress bar has no line breaks, so lines are not waited for.
        shown = max(len(held) - len(mark) + 1, 0) if chunk else len(held)
        sys.stderr.write(held[:shown].decode(errors="replace"))
        sys.stderr.flush()
        held = held[shown:]
    return ""
