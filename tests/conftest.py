"""How all tests run: on CPU devices of JAX's own, away from the user's files, in three tiers.

The default tier is quick. `python -m pytest -m full` adds whole runs, documents, the browser, kills
and fuzzing; `python -m pytest -m soak` holds what takes hours of patience (long kills, big sizes).
"""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight CPU devices, so that every test of sharding shards. Set before JAX starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# The older code generator compiles in a third of the time; jaxlib 0.12 does not have it any more,
# and XLA ends the process for a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
if "PYTEST_XDIST_WORKER" not in os.environ:  # what pytest-xdist's workers share
    scratch = tempfile.mkdtemp(prefix="lattec_jax-tests-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    # Compilation is what most tests cost; the generated code need not be fast.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    # Nothing of the user's is read or written: an empty home directory, and no settings.
    os.environ["HOME"] = f"{scratch}/home"
    os.makedirs(os.environ["HOME"])
    for variable in ("LATTECLIP_CACHE", "LATTECLIP_DATA_DIR", "HF_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """By default a mesh takes the first device only: programs for eight cost twice the time."""
    import jax

    from lattec_jax import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "available_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Free what a file's tests compiled: a worker that keeps all of it grows by gigabytes."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def all_devices(monkeypatch):
    """Let a mesh take all eight devices, as a run does."""
    import jax

    from lattec_jax import sharding

    monkeypatch.setattr(sharding, "available_devices", jax.devices)


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    """Start every test in an empty directory: relative paths such as `runs/` are its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's transforms; the tests that need them are skipped where torch is missing."""
    pytest.importorskip("torch")
    from tests import torch_fix

    torch_fix.define_missing_torchvision_operators()
    return pytest.importorskip("torchvision.transforms")
