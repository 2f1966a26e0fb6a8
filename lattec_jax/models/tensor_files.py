"""Read .safetensors files that may be damaged or hostile. Imports neither JAX nor torch.

The header is checked before any tensor is read, and every tensor is checked to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  gives NumPy the type bfloat16, by name
import numpy as np
import safetensors

from lattec_jax.errors import WeightsError
from lattec_jax.rust_errors import rust_errors
from lattec_jax.safe_read import open_regular
from lattec_jax.text import cut, printable

Shapes = Mapping[str, tuple[int, ...]]
# What NumPy and ml_dtypes hold; the library has more: float8, float4, complex numbers.
_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_CHUNK = 2**22  # elements that are checked at once


def read_safetensors(
    path: Path, check: Callable[[Shapes], object] = lambda _: None
) -> dict[str, np.ndarray]:
    """Return all tensors of a .safetensors file, in their stored type.

    Args:
        path: the file.
        check: called with all names and shapes before any tensor is read; raises where they do not
            fit.

    Raises:
        WeightsError: the file cannot be read or is damaged, or a tensor is of a type that is not
            read or holds a number that is not finite.
    """
    try:
        open_regular(path).close()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with (
            rust_errors(f"{path}, as a .safetensors file,"),
            safetensors.safe_open(path, framework="np") as file,
        ):
            names = list(file.keys())
            headers = {name: file.get_slice(name) for name in names}
            _refuse_other_types({name: h.get_dtype() for name, h in headers.items()}, path)
            check({name: tuple(h.get_shape()) for name, h in headers.items()})
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        reason = printable(cut(str(error), 500))
        raise WeightsError(f"{path} is not a readable .safetensors file: {reason}") from error
    except MemoryError as error:
        raise WeightsError(f"{path} does not fit into memory") from error
    refuse_not_finite(tensors, str(path))
    return tensors


def _refuse_other_types(types: Mapping[str, str], path: Path) -> None:
    other = [f"{name} ({kind})" for name, kind in types.items() if kind not in _TYPES]
    if other:
        raise WeightsError(
            f"{path}: expected tensors of floating-point numbers of 16, 32 or 64 bits, found "
            f"{listed(other)}; choose weights that are not quantized"
        )


def refuse_not_finite(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Raise WeightsError, naming the tensors, where a number is NaN or infinite."""
    bad = [name for name, array in tensors.items() if not _is_finite(array)]
    if bad:
        raise WeightsError(
            f"{where}: expected finite numbers, found NaN or infinity in {listed(bad)}; these "
            "weights are damaged or come from training that diverged: choose others"
        )


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.name not in _FLOATS:
        return True
    flat = array.reshape(-1, order="A")  # a view, also of a transposed array
    return all(
        np.isfinite(flat[start : start + _CHUNK]).all() for start in range(0, flat.size, _CHUNK)
    )


def listed(items: list[str], most: int = 5) -> str:
    """Some items for a message, bounded and printable."""
    shown = [printable(cut(item, 200)) for item in items[:most]]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(shown) + more
