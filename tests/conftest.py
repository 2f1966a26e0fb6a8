"""Eight CPU devices for JAX, so that every test of sharding shards. Set before JAX starts."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Several tests compile the same programs; pytest-xdist's workers share them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lattec_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    # Compilation is what most tests cost; the generated code need not be fast.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's transforms; the tests that need them are skipped where torch is missing."""
    pytest.importorskip("torch")
    from tests import torch_fix

    torch_fix.define_missing_torchvision_operators()
    return pytest.importorskip("torchvision.transforms")
