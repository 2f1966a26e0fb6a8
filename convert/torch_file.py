"""Read state dicts that torch saved: tensors only, no code.

torch reads them with `weights_only`. TorchScript archives, which are programs, and compressed
archives are refused first.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convert.hub import first_line
from lattec_jax.models.tensor_files import listed, path_of, refuse_not_finite
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.safe_read import open_regular

_NUMPY_TYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
_ZIP_START = b"PK\x03\x04"  # torch takes such a file, and no other, for a zip file
_LOCAL_HEADER = 30  # bytes before an entry's name and content
_MAX_SHARING = 4  # maximum ratio of all tensors' size to the file's: tensors may share storage


def read(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors and parameters of a state dict, in their stored type.

    Raises:
        WeightsError: torch is missing, or the file is damaged, a TorchScript archive, not a state
            dict, or contains tensors that are not dense floating-point numbers.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        if _is_torch_script(file, path):
            raise WeightsError(
                f"{path} is a TorchScript archive, which is a program, and is not run. OpenAI's "
                "own weights are also available as a tag: --pretrained=openai. If you trust "
                "another archive, save its state dict: safetensors.torch.save_file("
                "torch.jit.load(path, map_location='cpu').float().state_dict(), "
                "'weights.safetensors')"
            )
        return _read_state_dict(file, path)


def _is_torch_script(file: BinaryIO, path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            items = archive.infolist()
            if any(item.compress_type != zipfile.ZIP_STORED for item in items):
                raise WeightsError(
                    f"{path}: expected a file of torch, found a compressed zip file; unpack it and "
                    "pass the weights file in it"
                )
            _refuse_overlaps(items, archive.start_dir)
            return any("/code/" in item.filename for item in items)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RecursionError) as error:
        raise WeightsError(
            f"{path} is a damaged zip file ({first_line(error)}); download it again or copy it "
            "again"
        ) from error


def _refuse_overlaps(items: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse entries that share bytes: together they could be many times the file's size."""
    for item in sorted(items, key=lambda item: item.header_offset, reverse=True):
        if item.header_offset + _LOCAL_HEADER + item.file_size > end:
            raise zipfile.BadZipFile(f"entries overlap, such as {item.filename}")
        end = item.header_offset


def _read_state_dict(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path} needs torch, which is not installed: {install_command('convert')}"
        ) from error
    try:
        file.seek(0)
        mapped = file.read(len(_ZIP_START)) == _ZIP_START
        file.seek(0)
        # Memory-mapped, storages take no memory, however many a file declares.
        content = torch.load(
            path_of(file, path), map_location="cpu", weights_only=True, mmap=mapped
        )
    except MemoryError as error:
        raise WeightsError(f"{path} does not fit into memory") from error
    except Exception as error:  # of any type, where a file is damaged
        reason = first_line(error)
        if "weights_only" in reason:  # torch advises to allow code in the file
            reason = type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a state dict ({reason}); only tensors are "
            "read from such a file. If it contains more and you trust it, save its state dict "
            "only: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a checkpoint of open_clip's training
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and torch.is_tensor(t) for name, t in content.items()
    ):
        raise WeightsError(f"{path}: expected a dictionary of tensors (a model's state dict)")
    for name, tensor in content.items():
        _check_dense(name, tensor, path)
    total = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if total > _MAX_SHARING * os.fstat(file.fileno()).st_size:
        raise WeightsError(
            f"{path}: its tensors have {total:,} bytes, many more than the file; expected a "
            "model's state dict, whose tensors do not share memory"
        )
    tensors = {name: _to_numpy(tensor) for name, tensor in content.items()}
    refuse_not_finite(tensors, str(path))
    return tensors


def _check_dense(name: str, tensor: Any, path: Path) -> None:
    """Raise WeightsError unless it is a dense tensor of a known type; does not read its size."""
    import torch

    if tensor.is_quantized:
        kind = "quantized"
    elif tensor.is_nested:
        kind = "nested"
    elif tensor.layout != torch.strided or tensor.device.type != "cpu":
        kind = f"{tensor.layout}, {tensor.device}"
    else:
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind == "bfloat16" or kind in _NUMPY_TYPES:
            return
    raise WeightsError(
        f"{path}: expected dense tensors of floating-point numbers, found {listed([name])} "
        f"({kind}); choose weights that are not quantized, sparse or nested"
    )


def _to_numpy(tensor: Any) -> np.ndarray:
    """Convert a tensor or parameter of torch, in its stored type."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().resolve_neg().numpy()
