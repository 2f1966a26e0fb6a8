"""Decoding in processes: the bytes that threads write, and no process is left at any end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images import decoder_pool, preprocess
from lattec_jax.data.images.image_cache import open_image_caches
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.runtime.errors import DataError

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
ROOT = Path(__file__).parents[3]


def write_images(root: Path, count: int) -> Split:
    """Images of several sizes; some cannot be read."""
    root.mkdir()
    rng = np.random.default_rng(0)
    paths = [root / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        shape = (9 + number % 7, 9 + number % 5, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        if number % 11 == 3:
            path.write_bytes(path.read_bytes()[: 20 * (number % 4)])
    (root / "file \udce9.png").write_bytes(paths[0].read_bytes())  # not UTF-8
    paths = sorted(root.iterdir())
    return Split(tuple(os.fsencode(p.name).decode("latin") for p in paths), tuple(paths), None)


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(decoder_pool, "MIN_IMAGES", 2)
    monkeypatch.setattr(decoder_pool, "usable_cores", lambda: 2)


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_processes_write_what_threads_write(tmp_path, monkeypatch, caplog, two_processes):
    """Caches, warnings and the limits that the program has set."""
    split = write_images(tmp_path / "images", 40)
    Image.new("I;16", (12, 10), 300).save(split.paths[5])
    Image.new("RGB", (20, 10)).save(split.paths[6])  # above the limit, below twice the limit
    Image.new("RGB", (40, 20)).save(split.paths[7])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 190)
    found = {}
    for cores in (1, 2):
        monkeypatch.setattr(decoder_pool, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(preprocess, "_warned_of_16_bits", threading.Event())
        caplog.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_image_caches(split, tmp_path / str(cores), PREPROCESS, 12, 0.5)
        logged = [record.getMessage().replace(f"/{cores}/", "/") for record in caplog.records]
        texts = {(warning.category, str(warning.message)) for warning in caught}
        found[cores] = contents(tmp_path / str(cores)), logged, texts
    assert found[1] == found[2]
    _, logged, texts = found[2]
    assert any("16 bits" in line for line in logged)
    assert Image.DecompressionBombWarning in {category for category, _ in texts}
    index = next(path for path in (tmp_path / "2").rglob("index.json"))
    reasons = {entry["image"]: entry["reason"] for entry in json.loads(index.read_text())["failed"]}
    assert "DecompressionBombError" in reasons[split.ids[7]] and split.ids[6] not in reasons


@pytest.mark.full
def test_bombs_are_refused_where_their_warnings_are_errors(tmp_path, monkeypatch, two_processes):
    split = write_images(tmp_path / "images", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 190)
    Image.new("RGB", (20, 10)).save(split.paths[6])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        cache = open_image_caches(split, tmp_path / "caches", PREPROCESS, 12, 0.5).evaluation
    reasons = {entry["image"]: entry["reason"] for entry in cache.failed}
    assert "DecompressionBombWarning" in reasons[split.ids[6]]


@pytest.mark.full
def test_a_full_disk(tmp_path, two_processes):
    split = write_images(tmp_path / "images", 12)
    blocks = [(n, [os.fspath(path)]) for n, path in enumerate(split.paths)]
    with closing(decoder_pool.decoder_pool(12)) as pool:
        pool.open([("/dev/full", 0, {"max_side": 8}, (8, 8))])
        with pytest.raises(OSError, match="No space left") as caught:
            for block, (writer, _) in enumerate(pool.map("decode", blocks)):
                writer.write(block, block)
            pool.finish()
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.full
def test_a_process_that_is_killed(tmp_path, monkeypatch, two_processes):
    split = write_images(tmp_path / "images", 40)
    started = []

    class Killed(decoder_pool.DecoderProcess):
        def __init__(self) -> None:
            super().__init__()
            started.append(self._process)

        def write(self, block: int, row: int) -> None:
            started[1].kill()
            super().write(block, row)

    with monkeypatch.context() as patch:
        patch.setattr(decoder_pool, "DecoderProcess", Killed)
        with pytest.raises(DataError, match=r"ended with signal 9 \(Killed\)"):
            open_image_caches(split, tmp_path / "caches", PREPROCESS, 12, 0.5)
    assert [process.returncode for process in started] == [-9, -9]
    assert not list((tmp_path / "caches").iterdir())
    assert open_image_caches(split, tmp_path / "caches", PREPROCESS, 12, 0.5).evaluation.ids


SCRIPT = """
import sys
from pathlib import Path
print("the program")
from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images import decoder_pool, image_cache
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.runtime.preemption import terminating
decoder_pool.MIN_IMAGES, decoder_pool.usable_cores = 2, lambda: 2
paths = [*sorted(Path("images").iterdir())] * int(sys.argv[1])
split = Split(tuple(map(str, range(len(paths)))), tuple(paths), None)
preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
with terminating():
    caches = image_cache.open_image_caches(split, "caches", preprocess, None, 0.5)
print(len(caches.evaluation.pixels))
"""


@pytest.mark.full
@pytest.mark.parametrize("way", ["script", "standard input", "string"])
def test_a_program_without_a_main_guard_runs_once(tmp_path, way):
    split = write_images(tmp_path / "images", 12)
    (tmp_path / "program.py").write_text(SCRIPT)
    arguments = {"script": ["program.py", "1"], "standard input": ["-", "1"]}
    done = subprocess.run(
        [sys.executable, *arguments.get(way, ["-c", SCRIPT, "1"])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=SCRIPT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split("\n") == ["the program", str(len(split.paths) - 1), ""]
    assert "1 of 13 images cannot be read" in done.stderr and "Traceback" not in done.stderr


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left(tmp_path, ending):
    write_images(tmp_path / "images", 60)
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "1000"],  # seconds of work
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    while not list(tmp_path.glob("caches/.*/made/*/pixels.npy")):
        assert program.poll() is None
        time.sleep(0.02)
    workers = children(program.pid)
    program.send_signal(ending)
    errors = program.communicate(timeout=60)[1].decode()
    assert program.returncode not in (0, None) and len(workers) == 2
    assert errors.count("Traceback") == (ending != signal.SIGKILL)  # that of the program
    for worker in workers:  # it ends when it reads on
        for _ in range(500):
            if not Path(f"/proc/{worker}").exists():
                break
            time.sleep(0.02)
        assert not Path(f"/proc/{worker}").exists()
    assert (ending == signal.SIGKILL) == bool(list((tmp_path / "caches").iterdir()))


def test_processes_import_little():
    code = "import sys, lattec_jax.data.images.decoder_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"jax", "flax", "ml_collections", "absl", "pydantic", "tqdm", "tokenizers"}
