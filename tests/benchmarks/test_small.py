"""Small runs of the other benchmarks: their output has the form of benchmarks/README.md."""

from __future__ import annotations

import importlib.util
import sys

import pytest

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("needs open_clip's vocabulary", allow_module_level=True)

from benchmarks import scaling, startup, streaming


def run(module, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_streaming(monkeypatch, capsys, tmp_path):
    small = ["--gigabytes=0.01", "--sides", "32", "--rounds=1", f"--directory={tmp_path}"]
    run(streaming, monkeypatch, *small)
    row = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["32", "3.1"]
    assert all(float(cell.replace(",", "")) > 0 for cell in cells[2:6])
    assert not list(tmp_path.iterdir())


def test_startup():
    found = startup.measure(300)
    assert found["images"] == 300 and 18 < found["mean length"] < 26
    assert all(found[stage] >= 0 for stage in startup.STAGES)


@pytest.mark.soak
def test_scaling(tmp_path):
    found = scaling.vary("classes", (10, 64), tmp_path, 1)
    assert found.keys() == {10, 64} and all(wall > 0 for wall, _ in found.values())
    few, many = (scaling.count(scaling.TINY, classes=c)[0] for c in (10, 128))
    short, long = (scaling.count(scaling.TINY, tokens=n)[0] for n in (16, 77))
    assert few < many and short < long


@pytest.mark.soak
def test_scaling_splits_one_cpu_in_a_separate_process(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    run(scaling, monkeypatch, "--sections", "devices", "--rounds=1", f"--directory={tmp_path}")
    rows = [row for row in capfd.readouterr().out.splitlines() if row.startswith("| ")]
    assert [row.split()[1] for row in rows[1:]] == ["1", "2", "4", "8"]
