"""The checkpoint directory: a CLIP's parameters, configuration, tokenizer and preprocessing.

    DIR/model.safetensors   parameters, float32; names and shapes: `expected_shapes`
    DIR/config.json         {"format": "lattec_jax-clip-1",
                             "model": CLIPConfig, "preprocess": Preprocess,
                             "tokenizer": Tokenizer.settings(), "source": any JSON object}
    DIR/tokenizer.json      the rules of the tokenizer, in the format of the `tokenizers` library

A parameter's name is its path in the Flax model of `lattec_jax.models.clip`, joined by "/":
"visual/blocks/0/attn/qkv/kernel". `Checkpoint.load` checks every key and value of config.json,
names, shapes, types and finiteness of all parameters, and that the parts fit each other (`_check`).

Imports neither JAX nor torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.tokenizer import FILE_NAME as TOKENIZER_FILE
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.models.tensor_files import Shapes, read_safetensors
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.files import (
    partial_directory,
    remove_abandoned,
    replace_directory,
    write_safetensors,
)
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.text import escape_unprintable, truncate
from lattec_jax.runtime.validation import STRICT, validate
from lattec_jax.runtime.weights import CONFIG_FILE, FORMAT, WEIGHTS_FILE

MAX_CONFIG_BYTES = 2**24
_MAX_PROBLEMS = 50  # tensors listed in a message
_FILES = {WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE}


@dataclasses.dataclass(frozen=True)
class _ConfigFile:
    """`config.json`. Its parts are checked by the classes that read them."""

    __pydantic_config__ = STRICT
    format: Literal[FORMAT]  # type: ignore[valid-type]
    model: dict[str, Any]
    preprocess: dict[str, Any]
    tokenizer: dict[str, Any]
    source: dict[str, Any]


@dataclasses.dataclass
class Checkpoint:
    """The content of a checkpoint directory."""

    config: CLIPConfig
    params: dict[str, np.ndarray]  # flat names, float32
    tokenizer: Tokenizer
    preprocess: Preprocess
    source: dict[str, Any]  # the origin of the weights, as JSON values
    _sha256: str | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of the parameter file."""
        if self._sha256 is None:
            content = safetensors.numpy.save(_contiguous(self.params))
            self._sha256 = hashlib.sha256(content).hexdigest()
        return self._sha256

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the directory atomically, replacing an older checkpoint.

        Raises:
            WeightsError: the parts do not fit each other, or `directory` has other files in it.
        """
        directory = Path(directory).resolve()
        self._check("the checkpoint to be saved")
        check_can_overwrite(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(directory.parent, directory.name)
        with partial_directory(directory) as scratch:
            new = scratch / "new"
            new.mkdir()
            write_safetensors(new / WEIGHTS_FILE, _contiguous(self.params))
            content = {
                "format": FORMAT,
                "model": self.config.to_dict(),
                "preprocess": self.preprocess.to_dict(),
                "tokenizer": self.tokenizer.save(new),
                "source": self.source,
            }
            (new / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            replace_directory(new, directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Read and check a checkpoint directory.

        Raises:
            WeightsError: it is not a checkpoint directory, is damaged, or its parts do not fit each
                other. Unknown, missing and wrongly shaped tensors are listed.
        """
        directory = Path(directory)
        content = _read_config(directory)
        where, path = str(directory / CONFIG_FILE), directory / WEIGHTS_FILE
        config = CLIPConfig.from_dict(content.model, f"{where}: model")
        preprocess = Preprocess.from_dict(content.preprocess, f"{where}: preprocess")
        if not path.exists():
            raise WeightsError(
                f"no {WEIGHTS_FILE} in {directory}; convert the weights again with "
                "python -m convert.openclip_to_flax"
            )
        params = read_safetensors(
            path, lambda shapes: check_shapes(shapes, expected_shapes(config), str(directory))
        )
        tokenizer = Tokenizer.load(directory, content.tokenizer, f"{where}: tokenizer")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        checkpoint = cls(config, params, tokenizer, preprocess, content.source, sha256)
        checkpoint._check(str(directory))
        return checkpoint

    def _check(self, where: str) -> None:
        """Raise WeightsError unless the parts fit each other."""
        check_shapes(shapes_of(self.params), expected_shapes(self.config), where)
        other = {str(a.dtype) for a in self.params.values()} - {"float32"}
        if other:
            raise WeightsError(f"{where}: expected float32 tensors, also found {sorted(other)}")
        text, size = self.config.text, self.config.vision.image_size
        for what, expected, found in (
            ("context length of the tokenizer", text.context_length, self.tokenizer.context_length),
            ("image size of the preprocessing", size, self.preprocess.size),
        ):
            if found != expected:
                raise WeightsError(f"{where}: {what}: the model expects {expected}, found {found}")
        if self.tokenizer.vocab_size > text.vocab_size:
            raise WeightsError(
                f"{where}: the tokenizer has {self.tokenizer.vocab_size} token ids, but the model "
                f"has only {text.vocab_size}; this is not the model's tokenizer"
            )


