"""JAX's persistent compilation cache, and compiler options.

Compiled programs are stored in `compiled` below $LATTECLIP_CACHE (default: ~/.cache/lattec_jax),
next to the converted weights. JAX's own settings have priority: JAX_COMPILATION_CACHE_DIR is
another directory, and JAX_ENABLE_COMPILATION_CACHE=0 disables the cache. JAX's cache key covers the
program, the versions of JAX and of the driver, XLA's flags and the device (of a CPU also its
instruction set), so that hosts can share a home directory. The directory may be deleted at any
time. It must not be writable for other users, because its contents are executed.
"""

from __future__ import annotations

import logging
import os
import tempfile

import jax
from jax.sharding import Mesh

from lattec_jax.runtime.weights import cache_root

log = logging.getLogger(__name__)

# By default XLA tries many Triton kernels for each matrix product and reduction: 13 minutes of CPU
# time for a step of ViT-B-32. The kernels of cuBLAS are as fast.
GPU_OPTIONS = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_experimental_enable_fusion_autotuner": False,
}


def options(mesh: Mesh) -> dict[str, bool] | None:
    """Return the `compiler_options` of `jax.jit` for a model on these devices."""
    return GPU_OPTIONS if mesh.devices.flat[0].platform == "gpu" else None


def enable() -> None:
    """Enable the persistent cache. If the directory cannot be written, log a warning instead."""
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    directory = cache_root() / "compiled"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        log.warning("compiled programs are not cached: %s cannot be written (%s)", directory, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's default of one second would exclude the many small programs at the start.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
