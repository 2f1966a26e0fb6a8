"""Measure how a training step scales: batch, classes, images, text length, model, devices.

    python -m benchmarks.scaling [--sections batch classes images texts flops models devices]
        [--plots=benchmarks] [--rounds=5]

Runs the real step, batches and image caches (`lattec_jax.training.input_pipeline`) on random images
and texts, with a small CLIP of one layer in each tower. The sizes of a section alternate, and
medians of the rounds are printed: milliseconds per step, and the CPU time of all threads of the
process, which is more reliable on a shared machine. `flops` and `models` run nothing: they count
from shapes and XLA's cost analysis. `devices` splits one CPU into virtual devices: it shows the
cost of splitting, not the gain from devices. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.image_caches import random_cache
from benchmarks.memory import CLASSES, LENGTHS, arguments, model_config
from configs.common import get_config
from lattec_jax.data.images.image_cache import ImageCache
from lattec_jax.data.text.bucketing import BUCKET_LENGTHS, bucket_length
from lattec_jax.methods.base import Targets
from lattec_jax.methods.latteclip import LatteCLIP, Prototypes
from lattec_jax.models.clip import define, initial_params
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime import compilation_cache, sharding
from lattec_jax.runtime.config import validate
from lattec_jax.training import input_pipeline
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.batches import Batches, epoch_order
from lattec_jax.training.state import TrainState, init_state, learning_rate_schedule, make_optimizer
from lattec_jax.training.step import DeviceData, StepSettings, make_train_step

SIDE, STEPS = 32, 10_000  # pixels of an image; steps of the schedule
SMALL = CLIPConfig(
    embed_dim=128,
    vision=VisionConfig(192, 1, 3, 8, (SIDE, SIDE)),
    text=TextConfig(192, 1, 3, 77, 1000),
)
TINY = CLIPConfig(
    embed_dim=32,
    vision=VisionConfig(64, 1, 2, 16, (SIDE, SIDE)),
    text=TextConfig(64, 1, 2, 77, 1000),
)


MODELS = ("ViT-S-32", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14")


class Size(NamedTuple):
    """The size of a run."""

    images: int = 2000
    classes: int = 100
    batch: int = 64
    tokens: int = 22  # of every description
    resident: bool = True
    devices: int = 1
    model: CLIPConfig = SMALL


class Run:
    """A training run of a given size on random inputs, which can be continued at any time."""

    def __init__(self, size: Size, cache: ImageCache) -> None:
        rng, kinds = np.random.default_rng(0), 2
        mesh = sharding.make_mesh(1, jax.devices()[: size.devices])
        replicated = sharding.replicated(mesh)
        text = size.model.text
        tokens = rng.integers(1, text.vocab_size - 2, (size.images * kinds, 77), np.int32)
        tokens[:, size.tokens - 1] = text.vocab_size - 1  # the end of a text
        tokens[:, size.tokens :] = 0
        classes = np.zeros((size.classes, 16), np.int32)
        classes[:, :9] = rng.integers(1, text.vocab_size - 2, (size.classes, 9))
        classes[:, 9] = text.vocab_size - 1
        lengths = np.full((size.images, kinds), size.tokens, np.int32)
        labels = rng.integers(0, size.classes, size.images).astype(np.int32)

        def put(array: np.ndarray) -> jax.Array:
            return jax.device_put(array, replicated)

        self.device_data = DeviceData(
            class_tokens=put(classes),
            description_tokens=put(tokens),
            present=put(np.ones((size.images, kinds), bool)),
            targets=Targets(put(labels)),
            pixels=put(cache.pixels[: size.images]) if size.resident else None,
            sizes=put(cache.sizes[: size.images]) if size.resident else None,
        )
        batches = Batches(
            size.images, size.batch, 0, STEPS, lengths, text.context_length, size.devices
        )
        config = validate(get_config()).train
        schedule = learning_rate_schedule(config, STEPS)
        optimizer, method = make_optimizer(config, schedule), LatteCLIP(0.99, 0.99)
        prototypes = rng.normal(size=(size.classes, size.model.embed_dim)).astype(np.float32)
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        params = sharding.shard_params(initial_params(size.model, 0), mesh)
        first = method.init(prototypes, size.images)
        self.state = init_state(params, optimizer, first, mesh, method.trainable)
        settings = StepSettings(
            (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3,
            Augmentation((0.9, 1.0), (3 / 4, 4 / 3), (0.0,) * 4, 0.0, 0.0, 0.0),
        )  # fmt: skip
        definition = define(size.model, mesh=mesh)
        self.step = make_train_step(definition, method, optimizer, schedule, settings, mesh)
        self.stream = input_pipeline.device_batches(
            batches, cache, self.device_data, 0, STEPS, mesh
        )
        self.take(3)  # compiles

    def take(self, steps: int) -> tuple[float, float]:
        """Run steps; return milliseconds and milliseconds of CPU time per step."""
        start, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            host, batch = next(self.stream)
            self.state, _ = self.step(self.state, self.device_data, batch, host.bucket_lengths)
        jax.block_until_ready(self.state)
        return (
            1e3 * (time.perf_counter() - start) / steps,
            1e3 * (time.process_time() - used) / steps,
        )


def in_turns(runs: dict[Any, Run], rounds: int, steps: int) -> dict[Any, tuple[float, float]]:
    """Return the medians over the rounds of `Run.take`."""
    found: dict[Any, list] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            found[key].append(run.take(steps))
    return {key: tuple(np.median(values, axis=0)) for key, values in found.items()}


def table(title: str, found: dict[Any, tuple[float, float]], batch: Callable[[Any], int]) -> None:
    """Print a Markdown table of measurements."""
    print(f"\n| {title} | ms per step | CPU ms per step | images/s |\n|---|---|---|---|")
    for key, (wall, used) in found.items():
        name = f"{key:,}" if isinstance(key, int) else key
        print(f"| {name} | {wall:.1f} | {used:.1f} | {1e3 * batch(key) / wall:,.0f} |", flush=True)


def vary(
    field: str, values: Sequence[int], directory: Path, rounds: int
) -> dict[int, tuple[float, float]]:
    """Measure sizes that differ in one field."""
    with random_cache(directory, Size().images, SIDE) as cache:
        runs = {value: Run(Size(**{field: value}), cache) for value in values}
        return in_turns(runs, rounds, 8)


def vary_images(directory: Path, rounds: int) -> None:
    """Measure 1,000 to 1,000,000 images, with the smallest model, which hides the host least."""
    counts = (1000, 30_000, 1_000_000)
    with ExitStack() as stack:
        cache = stack.enter_context(random_cache(directory, counts[-1], SIDE))
        runs = {
            f"{count:,}, {'resident' if resident else 'streamed'}": Run(
                Size(images=count, resident=resident, model=TINY), cache
            )
            for count in counts
            for resident in (True, False)
        }
        table("images, image cache", in_turns(runs, rounds, 60), lambda _: Size().batch)
    start = time.perf_counter()
    epoch_order(counts[-1], 1, 0, counts[-1])
    seconds = time.perf_counter() - start
    print(f"\nOnce in an epoch, beside the steps: the permutation of 1,000,000, {seconds:.3f} s")


def count(model: CLIPConfig, classes: int = CLASSES, tokens: int = 0) -> tuple[float, TrainState]:
    """Return the FLOPs per image of a step of batch 64, and the shapes of its state.

    Counted by XLA's cost analysis of the lowered step; nothing is compiled.

    Args:
        model: to train.
        classes: number of classes; their descriptions have 16 tokens.
        tokens: of every description; 0: nine in ten of up to 32, one of up to 48.
    """
    config, batch_size, kinds = validate(get_config()).train, 64, 2
    schedule = learning_rate_schedule(config, STEPS)
    optimizer, method = make_optimizer(config, schedule), LatteCLIP(0.99, 0.99)
    settings = StepSettings((224, 224), (0.5,) * 3, (0.25,) * 3, None)
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    definition = define(model, mesh=mesh)
    step = make_train_step(definition, method, optimizer, schedule, settings, mesh)
    state, device_data, batch = arguments(model, batch_size, method, optimizer, mesh)
    prototypes = jax.ShapeDtypeStruct((classes, model.embed_dim), np.float32)
    state = state.replace(method=Prototypes(prototypes, prototypes))
    device_data = device_data._replace(
        class_tokens=jax.ShapeDtypeStruct((classes, 16), np.int32),
        pixels=jax.ShapeDtypeStruct((64, 224, 224, 3), np.uint8),
        sizes=None,
    )
    lengths = LENGTHS
    if tokens:
        lengths = (bucket_length(tokens, 77),)
        indices = jax.ShapeDtypeStruct((batch_size * kinds,), np.int32)
        batch = batch._replace(text_indices=(indices,))
    lowered = step.lower(state, device_data, batch, lengths)
    return lowered.cost_analysis()["flops"] / batch_size, state


def count_models() -> None:
    """Print state size and FLOPs of a step with texts like EuroSAT's."""
    print("\n| model | parameters (M) | with moments (GB) | GFLOP per image and step |")
    print("|---|---|---|---|")
    for name in MODELS:
        flops, state = count(model_config(name))
        parameters = sum(np.prod(p.shape, dtype=float) for p in jax.tree.leaves(state.params))
        size = sum(
            np.prod(p.shape, dtype=float) * p.dtype.itemsize
            for p in jax.tree.leaves((state.params, state.optimizer))
        )
        print(f"| {name} | {parameters / 1e6:.0f} | {size / 1e9:.2f} | {flops / 1e9:.1f} |",
              flush=True)  # fmt: skip