def expected_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of a model, in the order of its layers.

    A test compares them with the Flax model, which this module does not import.
    """
    vision, text = config.vision, config.text
    rows, columns = vision.grid
    return {
        "visual/patch_embedding/kernel": (vision.patch_size**2 * 3, vision.width),
        "visual/class_embedding": (vision.width,),
        "visual/positional_embedding": (1 + rows * columns, vision.width),
        **(_norm("visual/ln_pre", vision.width) if vision.pre_norm else {}),
        **_blocks("visual", vision),
        **_norm("visual/ln_post", vision.width),
        "visual/projection": (vision.width, config.embed_dim),
        "text/token_embedding": (text.vocab_size, text.width),
        "text/positional_embedding": (text.context_length, text.width),
        **_blocks("text", text),
        **_norm("text/ln_final", text.width),
        "text/projection": (text.width, config.embed_dim),
        "logit_scale": (),
    }


def _blocks(tower: str, config: VisionConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.layers):
        block = f"{tower}/blocks/{i}"
        shapes |= _norm(f"{block}/ln_1", width)
        shapes |= _linear(f"{block}/attn/qkv", width, 3 * width)
        shapes |= _linear(f"{block}/attn/out", width, width)
        if config.layer_scale is not None:
            shapes[f"{block}/layer_scale_1"] = (width,)
        shapes |= _norm(f"{block}/ln_2", width)
        shapes |= _linear(f"{block}/mlp/fc", width, hidden)
        shapes |= _linear(f"{block}/mlp/proj", hidden, width)
        if config.layer_scale is not None:
            shapes[f"{block}/layer_scale_2"] = (width,)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def shapes_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor."""
    return {name: array.shape for name, array in tensors.items()}


def check_shapes(found: Shapes, expected: Shapes, where: str) -> None:
    """Raise WeightsError that names the unknown, missing and wrongly shaped tensors, if any."""
    problems = [f"unknown: {name} {found[name]}" for name in found if name not in expected]
    problems += [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [
        f"wrong shape: {name} expected {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        lines = [escape_unprintable(truncate(problem, 300)) for problem in problems[:_MAX_PROBLEMS]]
        if len(problems) > _MAX_PROBLEMS:
            lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
        listing = "\n  ".join(lines)
        raise WeightsError(
            f"{where}: {len(problems)} tensors do not fit the model's configuration; choose the "
            f"weights' own configuration\n  {listing}"
        )


def check_can_overwrite(directory: Path) -> None:
    """Raise WeightsError if saving to `directory` would delete more than an older checkpoint."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise WeightsError(f"{directory} is a file; choose a new directory for the checkpoint")
    found = {path.name for path in directory.iterdir()}
    if not found:
        return
    foreign = sorted(found - _FILES)
    if foreign or CONFIG_FILE not in found:
        listing = ", ".join((foreign or sorted(found))[:5])
        raise WeightsError(
            f"{directory} also contains {listing} and is not overwritten; choose a new directory"
        )
    _read_config(directory)


def _read_config(directory: Path) -> _ConfigFile:
    """Read `config.json` and check its format and keys."""
    path = directory / CONFIG_FILE
    advice = "expected a directory that python -m convert.openclip_to_flax wrote"
    try:
        content = read_json(path, MAX_CONFIG_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"no {CONFIG_FILE} in {directory}; {advice}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}); {advice}") from error
    return validate(_ConfigFile, content, str(path), WeightsError, advice)


def _contiguous(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # safetensors writes the memory of an array and ignores its strides.
    return {name: np.require(array, requirements="C") for name, array in params.items()}
