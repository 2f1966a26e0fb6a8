"""Find the checkpoint directory of `config.weights`, converting it if necessary.

`config.weights` is one of

    weights/ViT-B-32                              an output of convert.openclip_to_flax
    FOLDER/open_clip_model.safetensors            a file, its open_clip_config.json beside it
    FOLDER/epoch_10.pt                            the same; a state dict (needs torch)
    ViT-B-32:laion2b_s34b_b79k                    MODEL:TAG of open_clip (needs torch)
    hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K      a repository of the Hugging Face hub; @REVISION

All but the first are converted at first use to `weights/<name>-<digest>` in $LATTECLIP_CACHE
(~/.cache/lattec_jax), and read from there afterwards, without a network. A tag or a repository is
not looked up again; a file is converted again when it has changed. Conversion runs in a separate
process, which frees its memory at the end and may import torch. This module imports neither JAX nor
torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from lattec_jax.runtime.errors import ConfigError, WeightsError, short_repr
from lattec_jax.runtime.files import partial_directory, remove_abandoned
from lattec_jax.runtime.text import print_escaped

# Format of a checkpoint directory, see `lattec_jax.models.checkpoint`.
FORMAT = "lattec_jax-clip-1"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"

FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
HUB_PREFIXES = ("hf:", "hf-hub:")
# Files beside the weights that the conversion reads as well.
_SIDE_FILES = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
_EXPECTED = (
    "a converted directory (weights/ViT-B-32), a file (FOLDER/open_clip_model.safetensors or .pt), "
    "MODEL:TAG of open_clip (ViT-B-32:laion2b_s34b_b79k) or a repository of the hub "
    "(hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K)"
)


def locate(weights: str | os.PathLike[str]) -> Path:
    """Return the checkpoint directory of `config.weights`; convert the weights at first use.

    Raise WeightsError if they do not exist, or cannot be downloaded or converted.
    """
    weights = os.fspath(weights)
    if not weights:
        raise ConfigError(f"config.weights: expected {_EXPECTED}, found nothing")
    path = Path(weights)
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # no permission, or too long a name
        raise WeightsError(
            f"config.weights: {short_repr(weights)} cannot be read: {error.strerror}"
        ) from error
    if is_directory:
        return path
    if weights.startswith(HUB_PREFIXES):
        repository = weights.partition(":")[2]
        return _converted(repository.rpartition("/")[2], ["hf", repository], f"hf:{repository}")
    if is_file or weights.endswith(FILE_SUFFIXES):
        if not is_file:
            raise WeightsError(f"config.weights: no file {path}. Expected {_EXPECTED}")
        # Converted again when the file or one that the conversion also reads has changed.
        files = [path, *(path.parent / name for name in _SIDE_FILES)]
        stats = [(file.name, file.stat()) for file in files if file.is_file()]
        states = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
        return _converted(path.stem, ["file", str(path.resolve()), *states], str(path))
    model, colon, tag = weights.partition(":")
    if not (colon and model and tag) or os.sep in weights:
        raise WeightsError(
            f"config.weights: expected {_EXPECTED}, found {short_repr(weights)}, and there is no "
            f"file or directory of this name in {Path.cwd()}"
        )
    return _converted(f"{model}-{tag}", ["tag", model, tag], tag, f"--model={model}")


def cache_root() -> Path:
    """Return the directory for caches: $LATTECLIP_CACHE or ~/.cache/lattec_jax."""
    root = os.environ.get("LATTECLIP_CACHE") or Path.home() / ".cache" / "lattec_jax"
    return Path(root).expanduser()


def _converted(name: str, identity: list[str], pretrained: str, *flags: str) -> Path:
    """Return the directory of a conversion; convert if it is missing."""
    digest = hashlib.sha256(json.dumps([FORMAT, *identity]).encode()).hexdigest()[:12]
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    directory = cache_root() / "weights" / f"{safe}-{digest}"
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
        except OSError:  # another process was faster; its result is equivalent
            if not (directory / CONFIG_FILE).is_file():
                raise
    return directory


# Runs in the child process, which writes the message of a repairable error to a file. It shares the
# standard error with this process, so that progress bars and warnings appear at once.
_CONVERT = """
import sys
from pathlib import Path
from convert.openclip_to_flax import main
from lattec_jax.runtime.errors import UserError
try:
    main(["convert", *sys.argv[2:]])
except (UserError, OSError) as error:
    Path(sys.argv[1]).write_text(str(error), encoding="utf-8", errors="backslashreplace")
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
"""


def _convert(flags: list[str], out: Path) -> None:
    """Convert to the directory `out` in a separate process, with these other flags.

    Raise WeightsError with the message of the conversion, or with its exit status.
    """
    error = out.with_name("error.txt")
    arguments = [str(error), *flags, f"--out={out}"]
    status = subprocess.run(
        [sys.executable, "-c", _CONVERT, *arguments], stdout=subprocess.DEVNULL, check=False
    ).returncode
    if status == 0:
        return
    message = (
        f"the conversion ended with status {status} (its messages are above; a negative status is "
        "a signal, and -9 often means too little memory)"
    )
    if error.is_file():
        message = error.read_text(encoding="utf-8").rstrip(".")
    raise WeightsError(
        f"config.weights: {message}. To convert by hand, perhaps on another machine or with "
        f"further flags: python -m convert.openclip_to_flax {' '.join(flags)} --out=DIR, and pass "
        "--config.weights=DIR"
    )
