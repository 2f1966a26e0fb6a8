"""Compare one training step with two equivalent PyTorch programs on open_clip's model.

    python -m benchmarks.train_step [--model=ViT-B-32] [--batch=64] [--dtype=float32] [--rounds=5]
        [--json=FILE]

Programs: ours (`benchmarks/ours.py`); the step of the authors' released code, with and without
gradient checkpointing (`torch_release.py`); and the fastest that we could write in PyTorch, with
and without `torch.compile` (`torch_best.py`). Each runs in a separate process. Before the timing,
each must reproduce our loss, gradients and prototypes in float32, on at most 64 images. Then they
alternate, each with one step on the same batch (ten on a GPU), and medians are reported. Our timed
step includes cropping and resizing; the other programs receive the crops on the device. A program
that fails is left out of the tables, unless it is ours. Prints Markdown and a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workload
from benchmarks.step_worker import SMALL, WorkerProcess
from benchmarks.workload import Cost, Workload
from lattec_jax.models.clip import LENGTH_MULTIPLE

# Each variant and its program. On a CPU variants of a program share a process, to save memory.
VARIANTS = {
    "ours": "ours",
    "release-checkpointing": "release",
    "release": "release",
    "best": "best",
    "best-compiled": "best",
}
NAMES = {
    "ours": "ours",
    "release-checkpointing": "release-like, gradient checkpointing",
    "release": "release-like",
    "best": "best PyTorch, eager",
    "best-compiled": "best PyTorch, compiled",
}
LIBRARIES = {"ours": "JAX", "best": "PyTorch"}
WARM_UP = 1  # uncounted rounds
GPU_STEPS = 10  # steps of a variant per round on a GPU
MAX_COMPARED = 64  # images of the float32 batch on which results are compared
MATMUL = {"cpu": 4096, "gpu": 8192}
# About ten times the differences in README.md; for the loss, a few float32 rounding errors.
TOLERANCES = {"loss": 1e-6, "gradient": 2e-5, "worst_parameter": 5e-5, "prototypes": 6e-7}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the differences of a program's first step from ours.

    These are the relative differences of the loss, of the norm of all gradients and of the worst
    parameter's gradient, and the maximum absolute difference of the prototypes.
    """
    names = [name for name in ours if name.startswith("gradient/")]
    differences = np.array([np.linalg.norm(theirs[n] - ours[n]) for n in names])
    norms = np.array([np.linalg.norm(ours[n]) for n in names])
    # The gradient of some parameters (the bias of the keys) is only rounding error.
    floor = 1e-4 * np.linalg.norm(norms)
    return {
        "loss": float(abs(theirs["loss"] - ours["loss"]) / abs(ours["loss"])),
        "gradient": float(np.linalg.norm(differences) / np.linalg.norm(norms)),
        "worst_parameter": float(np.max(differences / np.maximum(norms, floor))),
        "prototypes": float(np.max(np.abs(theirs["prototypes"] - ours["prototypes"]))),
    }


def check(workers: dict[str, WorkerProcess], folder: Path) -> dict[str, dict[str, float]]:
    """Compare every program's first step with ours.

    Returns:
        The differences by variant.

    Raises:
        RuntimeError: a program computes something else.
    """
    differences = {}
    for variant, worker in workers.items():
        worker.call("check", variant)
        worker.call("free_memory", variant)
        first = dict(np.load(folder / f"first-{variant}.npz", allow_pickle=False))
        if variant == "ours":
            reference = first
            continue
        found = differences[variant] = compare(reference, first)
        print(f"{NAMES[variant]}: relative difference of the loss {found['loss']:.1e}, of all "
              f"gradients {found['gradient']:.1e}, of the worst parameter's "
              f"{found['worst_parameter']:.1e}; of prototypes {found['prototypes']:.1e}",
              flush=True)  # fmt: skip
        for name, limit in TOLERANCES.items():
            if not found[name] <= limit:
                raise RuntimeError(
                    f"{variant} does not compute what ours does: {name} differs by "
                    f"{found[name]:.1e}, expected at most {limit:.0e}"
                )
    return differences


def start(folder: Path, dtype: str) -> tuple[dict[str, WorkerProcess], str]:
    """Start the process of each variant; return them and the platform, "cpu" or "gpu"."""
    first = WorkerProcess("ours", folder, dtype)
    try:
        platform = first.call("describe", "ours")["platform"]
    except RuntimeError:
        first.close()
        raise
    running = {"ours": first}
    workers = {}
    for variant, program in VARIANTS.items():
        # A GPU has memory for a separate process per variant.
        name = program if platform == "cpu" or variant == "ours" else variant
        if name not in running:
            running[name] = WorkerProcess(program, folder, dtype)
        workers[variant] = running[name]
    return workers, platform


