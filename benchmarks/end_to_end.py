"""Break down the time of a full adaptation, from the command to its results, and of prediction.

    python -m benchmarks.end_to_end                 # the demo's model; for a CPU
    python -m benchmarks.end_to_end --eurosat       # ViT-B-32, 18,900 of 64 x 64; for a GPU

Creates JPEG files of noise and descriptions of random words, then runs `python -m lattec_jax.train`
as selected by --ways: with the image cache on the device, streamed, and again on the device or
streamed with the first run's image caches, pseudo-labels and compiled programs. Then it runs
`python -m lattec_jax.predict` on --predict files (0: none), in two sizes, and again with nothing
left to do.
With ViT-B-32 the weights are random too (open_clip_torch has the vocabulary). Losses and accuracies
mean nothing here.

Every second of a run counts in one row: a function's time excludes the timed functions that it
calls. Prints Markdown tables and a JSON line, which --json writes to a file after each run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lattec_jax.data.descriptions import Record, to_line
from lattec_jax.runtime.run_directory import RESULTS
from lattec_jax.runtime.safe_read import read_json

CLASSES = tuple(f"kind {n}" for n in range(10))
ROWS = ("start of Python and JAX", "decoding into image caches", "pseudo-labels", "descriptions",
        "first step (compilation)", "other steps", "waiting for batches", "evaluation",
        "checkpoints", "results and report", "everything else", "end of the process")  # fmt: skip
LOOP = "loop"  # seconds from the first step's end to the last's, without checkpoints; not a row
WAYS = {  # name of the column, folder of artifacts, placement of the image cache
    "device": ("on the device", "first", "device"),
    "streamed": ("streamed", "second", "host"),
    "again": ("again", "first", "device"),
    "streamed-again": ("again, streamed", "first", "host"),
}
WORDS = "a bright dark field river of long narrow open closed shape and line"
BPE = "bpe_simple_vocab_16e6.txt.gz"


def make_inputs(root: Path, values: argparse.Namespace) -> None:
    """Create images, class names, descriptions and, for ViT-B-32, weights."""
    rng = np.random.default_rng(0)
    for part, count in (("train", values.images), ("test", values.images // 4)):
        (root / part).mkdir()
        coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)

        def write(n: int, part: str = part, coarse: np.ndarray = coarse) -> None:
            image = Image.fromarray(coarse[n]).resize((values.side, values.side))
            image.save(root / part / f"{n:06}.jpg", quality=90)

        with ThreadPoolExecutor() as pool:
            list(pool.map(write, range(count)))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    words = np.array(WORDS.split())
    for kind in ("image", "group-of-4"):
        path = root / f"made-{kind}.jsonl"
        with path.open("wb") as file:
            for n in range(values.images):
                text = " ".join(rng.choice(words, int(np.clip(rng.gamma(6, 20 / 6), 3, 75))))
                file.write(to_line(Record(f"train/{n:06}.jpg", kind.split("-")[0], text, "made")))
    if values.model == "ViT-B-32":
        save_random(root / "weights")


def save_random(directory: Path) -> None:
    """Save a checkpoint of ViT-B-32 with random weights."""
    import jax

    from benchmarks.memory import model_config
    from lattec_jax.data.images.preprocess import Preprocess
    from lattec_jax.data.text.clip_bpe import clip_tokenizer
    from lattec_jax.models.checkpoint import Checkpoint
    from lattec_jax.models.clip import initial_params

    jax.config.update("jax_platforms", "cpu")  # leaves the GPU to the runs
    model = model_config("ViT-B-32")
    params = {name: np.asarray(value) for name, value in initial_params(model, 0).items()}
    tokenizer = clip_tokenizer(Path(importlib.util.find_spec("open_clip").origin).with_name(BPE))
    preprocess = Preprocess((224, 224), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "bicubic",
                            "shortest", 0)  # fmt: skip
    Checkpoint(model, params, tokenizer, preprocess, {"model": "random"}).save(directory)


def train_arguments(
    root: Path, values: argparse.Namespace, name: str, placement: str, steps: int
) -> list[str]:
    """Return the command line of a run."""
    weights = root / "weights"
    if values.model != "ViT-B-32":
        weights = Path(__file__).resolve().parent.parent / "lattec_jax/demo/tiny_clip"
    settings = {
        "dataset.name": "made",
        "dataset.root": root,
        "dataset.class_names": root / "classes.txt",
        "dataset.labels": "none",
        "weights": weights,
        "artifacts": root / name,
        "descriptions.engine": "made",
        "image_cache.placement": placement,
        "compute.dtype": values.dtype,
        "train.batch_size": values.batch,
        "train.max_steps": steps,
        "train.epochs": 1_000_000,
    }
    return ["--config=configs/folder.py", *(f"--config.{k}={v}" for k, v in settings.items())]


class Stopwatch:
    """Measures seconds by label, each without the labels that run inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # for each running label, the seconds of its inner labels

    def run(self, label: str, function: Callable, *args: Any, **options: Any) -> Any:
        """Call a function under a label."""
        start = time.perf_counter()
        self._open.append(0.0)
        try:
            return function(*args, **options)
        finally:
            total = time.perf_counter() - start
            self.seconds[label] += total - self._open.pop()
            if self._open:
                self._open[-1] += total

    def watch(self, owner: object, name: str, label: str) -> None:
        """Time a function of a module or class under a label."""
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            return self.run(label, function, *args, **options)

        setattr(owner, name, watched)


