"""Read .safetensors files that may be damaged or hostile. Imports neither JAX nor torch.

The header is checked before any tensor is read. Every tensor must be finite.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.rust_errors import rust_errors
from lattec_jax.runtime.safe_read import open_regular
from lattec_jax.runtime.text import escape_unprintable, truncate

Shapes = Mapping[str, tuple[int, ...]]
# The types of NumPy and ml_dtypes. safetensors has more: float8, float4, complex numbers.
_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_CHUNK = 2**22  # elements that are checked at once
_MAX_RANK = 8
_MAX_ELEMENTS = 2**59  # a dimension of 0 counts as 1, as in NumPy's limit on the bytes of a shape
# The bits of the exponent: all are set in NaN and infinity. np.isfinite would convert these types
# to float32 first.
_EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
_DAMAGED = "it is damaged: download it again or copy it again"


def read_safetensors(
    path: Path, check: Callable[[Shapes], object] = lambda _: None
) -> dict[str, np.ndarray]:
    """Return all tensors of a .safetensors file, in their stored type.

    `check` is called with all names and shapes before any tensor is read.

    Raises:
        WeightsError: the file cannot be read or is damaged, or a tensor has an unsupported type or
            a number that is not finite.
    """
    try:
        opened = open_regular(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    what = f"{path}, as a .safetensors file,"
    with opened:
        try:
            with rust_errors(what):
                file = safetensors.safe_open(path_of(opened, path), framework="np")
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                types = {name: header.get_dtype() for name, header in headers.items()}
                shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
        except (OSError, safetensors.SafetensorError) as error:
            raise _unreadable(path, error) from error
        _refuse_other_types(types, path)
        _refuse_impossible_shapes(shapes, path)
        check(shapes)
        try:
            with file, rust_errors(what, hold_stderr=False):
                tensors = {name: file.get_tensor(name) for name in shapes}
        except (OSError, safetensors.SafetensorError, ValueError, OverflowError) as error:
            raise _unreadable(path, error) from error
        except MemoryError as error:
            raise WeightsError(f"{path} does not fit into memory") from error
    refuse_not_finite(tensors, str(path))
    return tensors


def path_of(opened: BinaryIO, path: Path) -> str:
    """Return a path to the open file, even if `path` now names another one, or `path` where there
    is no /proc."""
    of_descriptor = f"/proc/self/fd/{opened.fileno()}"
    return of_descriptor if os.path.exists(of_descriptor) else os.fspath(path)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = escape_unprintable(truncate(str(error), 500))
    return WeightsError(f"{path} is not a readable .safetensors file ({reason}); {_DAMAGED}")


def _refuse_impossible_shapes(shapes: Shapes, path: Path) -> None:
    # NumPy cannot make every array that a header can declare if a dimension is 0.
    for name, shape in shapes.items():
        elements = math.prod(max(side, 1) for side in shape[: _MAX_RANK + 1])
        if len(shape) > _MAX_RANK or elements > _MAX_ELEMENTS:
            raise WeightsError(
                f"{path}: expected tensors of at most {_MAX_RANK} dimensions that fit into "
                f"memory, found {listed([name])} of shape {short_repr(shape)}; {_DAMAGED}"
            )


def _refuse_other_types(types: Mapping[str, str], path: Path) -> None:
    other = [f"{name} ({kind})" for name, kind in types.items() if kind not in _TYPES]
    if other:
        raise WeightsError(
            f"{path}: expected tensors of floating-point numbers of 16, 32 or 64 bits, found "
            f"{listed(other)}; choose weights that are not quantized"
        )


def refuse_not_finite(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Raise WeightsError, with the names of the tensors, if a number is NaN or infinite."""
    bad = [name for name, array in tensors.items() if not _is_finite(array)]
    if bad:
        raise WeightsError(
            f"{where}: expected finite numbers, found NaN or infinity in {listed(bad)}; these "
            "weights are damaged or come from a diverged training run: choose others"
        )


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.name not in _FLOATS:
        return True
    flat = array.reshape(-1, order="A")  # a view, also of a transposed array
    exponent = _EXPONENTS.get(array.dtype)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if exponent is None:
            finite = np.isfinite(chunk)
        else:
            finite = (chunk.view(np.uint16) & exponent) != exponent
        if not finite.all():
            return False
    return True


def listed(items: list[str], max_listed: int = 5) -> str:
    """Return the first items for a message, bounded and printable."""
    some = [escape_unprintable(truncate(item, 200)) for item in items[:max_listed]]
    more = f" and {len(items) - max_listed} more" if len(items) > max_listed else ""
    return ", ".join(some) + more
