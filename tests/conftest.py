"""How all tests run: on CPU devices of JAX's own, away from the user's files, in three tiers.

The default tier is quick. `python -m pytest -m full` adds whole runs, documents, the browser, kills
and fuzzing; `python -m pytest -m soak` holds what takes hours of patience (long kills, big sizes).
"""

import atexit
import ctypes
import gc
import importlib.metadata
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

WORKERS = pytest.StashKey[list[dict[str, float]]]()

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight CPU devices, so that every test of sharding shards. Set before JAX starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# XLA's older code generator compiles in a third of the time. Newer releases of jaxlib do not have
# it, and XLA ends the process for a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# A shell ignores Ctrl-C in the commands that it starts in the background, and so would the tests'
# own processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Processes that tests start import the packages and the tests from here, from any directory.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
if "PYTEST_XDIST_WORKER" not in os.environ:  # what pytest-xdist's workers share
    scratch = tempfile.mkdtemp(prefix="lattec_jax-tests-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # Compilation is what most tests cost; the generated code need not be fast.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    # PyTorch's threads wait for each other in busy loops: for small tensors that costs most.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Nothing of the user's is read or written: an empty home directory, and no settings. Only
    # `tests/test_eurosat.py` reads the user's data sets, by this name.
    os.environ["USERS_DATA_DIR"] = os.environ.get("LATTECLIP_DATA_DIR", "")
    os.environ["HOME"] = f"{scratch}/home"
    os.makedirs(os.environ["HOME"])
    for variable in list(os.environ):
        if variable.startswith(("LATTECLIP_", "HF_", "HUGGING", "XDG_", "TFDS_", "TORCH_HOME")):
            del os.environ[variable]
    os.environ.pop("OPENAI_API_KEY", None)
    os.environ["HF_HUB_OFFLINE"] = "1"


STRICT = ("test_augmentation.py", "test_microbatches.py", "test_step.py")
WITHOUT_TOWERS = ("test_contrastive.py", "test_flyp.py", "test_latteclip.py")
# Every annotated shape and type in these modules is checked at each call.
CHECKED = ("augmentation", "microbatches", "state", "step", "step_timer", "wise_ft")
install_import_hook(
    [
        "lattec_jax.models",
        "lattec_jax.methods",
        *(f"lattec_jax.training.{name}" for name in CHECKED),
    ],
    "beartype.beartype",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imported modules stay: looking through them for garbage, now or later, is lost time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """By default a mesh takes the first device only: programs for eight cost twice the time."""
    import jax

    from lattec_jax.runtime import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "available_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """In the tests of methods and of the step nothing promotes types implicitly (optax does); in
    those that compute no tower, nothing promotes ranks either (layer norms and embeddings do)."""
    folder, file = request.path.parent.name, request.path.name
    if folder != "methods" and file not in STRICT:
        yield
        return
    import jax

    ranks = "raise" if file in WITHOUT_TOWERS else "allow"
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion(ranks):
        yield


GROWTH = 500 * 2**20  # bytes that a process may grow by before it gives memory back


def resident_bytes() -> int:
    """The memory that this process has now; 0 where that is not to be had, as on macOS."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.fixture(scope="session")
def memory() -> dict[str, int]:
    """What the process had when it last gave memory back."""
    return {"before": resident_bytes()}


@pytest.fixture(autouse=True)
def memory_is_given_back(memory):
    """Compiled programs are for one test mostly: JAX would keep them all, and malloc what the
    compiler has freed, which is more."""
    yield
    if resident_bytes() - memory["before"] > GROWTH:
        import jax

        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        memory["before"] = resident_bytes()


@pytest.fixture
def all_devices(monkeypatch):
    """Let a mesh take all eight devices, as a run does."""
    import jax

    from lattec_jax.runtime import sharding

    monkeypatch.setattr(sharding, "available_devices", jax.devices)


@pytest.fixture(scope="session", autouse=True)
def shared_steps():
    """Let runs of equal settings share one jitted step, as the steps of one run do."""
    from lattec_jax import train_loop
    from lattec_jax.runtime import sharding
    from lattec_jax.runtime.config import to_json

    made, build_train_step = {}, train_loop.build_train_step

    def shared(run, optimizer, schedule, plan):
        config, inputs = run.config, run.inputs
        sections = tuple(map(to_json, (config.train, config.augment, config.compute)))
        model = (inputs.weights.config, repr(inputs.weights.preprocess))
        rest = (
            run.method,
            run.steps,
            plan,
            run.mesh,
            sharding.MIN_SHARDED_SIZE,
            train_loop.make_train_step,
        )
        key = (*sections, *model, *rest)
        if key not in made:
            made[key] = build_train_step(run, optimizer, schedule, plan)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_loop, "build_train_step", shared)
        yield


@pytest.fixture(scope="session")
def run_inputs(tmp_path_factory):
    """A directory with images and a checkpoint, to be copied."""
    from tests.runs import make_inputs

    directory = tmp_path_factory.mktemp("inputs")
    make_inputs(directory)
    return directory


@pytest.fixture
def place(run_inputs, tmp_path):
    """The working directory, with labeled and unlabeled images and a checkpoint."""
    return shutil.copytree(run_inputs, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def finished(run_inputs, tmp_path_factory):
    """Of `run_inputs` what training makes of them, and the finished run `first`; to be copied."""
    from tests.runs import run

    directory = shutil.copytree(run_inputs, tmp_path_factory.mktemp("finished"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        run("labeled", "--workdir=first", "--config.eval_every=3")
    return directory


@pytest.fixture
def trained(finished, tmp_path):
    """As `place`, with the finished run `first` on the labeled images."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


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


# In `bash -c "pip install ... && python -m pytest"` bash becomes this process, and pip its child.
SECONDS_BEFORE = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def used() -> dict[str, float]:
    """CPU seconds of this process and of those that it started, and its largest memory in GiB."""
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(own[:2]) + sum(children[:2]) - SECONDS_BEFORE
    return {"cpu_seconds": seconds, "memory": own.ru_maxrss / 2**20}


def pytest_sessionfinish(session):
    """Report from a worker of pytest-xdist to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["used"] = used()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Keep the report of a worker; one that crashed leaves none."""
    if found := getattr(node, "workeroutput", {}).get("used"):
        node.config.stash.setdefault(WORKERS, []).append(found)


def pytest_terminal_summary(terminalreporter, config):
    """Print what the whole run took, the workers included."""
    workers = config.stash.get(WORKERS, []) or [used()]
    # The workers' time counts as the children's once they have ended.
    seconds = used()["cpu_seconds"]
    memory = max(worker["memory"] for worker in workers)
    terminalreporter.write_line(
        f"CPU time {seconds:.0f} s; largest memory of a worker {memory:.2f} GiB"
    )
