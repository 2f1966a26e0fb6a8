"""One training step, ours beside two programs in PyTorch on open_clip that compute the same.

    python -m benchmarks.train_step [--model=ViT-B-32] [--batch=64] [--dtype=float32] [--rounds=5]

Programs: ours (`benchmarks/ours.py`); the step of the authors' released code, with gradient
checkpointing and without (`torch_release.py`); and the quickest that we could make in PyTorch,
with `torch.compile` and without (`torch_best.py`). Each lives in a process of its own. Before
anything is timed, each must give our loss, gradients and prototypes in float32, on at most 64
images. Then they take turns, one step on the same batch each (ten on a GPU), and medians are taken.
Ours cuts and resizes its images within the timed step; the others are given the finished crops on
the device. Prints Markdown and a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workload
from benchmarks.step_worker import SMALL
from benchmarks.workload import Cost, Workload
from convert.open_clip_package import built_in_model_cfg
from lattec_jax.models.clip import LENGTH_MULTIPLE

# Each program, and the process that runs it and others like it on a CPU: one model, little memory.
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
WARM_UP = 1  # rounds that are not counted
ON_GPU = 10  # steps of a turn there
COMPARED = 64  # images at most of the batch that the programs are compared on, in float32
MATMUL = {"cpu": 4096, "gpu": 8192}
# Some ten times the differences in README.md; for the loss, some roundings of a float32.
LIMITS = {"loss": 1e-6, "gradient": 2e-5, "worst_parameter": 5e-5, "prototypes": 6e-7}


class Worker:
    """A process that runs a program (`benchmarks.step_worker`)."""

    def __init__(self, program: str, folder: Path, dtype: str):
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # or compiling would seem to take no time
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_worker", program, str(folder), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.program = program

    def ask(self, do: str, variant: str, **rest: int) -> dict[str, Any]:
        """Have something done and wait for the answer, see `answer`."""
        self.tell(do, variant, **rest)
        return self.answer()

    def tell(self, do: str, variant: str, **rest: int) -> None:
        """Have something done."""
        self.process.stdin.write(json.dumps({"do": do, "variant": variant, **rest}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to what was told.

        Raises:
            RuntimeError: the process has ended; its own message is on the standard error.
        """
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.program} has ended; see its message")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """How far a program's first step is from ours: the relative difference of the losses, the
    length of the difference of all gradients over the length of ours, the same of the worst single
    parameter, and the largest difference of a coordinate of the prototypes."""
    names = [name for name in ours if name.startswith("gradient/")]
    apart = np.array([np.linalg.norm(theirs[n] - ours[n]) for n in names])
    length = np.array([np.linalg.norm(ours[n]) for n in names])
    # A parameter without a gradient (the bias of the keys) is all rounding: hold it to the rest.
    floor = 1e-4 * np.linalg.norm(length)
    return {
        "loss": float(abs(theirs["loss"] - ours["loss"]) / abs(ours["loss"])),
        "gradient": float(np.linalg.norm(apart) / np.linalg.norm(length)),
        "worst_parameter": float(np.max(apart / np.maximum(length, floor))),
        "prototypes": float(np.max(np.abs(theirs["prototypes"] - ours["prototypes"]))),
    }


def check(workers: dict[str, Worker], folder: Path) -> dict[str, dict[str, float]]:
    """Hold every program's first step against ours.

    Returns:
        The differences by variant.

    Raises:
        RuntimeError: a program computes something else.
    """
    differences = {}
    for variant, worker in workers.items():
        worker.ask("check", variant)
        worker.ask("rest", variant)
        first = dict(np.load(folder / f"first-{variant}.npz", allow_pickle=False))
        if variant == "ours":
            reference = first
            continue
        found = differences[variant] = compare(reference, first)
        print(f"{NAMES[variant]}: relative difference of the loss {found['loss']:.1e}, of all "
              f"gradients {found['gradient']:.1e}, of the worst parameter's "
              f"{found['worst_parameter']:.1e}; of prototypes {found['prototypes']:.1e}",
              flush=True)  # fmt: skip
        for name, limit in LIMITS.items():
            if not found[name] <= limit:
                raise RuntimeError(
                    f"{variant} does not compute what ours does: {name} differs by "
                    f"{found[name]:.1e}, expected at most {limit:.0e}"
                )
    return differences


def start(folder: Path, dtype: str) -> tuple[dict[str, Worker], str]:
    """The process of each variant, and what they compute on ("cpu", "gpu")."""
    first = Worker("ours", folder, dtype)
    try:
        platform = first.ask("describe", "ours")["platform"]
    except RuntimeError:
        first.close()
        raise
    running = {"ours": first}
    workers = {}
    for variant, program in VARIANTS.items():
        # On a GPU nothing is scarce but its time, and each has a process of its own.
        name = program if platform == "cpu" or variant == "ours" else variant
        if name not in running:
            running[name] = Worker(program, folder, dtype)
        workers[variant] = running[name]
    return workers, platform


def build(workers: dict[str, Worker], platform: str) -> dict[str, dict[str, Any]]:
    """Make the programs ready. `torch.compile`, which takes minutes, goes on beside the others on a
    GPU, so that "compiling" is of cores that were shared."""
    workers["ours"].ask("prepare", "ours")
    beside = "best-compiled" if platform != "cpu" else None
    if beside:
        workers[beside].tell("build", beside)
    built = {}
    for variant, worker in sorted(workers.items(), key=lambda item: item[0] == beside):
        if variant != beside:
            worker.tell("build", variant)
        built[variant] = worker.answer()
        worker.ask("rest", variant)
        print(f"built {NAMES[variant]}", file=sys.stderr, flush=True)
    return built


def take_turns(workers: dict[str, Worker], rounds: int, steps: int, each: int) -> dict[str, Any]:
    """Seconds and peak memory of every step that counts, by variant.

    Args:
        workers: the process of each variant.
        rounds: that count.
        steps: different batches there are.
        each: steps of a turn; where there are several, one more goes before them uncounted.
    """
    found = {variant: {"seconds": [], "peak": []} for variant in VARIANTS}
    for turn in range(WARM_UP + rounds):
        for variant, worker in workers.items():
            for repeat in range(each + (each > 1)):
                answer = worker.ask("run", variant, step=turn % steps)
                if turn >= WARM_UP and (repeat or each == 1):
                    for key, values in found[variant].items():
                        values.append(answer[key])
            worker.ask("rest", variant)
            print(f"round {turn} of {rounds}: {NAMES[variant]}, {1e3 * answer['seconds']:.1f} ms",
                  file=sys.stderr, flush=True)  # fmt: skip
    return found


def costs(work: Workload, batch: workload.HostBatch) -> dict[str, Cost]:
    """What the method needs for a batch ("needed"), and what each program computes of it. Of
    products between tokens that see only earlier ones half are counted, whoever computes them all:
    1% of the release-like program's work, less of the others'."""
    config = work.config
    context = config.text.context_length
    plan = np.repeat(batch.text_lengths, [len(rows) for rows in batch.text_indices])
    classes = work.cropped_classes()[: 2 * work.batch]
    own = np.concatenate([np.full(len(classes), classes.shape[1]), plan])
    four = np.full(4 * work.batch, context)
    lengths = {"needed": workload.needed_lengths(work, batch)}
    lengths |= {v: four if v.startswith("release") else own for v in VARIANTS}
    lengths["ours"] = -(-own // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return {
        name: workload.cost(config, work.batch, n, whole_last_block=name.startswith("release"))
        for name, n in lengths.items()
    }


def summarize(
    work: Workload, turns: dict[str, Any], built: dict[str, Any], rate: float
) -> list[dict[str, Any]]:
    """A row for each program."""
    counted = costs(work, work.batches.at(0))
    rows = []
    for variant, found in turns.items():
        seconds, cost = float(np.median(found["seconds"])), counted[variant]
        again = cost.recomputed if variant == "release-checkpointing" else 0.0
        rows.append({
            "program": variant,
            "images_per_second": work.batch / seconds,
            "milliseconds": 1e3 * seconds,
            "least": 1e3 * min(found["seconds"]),
            "most": 1e3 * max(found["seconds"]),
            "computed_flop": cost.training + again,
            "computed_flop_per_second": (cost.training + again) / seconds,
            "computed_share_of_peak": (cost.training + again) / seconds / rate,
            "utilization": counted["needed"].training / seconds / rate,
            "peak_bytes": max(found["peak"]),
            "planned_bytes": built[variant].get("planned"),
            "compiling_seconds": built[variant]["compiling"],
            "first_loss": built[variant]["loss"],
        })  # fmt: skip
    return rows


def print_table(rows: list[dict[str, Any]], needed: float, rate: float) -> None:
    """The rows as Markdown, and what of a ratio is less work and what is its speed."""
    print("\n| program | images/s | ms per step (least to most) | TFLOP computed | TFLOP/s "
          "| of the peak | MFU | peak memory | compiling |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        planned = row["planned_bytes"]
        memory = f"{row['peak_bytes'] / 2**30:.1f} GiB"
        memory += f" (XLA's plan: {planned / 2**30:.1f})" if planned else ""
        print(f"| {NAMES[row['program']]} | {row['images_per_second']:.1f} "
              f"| {row['milliseconds']:.0f} ({row['least']:.0f} to {row['most']:.0f}) "
              f"| {row['computed_flop'] / 1e12:.2f} "
              f"| {row['computed_flop_per_second'] / 1e12:.3f} "
              f"| {row['computed_share_of_peak']:.0%} | {row['utilization']:.0%} | {memory} "
              f"| {row['compiling_seconds']:.0f} s |")  # fmt: skip
    print(
        f"\nNeeded by the method: {needed / 1e12:.2f} TFLOP a step; measured peak of matrix "
        f"products {rate / 1e12:.3f} TFLOP/s. MFU: needed over time over peak.\n"
    )
    # The second program of a process goes on from where the first one left the weights.
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
    """Print everything."""
    model_cfg = built_in_model_cfg(arguments.model)
    work = workload.make(model_cfg, arguments.batch, arguments.classes, WARM_UP + arguments.rounds)
    work.save(folder)
    if arguments.compare:
        (folder / SMALL).mkdir()
        compared = min(arguments.batch, COMPARED)
        workload.make(model_cfg, compared, arguments.classes, 1).save(folder / SMALL)
    load = os.getloadavg()[0]
    workers, platform = start(folder, arguments.dtype)
    try:
        facts = {v: workers[v].ask("describe", v) for v in ("ours", "best")}
        differences = check(workers, folder) if arguments.compare else {}
        built = build(workers, platform)
        size = MATMUL["cpu" if platform == "cpu" else "gpu"]
        rates = {v: workers[v].ask("matmul", v, size=size)["rate"] for v in facts}
        each = 1 if platform == "cpu" else ON_GPU
        turns = take_turns(workers, arguments.rounds, work.batches.steps_per_epoch, each)
    finally:
        for worker in set(workers.values()):
            worker.close()
    lengths = work.batches.lengths
    rate = max(rates.values())
    rows = summarize(work, turns, built, rate)
    needed = costs(work, work.batches.at(0))["needed"].training
    print(f"\n{arguments.model}, batch {arguments.batch}, {arguments.dtype}, {arguments.classes} "
          f"classes, descriptions of {lengths.mean():.1f} tokens on average ({lengths.max()} at "
          f"most); {arguments.rounds} rounds. {facts['ours']['device']}, {os.cpu_count()} cores, "
          f"{facts['ours']['version']}, {facts['best']['version']}, "
          f"{datetime.date.today()}, load average {load:.1f} before.")  # fmt: skip
    print_table(rows, needed, rate)
    print("\n" + json.dumps({
        **vars(arguments), "facts": facts, "differences": differences, "needed_flop": needed,
        "matmul_flop_per_second": rates, "load_average": load, "rows": rows,
        "plan": dataclasses.asdict(work.batches.plan),
    }))  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="of open_clip's configurations")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True,
        help="hold the programs against each other first",
    )  # fmt: skip
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train_step-") as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