def run_timed(arguments: list[str], began: float) -> dict[str, float]:
    """Run training in this process; return the seconds by row."""
    import jax

    from lattec_jax import train, train_loop
    from lattec_jax.reporting import report_data, results
    from lattec_jax.training import input_pipeline, prepare
    from lattec_jax.training.checkpoints import CheckpointManager

    jax.devices()
    watch = Stopwatch()
    watch.seconds[ROWS[0]] = time.time() - began
    watch.watch(prepare, "open_images", ROWS[1])
    watch.watch(prepare, "prepare_pseudo_labels", ROWS[2])
    watch.watch(prepare, "load_descriptions", ROWS[3])
    for name in ("encode_test_images", "predict_training_images"):
        watch.watch(results, name, ROWS[7])
    for name in ("restore", "save", "wait"):
        watch.watch(CheckpointManager, name, ROWS[8])
    watch.watch(results, "save_adapted_model", ROWS[9])
    for name in ("collect", "save", "write_page"):
        watch.watch(report_data, name, ROWS[9])
    watch.watch(train_loop, "choose_step", ROWS[4])
    make_step, load_batches, last = train_loop.make_train_step, input_pipeline.device_batches, []

    def make_watched(*args: Any) -> Callable:
        step = make_step(*args)

        def call(*inputs: Any) -> Any:
            if last:
                last[0] = watch.run(ROWS[5], step, *inputs)
            else:
                last.append(watch.run(ROWS[4], lambda: jax.block_until_ready(step(*inputs))))
            return last[0]

        call.lower = step.lower  # for `choose_step`, which compiles it
        return call

    def watched_batches(*args: Any) -> Iterator:
        batches, end, device_get = load_batches(*args), object(), jax.device_get
        watch.watch(jax, "device_get", ROWS[5])  # the waits of the log belong to the steps
        began = None
        while (item := watch.run(ROWS[6], next, batches, end)) is not end:
            yield item
            began = began or time.perf_counter() - watch.seconds[ROWS[8]]
        # So does the devices' remaining work.
        watch.run(ROWS[5], jax.block_until_ready, last)
        jax.device_get = device_get
        watch.seconds[LOOP] = time.perf_counter() - watch.seconds[ROWS[8]] - began

    train_loop.make_train_step, input_pipeline.device_batches = make_watched, watched_batches
    watch.run(ROWS[10], train.main, ["train", *arguments])
    return dict(watch.seconds)


def child(*arguments: str, environment: dict[str, str] | None = None) -> tuple[float, str]:
    """Return the seconds of a Python process, and its output."""
    start = time.time()
    output = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | (environment or {}),
    ).stdout  # fmt: skip
    return time.time() - start, output


