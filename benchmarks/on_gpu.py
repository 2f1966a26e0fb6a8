"""Collect the results of `benchmarks/on_gpu.sh` into one table.

    python -m benchmarks.on_gpu DIR [--small]

DIR has a JSON file for each part that gave results, and `parts.txt` with a line for each part: its
name, "ok", "failed" or "out-of-time", and its seconds. Prints a Markdown table; with --small
without goals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LOG, PARTS = "log.txt", "parts.txt"


class Row(NamedTuple):
    """A figure: the part that measures it, its value in that part's JSON, its form and goal."""

    figure: str
    part: str
    value: Callable[[Any], float]  # raises LookupError if the part did not measure it
    form: str = "{:.2f}"
    goal: str = ""  # "≥ 4" or "< 180"


def _program(results: Any, name: str) -> dict[str, float]:
    return {row["program"]: row for row in results["rows"]}[name]


def _ratio(name: str) -> Callable[[Any], float]:
    """Return ours over another program's images/s."""
    key = "images_per_second"
    return lambda results: _program(results, "ours")[key] / _program(results, name)[key]


def _ours(key: str) -> Callable[[Any], float]:
    return lambda results: _program(results, "ours")[key]


def _run(key: str, way: str = "on the device") -> Callable[[Any], float]:
    return lambda results: results["runs"][way][key]


STEPS = "step_images_per_second"
ROWS = (
    Row("step: ours against release-like, gradient checkpointing", "train_step",
        _ratio("release-checkpointing"), "{:.2f} x", "≥ 4"),
    Row("step: ours against release-like", "train_step", _ratio("release"), "{:.2f} x", "≥ 4"),
    Row("step: ours against best PyTorch, compiled", "train_step", _ratio("best-compiled"),
        "{:.2f} x", "≥ 1"),
    Row("step: ours against best PyTorch, eager", "train_step", _ratio("best"), "{:.2f} x", "≥ 1"),
    Row("step: images/s", "train_step", _ours("images_per_second"), "{:,.1f}"),
    Row("step: MFU", "train_step", _ours("utilization"), "{:.1%}", "≥ 0.45"),
    Row("peak of matrix products (TFLOP/s)", "train_step",
        lambda results: max(results["matmul_flop_per_second"].values()) / 1e12, "{:,.2f}"),
    Row("step: compilation (s)", "train_step", _ours("compiling_seconds"), "{:.1f}"),
    Row("run, from the command to its end (s)", "end_to_end", _run("total"), "{:.1f}", "< 180"),
    Row("run: images/s over the whole of training", "end_to_end", _run("images_per_second"),
        "{:,.0f}", "≥ 8000"),
    Row("run: images/s without checkpoints", "end_to_end", _run(STEPS), "{:,.0f}"),
    Row("streamed image cache: images/s against resident", "end_to_end",
        lambda r: _run(STEPS, "again, streamed")(r) / _run(STEPS)(r), "{:.2f} x"),
    Row("captioning, nf4: descriptions/s", "captioning", lambda r: r[0]["batched"], "{:.1f}",
        "≥ 10"),
    Row("captioning, nf4: against one by one", "captioning",
        lambda r: r[0]["batched"] / r[0]["single"], "{:.1f} x", "≥ 10"),
    Row("demo in bfloat16: zero-shot top-1", "demo", lambda r: r["zero_shot"]["top1"], "{:.1%}"),
    Row("demo in bfloat16: adapted top-1", "demo", lambda r: r["adapted"]["top1"], "{:.1%}"),
    Row("step of the largest model: compilation (s)", "compile_time",
        lambda r: r[0]["lowering"] + r[0]["compilation"], "{:.1f}", "< 20"),
)  # fmt: skip


def is_met(value: float, goal: str) -> bool:
    """Return whether a value meets a goal, as "≥ 4" or "< 180"."""
    sign, limit = goal.split()
    return value >= float(limit) if sign == "≥" else value < float(limit)


def table(directory: Path, goals: bool = True) -> str:
    """Return the Markdown table of the results in a directory."""
    lines = ["| figure | value | goal | met |", "|---|---|---|---|"]
    parts, results = read_parts(directory), read_results(directory)
    for row in ROWS:
        goal = row.goal if goals else ""
        try:
            value = row.value(results[row.part])
        except LookupError:
            cell, met = _missing(parts.get(row.part)), "–"
        else:
            cell = row.form.format(value)
            met = ("yes" if is_met(value, goal) else "no") if goal else "–"
        lines.append(f"| {row.figure} | {cell} | {goal or '–'} | {met} |")
    return "\n".join(lines)


def _missing(status: str | None) -> str:
    """Return why a value is missing, for the status of its part."""
    if status is None:
        return "not measured"
    return "not measured: out of time" if status == "out-of-time" else f"failed: see {LOG}"


def read_parts(directory: Path) -> dict[str, str]:
    """Return the status of each part that was run or skipped."""
    path = directory / PARTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: status for name, status, _ in map(str.split, lines)}


def read_results(directory: Path) -> dict[str, Any]:
    """Return the results of each part that wrote them, also of one that was stopped later."""
    found = {}
    for path in directory.glob("*.json"):
        with contextlib.suppress(ValueError):  # it was stopped while it wrote
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true", help="no goals: those are for a GPU")
    values = parser.parse_args()
    print(table(values.directory, goals=not values.small))


if __name__ == "__main__":
    main()