def count_texts(plots: Path | None) -> None:
    """Print, and optionally plot, FLOPs of ViT-B-32 against classes and text length."""
    model = model_config("ViT-B-32")
    classes = {n: count(model, classes=n)[0] / 1e9 for n in (10, 32, 64, 128, 256, 1000, 10_000)}
    texts = {
        n: count(model, tokens=n)[0] / 1e9 for n in (10, 16, 17, 24, 25, 32, 33, 40, 41, 48, 49, 77)
    }
    for title, found in (("classes", classes), ("tokens", texts)):
        print(f"\n| {title} | GFLOP per image and step |\n|---|---|")
        for n, flops in found.items():
            print(f"| {n:,} | {flops:.1f} |")
    if plots is not None:
        title = "A step of ViT-B-32, batch 64, counted by XLA"
        draw(plots / "scaling_flops.svg", title, "GFLOP per image", classes, texts)


def draw(
    path: Path, title: str, unit: str, classes: dict[int, float], texts: dict[int, float]
) -> None:
    """Plot two curves, with lines where they are expected to bend."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    left.plot(list(classes), list(classes.values()), marker="o")
    left.axvline(128, linestyle=":", color="gray")
    left.text(140, 0.04 * max(classes.values()), "2 × batch", color="gray")
    top = max(*classes.values(), *texts.values())
    left.set(xscale="log", xlabel="classes", ylabel=unit, ylim=(0, 1.06 * top))
    right.plot(list(texts), list(texts.values()), marker="o")
    for bound in BUCKET_LENGTHS:
        right.axvline(bound, linestyle=":", color="gray")
    right.set(xlabel="tokens of every description")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)


def split_devices(directory: Path, rounds: int) -> None:
    """Measure splitting; on a CPU, in a process with eight virtual devices."""
    flags, flag = os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"
    if jax.default_backend() == "cpu" and flag not in flags:
        environment = os.environ | {"XLA_FLAGS": f"{flags} {flag}"}
        environment.pop("JAX_NUM_CPU_DEVICES", None)  # it would override the flag
        command = [sys.executable, "-m", "benchmarks.scaling", "--sections", "devices"]
        command += [f"--rounds={rounds}", f"--directory={directory}"]
        subprocess.run(command, env=environment, check=True)
        return
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    found = vary("devices", counts, directory, rounds)
    table("devices", found, lambda _: Size().batch)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["batch", "classes", "images", "texts", "flops", "models", "devices"]
    parser.add_argument("--sections", nargs="+", choices=every, default=every)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument(
        "--plots", type=Path, help="directory for SVGs of flops, and of classes and texts together"
    )
    values = parser.parse_args()
    compilation_cache.enable()
    varied = {
        "batch": ("batch", (16, 64, 256)),
        "classes": ("classes", (10, 64, 128, 1000, 10_000)),
        "texts": ("tokens", (16, 17, 24, 25, 32, 33, 40, 41, 48, 49, 77)),
    }
    times = {}
    for section in values.sections:
        if section in varied:
            field, sizes = varied[section]
            found = vary(field, sizes, values.directory, values.rounds)
            table(field, found, (lambda n: n) if field == "batch" else lambda _: Size().batch)
            times[section] = {n: wall for n, (wall, _) in found.items()}
        elif section == "images":
            vary_images(values.directory, values.rounds)
        elif section == "models":
            count_models()
        elif section == "flops":
            count_texts(values.plots)
        else:
            split_devices(values.directory, values.rounds)
    if values.plots and {"classes", "texts"} <= times.keys():
        title = "A step of a small CLIP, batch 64, measured"
        path = values.plots / "scaling_time.svg"
        draw(path, title, "ms per step", times["classes"], times["texts"])


if __name__ == "__main__":
    main()