def drop(workers: dict[str, WorkerProcess], variant: str, error: RuntimeError) -> None:
    """Go on without a program whose process has ended, and without the others of that process;
    without ours there is nothing to compare."""
    if variant == "ours":
        raise error
    ended = workers[variant]
    for other in [name for name, worker in workers.items() if worker is ended]:
        print(f"{NAMES[other]} failed: {error}", file=sys.stderr, flush=True)
        del workers[other]


def build(
    workers: dict[str, WorkerProcess], platform: str, limit: float | None
) -> dict[str, dict[str, Any]]:
    """Create and compile the programs; drop those that fail.

    On a GPU, `torch.compile`, which takes minutes, runs in parallel to the others, so its time is
    on shared cores.

    Args:
        workers: the process of each variant.
        platform: "cpu" or "gpu".
        limit: seconds to wait for a program; on a GPU for the compiled one after the others.
    """
    workers["ours"].call("prepare", "ours")
    parallel = "best-compiled" if platform != "cpu" else None
    if parallel:
        workers[parallel].send("build", parallel)
    built = {}
    for variant, worker in sorted(workers.items(), key=lambda item: item[0] == parallel):
        if variant not in workers:
            continue
        try:
            if variant != parallel:
                worker.send("build", variant)
            built[variant] = worker.receive(limit)
            worker.call("free_memory", variant)
        except RuntimeError as error:
            drop(workers, variant, error)
            continue
        print(f"built {NAMES[variant]}", file=sys.stderr, flush=True)
    return built


def run_rounds(
    workers: dict[str, WorkerProcess], rounds: int, steps: int, each: int
) -> dict[str, Any]:
    """Return seconds and peak memory of every counted step, by variant; drop those that fail.

    Args:
        workers: the process of each variant.
        rounds: number of counted rounds.
        steps: number of different batches.
        each: steps per variant and round; if several, after one uncounted step.
    """
    found = {variant: {"seconds": [], "peak": []} for variant in workers}
    for round_number in range(WARM_UP + rounds):
        for variant, worker in list(workers.items()):
            if variant not in workers:
                continue
            replies = []
            try:
                for _ in range(each + (each > 1)):
                    replies.append(worker.call("run", variant, step=round_number % steps))
                worker.call("free_memory", variant)
            except RuntimeError as error:
                drop(workers, variant, error)
                continue
            if round_number >= WARM_UP:
                for key, values in found[variant].items():
                    values += [reply[key] for reply in replies[-each:]]
            milliseconds = 1e3 * replies[-1]["seconds"]
            print(f"round {round_number} of {rounds}: {NAMES[variant]}, {milliseconds:.1f} ms",
                  file=sys.stderr, flush=True)  # fmt: skip
    return {variant: found[variant] for variant in workers}


def costs(work: Workload, batch: workload.HostBatch) -> dict[str, Cost]:
    """Return the operations that the method needs for a batch ("needed") and each program's.

    In causal attention half of the products between tokens are counted, even for a program that
    computes all: 1% of the release-like program's work, less of the others'.
    """
    config = work.config
    context = config.text.context_length
    plan = np.repeat(batch.bucket_lengths, [len(indices) for indices in batch.text_indices])
    classes = work.cropped_classes()[: 2 * work.batch]
    padded = np.concatenate([np.full(len(classes), classes.shape[1]), plan])
    four = np.full(4 * work.batch, context)
    lengths = {"needed": workload.needed_lengths(work, batch)}
    lengths |= {v: four if v.startswith("release") else padded for v in VARIANTS}
    lengths["ours"] = -(-padded // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return {
        name: workload.cost(config, work.batch, n, full_last_block=name.startswith("release"))
        for name, n in lengths.items()
    }


