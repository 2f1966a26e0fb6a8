"""The command `reproduce`: what it says beforehand, and whole runs that are killed (tier full)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from lattec_jax import reproduce
from lattec_jax.paper_tables.plan import Sweep, choose_tables, make_jobs
from lattec_jax.runtime.errors import DataError
from tests.data.public_sets import make_tree

TINY_CLIP = Path(reproduce.__file__).parent / "demo/tiny_clip"
TINY = [
    f"--config.weights={TINY_CLIP}",
    "--config.descriptions.engine=pixels",
    "--config.train.batch_size=4",
    "--config.train.max_steps=3",
]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def lines(tables: str, names: str, *overrides: str, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    keys = tables.split(",")
    sweep = Sweep(
        *(choose_tables(keys), tuple(names.split(",")), seeds, Path("out"), overrides),
        downloads=True,
    )
    found = list(reproduce.needs(sweep, make_jobs(sweep)))
    return reproduce.plan_lines(sweep, found)


def test_the_plan_states_files_descriptions_and_steps(data):
    weights, eurosat, aircraft, cars, total = lines(
        "3", "eurosat,fgvc_aircraft,stanford_cars", "--config.weights=ViT-B-32:laion2b_s34b_b79k"
    )
    assert weights == "weights: ViT-B-32:laion2b_s34b_b79k, converted once, at first use"
    # 5 rows of 2 seeds, 1,800 steps each; an image and a group description of 18,900 images.
    assert eurosat == (
        "eurosat: download split_zhou_EuroSAT.json and EuroSAT.zip (0.1 GB); up to 37,800 "
        "descriptions; 10 runs, 18,000 steps"
    )
    assert "download fgvc-aircraft-2013b.tar.gz (size not known);" in aircraft
    assert "download split_zhou_StanfordCars.json; images that a person has to get;" in cars
    assert total.startswith("in all: 0.1 GB to download, and as much again on the disk; ")
    assert "descriptions by llava (rate on a GPU: not yet measured)" in total
    steps = sum(int(line.split()[-2].replace(",", "")) for line in (eurosat, aircraft, cars))
    assert f"{steps:,} steps, which take " in total and " on one H200 (" in total


def test_the_plan_counts_what_is_left(data):
    make_tree(data, "eurosat")
    mark = Path("out/eurosat/prepared")
    mark.mkdir(parents=True)
    before = lines("figure6", "eurosat", seeds=(0,))[1]
    assert "download" not in before
    # LatteCLIP and the oracle with 100%, 20% and 1% of 18,900 images, 50 epochs of batches of at
    # most 512: 36, 7 and 1 of them. Two descriptions of each image of LatteCLIP's three rows.
    assert before == "eurosat: up to 45,738 descriptions; 6 runs, 4,400 steps"
    run = Path("out/eurosat/latteclip-s0")
    run.mkdir()
    (run / "results.json").write_text("{}", encoding="utf-8")
    assert lines("figure6", "eurosat", seeds=(0,))[1].endswith("5 runs, 2,600 steps")


def test_sets_of_other_kinds_and_without_expected_counts(data, monkeypatch):
    shutil.copy(Path(reproduce.__file__).parents[1] / "configs/demo.py", "mine.py")
    engine = "    config.dataset.kind = 'folder'\n    return config"
    text = Path("mine.py").read_text(encoding="utf-8").replace("    return config", engine)
    Path("mine.py").write_text(text, encoding="utf-8")
    _, demo, mine, _ = lines("3", "demo,mine.py", seeds=(0,))
    # 1,000 images: 60 steps, by the configuration.
    assert demo == "demo: up to 2,000 descriptions; 5 runs, 300 steps"
    assert mine == "mine: 5 runs, unknown number of steps"


def test_without_a_data_directory_nothing_is_planned(monkeypatch):
    monkeypatch.delenv("LATTECLIP_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"\$LATTECLIP_DATA_DIR is not set"):
        lines("3", "eurosat")


def test_a_download_counts_as_done_only_while_the_files_are_there(data):
    sweep = Sweep(choose_tables(["3"]), ("eurosat",), (0,), Path("out"), downloads=True)
    mark = Path("out/eurosat/prepared/download")
    mark.parent.mkdir(parents=True)
    mark.touch()
    (job,) = [job for job in make_jobs(sweep) if job.name == "eurosat/download"]
    assert not job.done
    make_tree(data, "eurosat")
    assert job.done


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lattec_jax.reproduce", "--tables=3", "--seeds=0"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [*command, *TINY, *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def archive(data: Path) -> None:
    """FGVC Aircraft's archive, whose sum is not published, as a user without a network has it."""
    root = make_tree(data.parent / "original", "fgvc_aircraft")
    (data / "fgvc_aircraft").mkdir(exist_ok=True)
    path = data / "fgvc_aircraft/fgvc-aircraft-2013b.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        target.add(root, "fgvc-aircraft-2013b/data")


@pytest.mark.full
def test_killed_at_five_moments_it_ends_with_the_same_table(data):
    archive(data)
    whole = start("--datasets=fgvc_aircraft", "--out=whole")
    began = time.monotonic()
    printed, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, printed
    taken = time.monotonic() - began
    assert "fgvc_aircraft: up to 13,334 descriptions; 5 runs, 15 steps" in printed

    os.rename(data / "fgvc_aircraft", data / "first")
    archive(data)
    moments = random.Random(0)
    for _ in range(5):
        process = start("--datasets=fgvc_aircraft", "--out=killed")
        time.sleep(moments.uniform(0.1, taken / 4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start("--datasets=fgvc_aircraft", "--out=killed")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    tables = [Path(name, "tables.md").read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert "5 of 5 runs are there" in tables[0]
    assert tables[0].replace("whole", "killed") == tables[1]


@pytest.mark.full
def test_without_a_network_it_names_what_is_missing_first(data):
    process = start("--datasets=eurosat", "--out=out")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: https://raw.githubusercontent.com/" in printed
    assert "split_zhou_EuroSAT.json cannot be downloaded" in printed
    assert "failed: eurosat/download" in printed
    assert "5 without what they need" in printed or "7 without what they need" in printed
