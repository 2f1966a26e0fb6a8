"""Draw the figure of the README: the demo before and after adaptation.

    python -m benchmarks.demo_figure [--out=docs/assets/demo.svg] [--runs=runs/demo_figure]

Runs `configs/demo.py` with five seeds; the same command resumes unfinished runs and skips finished
ones. Above is the top-1 accuracy (%) of each class on the 797 test images, zero-shot and as the
mean over the seeds; below are images of seed 0 that the report shows among those whose class
changed. Needs matplotlib (`pip install -e '.[demo]'`).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from lattec_jax.data.datasets import read as read_dataset
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config import parse

CONFIG = "configs/demo.py"
SEEDS = 5
SHOWN = 10  # images whose class changed
BEFORE, AFTER, TEXT = "#9aa3ad", "#00695c", "#1f2933"


def run(runs: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Path]]:
    """Return the results of each seed, the report's data of seed 0, and the path of each image."""
    from lattec_jax.train import describe
    from lattec_jax.train_loop import train

    found, files = [], {}
    for seed in range(SEEDS):
        argv = ["train", f"--config={CONFIG}", f"--config.seed={seed}"]
        config, _ = parse([*argv, f"--config.artifacts={runs / 'artifacts'}"])
        with contextlib.redirect_stdout(io.StringIO()):
            found.append(train(config, runs / f"seed-{seed}", CONFIG, describe))
        test = read_dataset(config).test
        files = dict(zip(test.ids, test.paths, strict=True))
    data = json.loads((runs / "seed-0" / "report_data.json").read_text(encoding="utf-8"))
    return found, data, files


def draw(
    results: Sequence[Mapping[str, Any]],
    changed: Mapping[str, Any],
    files: Mapping[str, Path],
    out: Path,
) -> None:
    """Write the figure.

    Args:
        results: `results.json` of each seed.
        changed: the entry "changed" of seed 0's `report_data.json`.
        files: the path of each test image.
        out: an SVG file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "lattec_jax",  # the same file every time
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 9,
        "text.color": TEXT,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.6, 1))
        _draw_classes(top.subplots(), results)
        bottom.suptitle(
            f"Seed 0: {changed['count']} images changed class, {changed['right']} to the right one "
            f"and {changed['wrong']} away from it.\n{SHOWN} of them (green: right after):",
            fontsize=9,
        )
        for place, shown in zip(bottom.subplots(1, SHOWN), changed["shown"], strict=False):
            _draw_image(place, shown, files[shown["image"]])
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="svg", metadata={"Date": None})


def _draw_classes(axes: Any, results: Sequence[Mapping[str, Any]]) -> None:
    before = 100 * np.array(results[0]["per_class"]["zero_shot"])
    after = 100 * np.mean([found["per_class"]["adapted"] for found in results], axis=0)
    rows = np.arange(len(before))
    axes.hlines(rows, before, after, color=BEFORE, linewidth=2, zorder=1)
    top1 = 100 * results[0]["zero_shot"]["top1"]
    axes.scatter(before, rows, color=BEFORE, s=36, label=f"zero-shot CLIP: {top1:.1f}%")
    top1 = [100 * found["adapted"]["top1"] for found in results]
    label = f"adapted without labels: {np.mean(top1):.1f} ± {np.std(top1, ddof=1):.1f}%"
    axes.scatter(after, rows, color=AFTER, s=36, label=label)
    axes.set_yticks(rows, results[0]["class_names"])
    axes.invert_yaxis()
    axes.set_xlim(0, 102)
    axes.set_xlabel(f"top-1 accuracy (%) on 797 handwritten digits, {len(results)} seeds")
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, handletextpad=0.2)


def _draw_image(axes: Any, shown: Mapping[str, Any], file: Path) -> None:
    with Image.open(file) as image:
        axes.imshow(np.asarray(image), cmap="gray")
    axes.set_axis_off()
    right = shown["after"] == shown["label"]
    color = AFTER if right else "#b42318"
    axes.set_title(f"{shown['before']}\n→ {shown['after']}", fontsize=9, color=color)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("out", "docs/assets/demo.svg", "SVG file to write.", flag_values=values)
    flags.DEFINE_string("runs", "runs/demo_figure", "Directory of the runs.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values, _ = read(argv, __doc__, define_flags)
    results, data, files = run(Path(values.runs))
    draw(results, data["changed"], files, Path(values.out))
    print(f"figure in {values.out}")


if __name__ == "__main__":
    command(main)
