"""Killed workers: no image is lost or described twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captioning.describe import describe
from captioning.engines import ENGINES
from captioning.merge import merge
from captioning.shards import Shard, shard_path, shard_paths
from lattec_jax.data.descriptions import descriptions_path, records
from tests.captioning.ruler import IDS, Ruler, make_config, write_config_file, write_labels

IMAGES, SHARDS, KILLS = 600, 4, 50


def start(file: Path, shard: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "captioning.describe", f"--config={file}", f"--shard={shard}/4"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def written(config) -> list:
    merged = (descriptions_path(config, kind) for kind in ("image", "group"))
    return [record for path in merged for shard in shard_paths(path) for record in records(shard)]


def parses(line: bytes) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def test_a_file_truncated_anywhere_is_repaired(config):
    """A kill leaves complete lines and at most one partial line."""
    describe(config, ["image"], Ruler())
    merged = descriptions_path(config, "image")
    path = shard_path(merged, Shard(0, 1))
    whole = path.read_bytes()
    cuts = random.Random(0).sample(range(len(whole)), 15)
    first = whole.index(b"\n")
    for cut in [0, first, first + 1, len(whole) - 1, *cuts]:
        merged.unlink()
        path.write_bytes(whole[:cut])
        engine = Ruler()
        describe(config, ["image"], engine)
        assert engine.requested == IDS[sum(map(parses, whole[:cut].split(b"\n"))) :], cut
        assert path.read_bytes().splitlines() == whole.splitlines(), cut


@pytest.mark.soak
def test_killed_fifty_times(tmp_path, monkeypatch):
    """Four workers, at random moments."""
    monkeypatch.setitem(ENGINES, "ruler", "tests.captioning.ruler")
    config = make_config(tmp_path, IMAGES)
    ids = tuple(sorted(path.name for path in Path(config.dataset.root).iterdir()))
    write_labels(config, np.arange(IMAGES, dtype=np.int32) % 2, ids)
    file = tmp_path / "mine.py"
    write_config_file(config, file)
    with open(file, "a") as text:
        text.write("from tests.captioning import ruler\nruler.pause = 0.08\n")
    rng = random.Random(0)
    running = {shard: start(file, shard) for shard in range(SHARDS)}
    at_kill, finished = [], set()
    while len(at_kill) < KILLS:
        time.sleep(rng.uniform(0.05, 0.9))
        shard = rng.choice(sorted(running))
        process = running[shard]
        if process.poll() is not None:
            assert process.returncode == 0
            finished.add(shard)
            assert len(finished) < SHARDS, f"all done after {len(at_kill)} kills"
            continue
        process.kill()
        process.wait()
        at_kill.append(len(written(config)))
        print(f"kill {len(at_kill)}: shard {shard}, {at_kill[-1]} descriptions on disk", flush=True)
        running[shard] = start(file, shard)
    for shard, process in running.items():
        while process.wait():
            process = start(file, shard)
    assert at_kill == sorted(at_kill) and len(set(at_kill)) > KILLS / 2
    counts = Counter((record.image, record.kind) for record in written(config))
    assert set(counts) == {(image, kind) for image in ids for kind in ("image", "group")}
    assert set(counts.values()) == {1}
    found = merge(config)
    assert [len(found[kind].texts) for kind in ("image", "group")] == [IMAGES, IMAGES]
