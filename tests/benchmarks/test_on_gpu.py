"""The table of `benchmarks/on_gpu.sh`, and the script with a Python whose parts fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import on_gpu

SCRIPT = Path(on_gpu.__file__).with_suffix(".sh")
RESULTS = {
    "train_step": {
        "rows": [
            {
                "program": "ours",
                "images_per_second": 8700.0,
                "utilization": 0.4,
                "compiling_seconds": 30.0,
            },
            {"program": "release", "images_per_second": 2000.0},
            {"program": "best-compiled", "images_per_second": 10_000.0},
        ],
        "matmul_flop_per_second": {"ours": 7.5e14, "best": 7.8e14},
    },
    "end_to_end": {
        "runs": {
            "on the device": {
                "total": 180.0,
                "images_per_second": 8000.0,
                "step_images_per_second": 8600.0,
            }
        }
    },
    "captioning": [{"precision": "nf4", "single": 0.5, "batched": 9.0, "batch": 32}],
}
PARTS = "train_step ok 160\nend_to_end out-of-time 290\ncaptioning ok 40\ndemo failed 3\n"


def cells(table: str) -> dict[str, list[str]]:
    """Return value, goal and verdict by figure."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_table_has_values_goals_and_reasons(tmp_path):
    for name, results in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "demo.json").write_text('{"zero_sh', encoding="utf-8")
    (tmp_path / on_gpu.PARTS).write_text(PARTS, encoding="utf-8")
    found = cells(on_gpu.table(tmp_path))
    assert list(found) == ["figure", *(row.figure for row in on_gpu.ROWS)]
    assert found["step: ours against release-like"] == ["4.35 x", "≥ 4", "yes"]
    assert found["step: ours against best PyTorch, compiled"] == ["0.87 x", "≥ 1", "no"]
    # The part ended well, but this program was dropped.
    assert found["step: ours against best PyTorch, eager"] == ["failed: see log.txt", "≥ 1", "–"]
    assert found["step: MFU"] == ["40.0%", "≥ 0.45", "no"]
    assert found["peak of matrix products (TFLOP/s)"] == ["780.00", "–", "–"]
    assert found["run, from the command to its end (s)"] == ["180.0", "< 180", "no"]
    assert found["run: images/s over the whole of training"] == ["8,000", "≥ 8000", "yes"]
    assert found["streamed image cache: images/s against resident"][0] == (
        "not measured: out of time"
    )
    assert found["captioning, nf4: against one by one"] == ["18.0 x", "≥ 10", "yes"]
    assert found["demo in bfloat16: adapted top-1"][0] == "failed: see log.txt"
    assert found["step of the largest model: compilation (s)"][0] == "not measured"
    small = cells(on_gpu.table(tmp_path, goals=False))
    assert small["step: MFU"] == ["40.0%", "–", "–"]


def test_without_results_nothing_is_measured(tmp_path):
    found = cells(on_gpu.table(tmp_path))
    assert {row[0] for row in list(found.values())[1:]} == {"not measured"}


def test_the_script_prints_its_table_when_parts_fail(tmp_path):
    """With a Python that examines the machine and captions, and else fails."""
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
case "$*" in
    -\\ *) echo "a machine" ;;
    *benchmarks.on_gpu*) exec "{sys.executable}" "$@" ;;
    *benchmarks.captioning*) echo '[{{"single": 2, "batched": 9}}]' >"$OUT/captioning.json" ;;
    *) exit 1 ;;
esac
""")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out")}
    output = subprocess.run(
        ["bash", SCRIPT, "--small"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "a machine; " in output
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == output
    found = cells(output)
    assert found["captioning, nf4: against one by one"][0] == "4.5 x"
    assert found["step: MFU"][0] == found["demo in bfloat16: adapted top-1"][0]
    assert found["step: MFU"][0] == "failed: see log.txt"
