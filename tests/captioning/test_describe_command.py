"""The command captioning.describe: its output, its workers, and continuation after a kill."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captioning import describe as command
from captioning.describe import describe
from captioning.shards import Shard, shard_path, shard_paths
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.runtime.errors import ConfigError, DataError, EngineError
from tests.captioning.ruler import (
    IDS,
    WIDTHS,
    Ruler,
    texts,
    write_config_file,
    write_labels,
)

KILLED = """
import sys, time
from pathlib import Path
from captioning.describe import describe
from lattec_jax.runtime.config import from_json
from tests.captioning.ruler import WIDTHS, Ruler
class Slow(Ruler):
    def describe(self, requests):
        for number, answer in enumerate(super().describe(requests)):
            if number == 6:
                print("six", flush=True)
                time.sleep(60)
            yield answer
describe(from_json(Path(sys.argv[1])), ["image"], Slow())
"""


def test_continues_after_a_kill(config, tmp_path):
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "config.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"six\n"
    with pytest.raises(DataError, match=r"written by another process.*--shard"):
        describe(config, ["image"], Ruler())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    path = shard_path(descriptions_path(config, "image"), Shard(0, 1))
    with open(path, "ab") as file:
        file.write(path.read_bytes()[:40])  # as if killed in the middle of a line
    rest = Ruler()
    describe(config, ["image"], rest)
    assert rest.requested == IDS[6:]
    assert path.read_text().count("\n") == 10
    assert texts(config, "image") == WIDTHS


FULL = """
import resource, signal, sys
from pathlib import Path
from captioning.describe import describe
from lattec_jax.runtime.config import from_json
from lattec_jax.runtime.errors import DataError
from tests.captioning.ruler import WIDTHS, Ruler
class Fills(Ruler):
    def describe(self, requests):
        for number, answer in enumerate(super().describe(requests)):
            if number == 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
            yield answer
try:
    describe(from_json(Path(sys.argv[1])), ["image"], Fills())
except DataError as error:
    print(error)
"""


def test_a_file_that_cannot_grow(config, tmp_path):
    """The system stops writing in the middle of a line, as on a full disk."""
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "config.json")],
        capture_output=True,
        check=True,
    )
    assert b"cannot write" in process.stdout and b"free some disk" in process.stdout
    path = shard_path(descriptions_path(config, "image"), Shard(0, 1))
    lines = path.read_text().splitlines()
    assert 0 < len(lines) < 10 and path.stat().st_size <= 700
    assert all(json.loads(line)["text"] for line in lines)
    rest = Ruler()
    describe(config, ["image"], rest)
    assert rest.requested == IDS[len(lines) :]
    assert texts(config, "image") == WIDTHS


def test_the_command(config, tmp_path, capsys):
    (Path(config.dataset.root) / IDS[0]).write_bytes(b"")
    write_config_file(config, tmp_path / "mine.py")
    command.main(["describe", f"--config={tmp_path / 'mine.py'}", "--kind=image", "--shard=0/2"])
    printed = capsys.readouterr().out
    assert "image: 4 written, 0 reused, 1 failed" in printed
    assert f"failed: {IDS[0]}: cannot read the image" in printed
    command.main(["describe", f"--config={tmp_path / 'mine.py'}", "--kind=image"])
    printed = capsys.readouterr().out
    assert "image: 5 written, 4 reused, 1 failed" in printed
    assert "9 descriptions ->" in printed and "words: 2 to 2, median 2" in printed


def test_several_workers_by_one_command(config, tmp_path, capsys, monkeypatch):
    write_labels(config)
    write_config_file(config, tmp_path / "mine.py")
    arguments = ["describe", f"--config={tmp_path / 'mine.py'}", "--processes=3"]
    command.main(arguments)
    assert "10 descriptions ->" in capsys.readouterr().out
    assert texts(config, "image") == WIDTHS
    path = descriptions_path(config, "group")
    assert len(shard_paths(path)) == 3
    assert sorted(p.name for p in path.parent.glob("shards/*.log")) == [
        f"worker-{n}-of-3.log" for n in range(3)
    ]
    with pytest.raises(ConfigError, match="--processes: expected 1 or more"):
        command.main([*arguments[:2], "--processes=0"])


@pytest.mark.full
def test_a_worker_that_fails(config, tmp_path, monkeypatch):
    write_config_file(config, tmp_path / "mine.py")
    path = shard_path(descriptions_path(config, "image"), Shard(1, 2))
    path.parent.mkdir(parents=True)
    path.touch()
    arguments = ["x", f"--config={tmp_path / 'mine.py'}", "--kind=image", "--processes=2"]
    with (
        open(path) as held,
        pytest.raises(EngineError, match=r"(?s)1 of 2 workers failed.*written by another process"),
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        command.main(arguments)
    command.main(arguments)
    assert texts(config, "image") == WIDTHS
