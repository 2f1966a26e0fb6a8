"""Quick compilation, and compiled programs that are kept: a second run compiles nothing anew.

They lie in `compiled` below $LATTECLIP_CACHE (~/.cache/lattec_jax), beside the converted weights.
JAX's own settings go first: JAX_COMPILATION_CACHE_DIR names another place and
JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off. JAX's key covers the program, the versions of
JAX and of the driver, XLA's flags and the device, of a CPU its instruction set too, so hosts that
share a home directory do not take each other's programs. The directory may be deleted at any time;
nobody else may be able to write to it, since what it holds is run.
"""

from __future__ import annotations

import logging
import os
import tempfile

import jax
from jax.sharding import Mesh

from lattec_jax.runtime.weights import cache_root

log = logging.getLogger(__name__)

# On a GPU XLA otherwise tries many Triton kernels for each matrix product and reduction, 13 minutes
# of CPU time for a step of ViT-B-32, where cuBLAS has good products ready.
ON_GPU = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_experimental_enable_fusion_autotuner": False,
}


def options(mesh: Mesh) -> dict[str, bool] | None:
    """Compiler options for the programs of a model on these devices, for `jax.jit`."""
    return ON_GPU if mesh.devices.flat[0].platform == "gpu" else None


def enable() -> None:
    """Let JAX keep what it compiles from here on. A directory that cannot be written is a warning:
    then everything is compiled anew."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    directory = cache_root() / "compiled"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        log.warning("compiled programs are not kept: %s cannot be written (%s)", directory, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's own bound, a second, would leave out the many small programs of a start.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
