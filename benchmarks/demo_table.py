"""Run every method on the demo with five seeds, and with shuffled descriptions as a control.

    python -m benchmarks.demo_table [--out=runs/demo_table] [--seeds=5]

Every run is a work directory below --out; the same command resumes unfinished runs and skips
finished ones. Prints Markdown: top-1 accuracy (%) on the test images, mean and standard deviation
over the seeds, minimum and maximum, and the mean gain over zero-shot in points.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config import parse
from lattec_jax.train import describe
from lattec_jax.train_loop import train

CONFIG = "configs/demo.py"
ROWS = {  # method and overrides
    "LatteCLIP": ("latteclip",),
    "LatteCLIP, shuffled descriptions": ("latteclip", "--config.descriptions.shuffle=True"),
    'LatteCLIP, class texts only (`texts=("class",)`)': (
        "latteclip",
        "--config.method.texts=('class',)",
    ),
    "LatteCLIP, WiSE-FT 0.5": ("latteclip", "--config.wise_ft=0.5"),
    **{
        f"FLYP, pseudo-labels, learning rate {rate}": (
            "flyp",
            f"--config.train.learning_rate={rate}",
        )
        for rate in ("1e-4", "3e-4", "1e-3")
    },
    "ReCLIP": ("reclip",),
    "FLYP, true labels (oracle)": ("flyp_oracle",),
}


def measure(out: Path, seeds: int) -> tuple[list[float], dict[str, list[float]]]:
    """Return the zero-shot top-1 of each run, and the adapted top-1 by row and seed, in %."""
    zero_shot: list[float] = []
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    for row, (method, *overrides) in ROWS.items():
        for seed in range(seeds):
            file = f"--config={CONFIG}:method={method}"
            argv = ["train", file, f"--config.seed={seed}", *overrides]
            argv.append(f"--config.artifacts={out / 'artifacts'}")
            config, _ = parse(argv)
            name = "".join(c if c.isalnum() else "-" for c in row.lower()).strip("-")
            with contextlib.redirect_stdout(io.StringIO()):
                results = train(config, out / f"{name}-s{seed}", CONFIG, describe)
            zero_shot.append(100 * results["zero_shot"]["top1"])
            found[row].append(100 * results["adapted"]["top1"])
    return zero_shot, found


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("out", "runs/demo_table", "Directory of the runs.", flag_values=values)
    flags.DEFINE_integer("seeds", 5, "Seeds per row.", 1, flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values, _ = read(argv, __doc__, define_flags)
    # Runs share compiled programs.
    jax.config.update("jax_compilation_cache_dir", str(Path(values.out, "compiled").absolute()))
    zero_shot, found = measure(Path(values.out), values.seeds)

    print(f"| method | top-1 over {values.seeds} seeds | min to max | gain |")
    print("|---|---|---|---|")
    print(f"| zero-shot | {zero_shot[0]:.1f} | – | – |")
    for row, accuracies in found.items():
        mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1) if values.seeds > 1 else 0
        bounds = f"{min(accuracies):.1f} to {max(accuracies):.1f}"
        print(f"| {row} | {mean:.1f} ± {spread:.1f} | {bounds} | {mean - zero_shot[0]:+.1f} |")
    pairs = zip(found["LatteCLIP"], found["LatteCLIP, shuffled descriptions"], strict=True)
    differences = [true - shuffled for true, shuffled in pairs]
    print(f"\ntrue minus shuffled descriptions, paired by seed: {np.mean(differences):+.1f} points")


if __name__ == "__main__":
    command(main)