def summarize(
    work: Workload, turns: dict[str, Any], built: dict[str, Any], rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Return a row for each program. `rates`: FLOP/s of one product in JAX and in PyTorch."""
    counted, rate = costs(work, work.batches.at(0)), max(rates.values())
    rows = []
    for variant, found in turns.items():
        seconds, cost = float(np.median(found["seconds"])), counted[variant]
        recomputed = cost.recomputed if variant == "release-checkpointing" else 0.0
        computed = (cost.training + recomputed) / seconds
        own = rates.get("ours" if variant == "ours" else "best", rate)
        rows.append({
            "program": variant,
            "images_per_second": work.batch / seconds,
            "milliseconds": 1e3 * seconds,
            "min": 1e3 * min(found["seconds"]),
            "max": 1e3 * max(found["seconds"]),
            "computed_flop": cost.training + recomputed,
            "computed_flop_per_second": computed,
            "computed_fraction_of_peak": computed / rate,
            "computed_fraction_of_own_peak": computed / own,
            "utilization": counted["needed"].training / seconds / rate,
            "peak_bytes": max(found["peak"]),
            "planned_bytes": built[variant].get("planned"),
            "compiling_seconds": built[variant]["compiling"],
            "first_loss": built[variant]["loss"],
        })  # fmt: skip
    return rows


def instruction_sets() -> str:
    """Return the CPU's vector extensions as Linux lists them, which matrix products depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    return " ".join(sorted({w for w in words if re.match("avx|amx|fma|sve|asimd", w)})) or "unknown"


def print_table(rows: list[dict[str, Any]], needed: float, rates: dict[str, float]) -> None:
    """Print the rows as Markdown, and each ratio's factors: less work, and speed."""
    print("\n| program | images/s | ms per step (min to max) | TFLOP computed | TFLOP/s "
          "| of peak | of own peak | MFU | peak memory | compilation |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        planned = row["planned_bytes"]
        memory = f"{row['peak_bytes'] / 2**30:.1f} GiB"
        memory += f" (XLA's plan: {planned / 2**30:.1f})" if planned else ""
        print(f"| {NAMES[row['program']]} | {row['images_per_second']:.1f} "
              f"| {row['milliseconds']:.0f} ({row['min']:.0f} to {row['max']:.0f}) "
              f"| {row['computed_flop'] / 1e12:.2f} "
              f"| {row['computed_flop_per_second'] / 1e12:.3f} "
              f"| {row['computed_fraction_of_peak']:.0%} "
              f"| {row['computed_fraction_of_own_peak']:.0%} | {row['utilization']:.0%} | {memory} "
              f"| {row['compiling_seconds']:.0f} s |")  # fmt: skip
    peaks = ", ".join(f"{LIBRARIES[v]} {rate / 1e12:.3f}" for v, rate in rates.items())
    print(f"\nNeeded by the method: {needed / 1e12:.2f} TFLOP per step. Measured peak of one "
          f"matrix product, TFLOP/s: {peaks}. \"Of peak\": of the larger; \"of own peak\": of the "
          "program's library. MFU: needed over time over peak.\n")  # fmt: skip
    # The second variant of a process continues with the weights of the first one.
    first = {VARIANTS[row["program"]]: row["first_loss"] for row in reversed(rows)}
    losses = ", ".join(f"{name} {loss:.5f}" for name, loss in reversed(first.items()))
    print(f"Losses of the first steps: {losses}\n")
    ours = rows[0]
    print("| ours against | images/s | less work | FLOP/s |")
    print("|---|---|---|---|")
    for row in rows[1:]:
        work = row["computed_flop"] / ours["computed_flop"]
        speed = ours["computed_flop_per_second"] / row["computed_flop_per_second"]
        print(f"| {NAMES[row['program']]} | {work * speed:.2f} x | {work:.2f} x | {speed:.2f} x |")


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run and print the comparison."""
    model_cfg = workload.shortened(arguments.model, arguments.layers)
    work = workload.make(model_cfg, arguments.batch, arguments.classes, WARM_UP + arguments.rounds)
    work.save(folder)
    if arguments.compare:
        (folder / SMALL).mkdir()
        compared = min(arguments.batch, MAX_COMPARED)
        workload.make(model_cfg, compared, arguments.classes, 1).save(folder / SMALL)
    load = os.getloadavg()[0]
    workers, platform = start(folder, arguments.dtype)
    processes = set(workers.values())
    try:
        facts = {v: workers[v].call("describe", v) for v in ("ours", "best")}
        differences = check(workers, folder) if arguments.compare else {}
        built = build(workers, platform, arguments.limit)
        size = arguments.matmul or MATMUL["cpu" if platform == "cpu" else "gpu"]
        rates = {v: workers[v].call("matmul", v, size=size)["rate"] for v in facts if v in workers}
        each = 1 if platform == "cpu" else GPU_STEPS
        turns = run_rounds(workers, arguments.rounds, work.batches.steps_per_epoch, each)
    finally:
        for worker in processes:
            worker.close()
    lengths = work.batches.lengths
    rows = summarize(work, turns, built, rates)
    needed = costs(work, work.batches.at(0))["needed"].training
    print(f"\n{arguments.model}, batch {arguments.batch}, {arguments.dtype}, {arguments.classes} "
          f"classes, descriptions of {lengths.mean():.1f} tokens on average "
          f"(maximum {lengths.max()}); {arguments.rounds} rounds. "
          f"{facts['ours']['device']}, {os.cpu_count()} cores ({instruction_sets()}), "
          f"{facts['ours']['version']}, {facts['best']['version']}, "
          f"{datetime.date.today()}, load average {load:.1f} at the start.")  # fmt: skip
    print_table(rows, needed, rates)
    line = json.dumps({
        **vars(arguments), "facts": facts, "differences": differences, "needed_flop": needed,
        "matmul_flop_per_second": rates, "load_average": load, "rows": rows,
        "plan": dataclasses.asdict(work.batches.plan),
    }, default=str)  # fmt: skip
    print("\n" + line)
    if arguments.json:
        arguments.json.write_text(line, encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True,
        help="compare the programs' results first",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=0, help="of each tower; 0: the model's")
    parser.add_argument("--matmul", type=int, default=0, help="size of the products for the peak")
    parser.add_argument("--limit", type=float, help="seconds to wait for a program to be built")
    parser.add_argument("--json", type=Path, help="file for the line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train_step-") as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