def adapt(root: Path, values: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds by row, and images/s, for each way of running."""
    found = {}
    cache = {"LATTECLIP_CACHE": str(root / "cache")}
    for way in values.ways:
        name, artifacts, placement = WAYS[way]
        folder = root / artifacts / "made" / "descriptions"
        folder.mkdir(parents=True, exist_ok=True)
        for path in root.glob("made-*.jsonl"):
            (folder / path.name).write_bytes(path.read_bytes())
        environment = cache | ({"JAX_ENABLE_COMPILATION_CACHE": "0"} if way == "streamed" else {})
        steps = values.again_steps or values.steps if "again" in way else values.steps
        arguments = train_arguments(root, values, artifacts, placement, steps)
        workdir = root / "runs" / way
        seconds, output = child(
            "-m", "benchmarks.end_to_end", f"--child={time.time()}", *arguments,
            f"--workdir={workdir}", environment=environment,
        )  # fmt: skip
        rows = json.loads(output.splitlines()[-1])
        loop = rows.pop(LOOP)
        rows[ROWS[11]] = seconds - sum(rows.values())
        found[name] = {"total": seconds, LOOP: loop, **rows}
        found[name]["images_per_second"] = read_json(workdir / RESULTS)["images_per_second"]
        found[name]["step_images_per_second"] = (steps - 1) * values.batch / loop
        if values.json:
            values.json.write_text(to_json(values, found, []), encoding="utf-8")
    return found


def to_json(values: argparse.Namespace, runs: dict, predicted: list) -> str:
    """Return the line of JSON."""
    return json.dumps(
        {"settings": vars(values), "runs": runs, "prediction": predicted}, default=str
    )


def predict(root: Path, values: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Return label, seconds and peak memory (GB) of each prediction."""
    files, workdir = values.predict, root / "runs" / values.ways[0]
    images = sorted((root / "train").iterdir())
    folder = root / "many"
    folder.mkdir()
    names = [folder / f"{n:07}.jpg" for n in range(files)]
    for n, path in enumerate(names):
        os.link(images[n % len(images)], path)
    found = []
    for count in (files // 10, files, files):
        (root / "list.txt").write_text("\n".join(map(str, names[:count])), encoding="utf-8")
        out, label = root / f"{count}.csv", f"{count:,} files"
        label += ", already done" if out.exists() else ""
        seconds, output = child(
            "-m", "benchmarks.end_to_end", "--predictor", f"--workdir={workdir}",
            f"--list={root / 'list.txt'}", f"--out={out}",
            environment={"LATTECLIP_CACHE": str(root / "cache")},
        )  # fmt: skip
        found.append((label, seconds, float(output.splitlines()[-1])))
    return found


def main() -> None:
    """Print the tables."""
    if sys.argv[1:] and sys.argv[1].startswith("--child="):
        print(json.dumps(run_timed(sys.argv[2:], float(sys.argv[1].partition("=")[2]))))
        return
    if sys.argv[1:2] == ["--predictor"]:
        from lattec_jax import predict as command

        command.main(["predict", *sys.argv[2:]])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eurosat", action="store_true", help="the size of the goal, for a GPU")
    for name, default in (("images", 2000), ("side", 64), ("batch", 128), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", choices=["demo", "ViT-B-32"], default="demo")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    ways = ["device", "streamed", "again"]
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=ways)
    parser.add_argument("--again-steps", type=int, default=0, help="of these runs; 0: --steps")
    parser.add_argument("--predict", type=int, default=20_000, help="files to classify; 0: none")
    parser.add_argument("--json", type=Path, help="file for the line of JSON")
    values = parser.parse_args()
    if values.eurosat:
        values.images, values.side, values.batch, values.steps = 18_900, 64, 512, 1800
        values.model, values.dtype = "ViT-B-32", "bfloat16"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_inputs(root, values)
        found = adapt(root, values)
        print(f"{values.model}, {values.images:,} images of {values.side} x {values.side}, batch "
              f"{values.batch}, {values.steps} steps, {values.dtype}; seconds\n")  # fmt: skip
        print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        for row in (*ROWS, "total"):
            cells = (f"{run.get(row, 0.0):.1f}" for run in found.values())
            print(f"| {row} | {' | '.join(cells)} |")
        for name, run in found.items():
            print(f"\n{name}: {run['step_images_per_second']:,.0f} images/s after the first step, "
                  "log included; with checkpoints, except the end of the last, "
                  f"{run['images_per_second']:,.0f}")  # fmt: skip
        predicted = predict(root, values) if values.predict else []
    if predicted:
        print("\n| prediction of | seconds | peak memory (GB) |\n|---|---|---|")
        for label, seconds, memory in predicted:
            print(f"| {label} | {seconds:.1f} | {memory:.2f} |")
        rate = 0.9 * values.predict / (predicted[1][1] - predicted[0][1])
        print(f"\n{rate:,.0f} images/s, without the start")
    print(line := to_json(values, found, predicted))
    if values.json:
        values.json.write_text(line, encoding="utf-8")


if __name__ == "__main__":
    main()
