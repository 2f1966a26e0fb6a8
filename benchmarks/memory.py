"""Report the memory of a training step on each device, as planned by XLA.

    python -m benchmarks.memory [--sizes 8 16 24 40 80]
    python -m benchmarks.memory --model=ViT-B-32 [--micro 0 128 64 32] [--remat]
    python -m benchmarks.memory --model=ViT-bigG-14 --devices=8 --fsdp 1 8 --micro 64 --remat
    python -m benchmarks.memory --model=ViT-B-32 --batch=64 --micro 0 32 16 --time=5

The step is lowered with shapes only and compiled for the CPU: nothing is allocated or run. Without
a model, prints the largest one for each size of a GPU's memory, with what
`config.train.microbatch_size = "auto"` chooses for it. For a model, prints
`compiled.memory_analysis()` for one device: the temporary buffers of the step, its arguments
(parameters, optimizer state, images and tokens), and its fraction of the state. `--time` runs the
steps instead, in turns, and prints the median of so many rounds: the price of microbatches.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from configs.common import get_config
from convert.open_clip_package import built_in_model_cfg
from lattec_jax.methods.base import Targets
from lattec_jax.methods.latteclip import LatteCLIP, Prototypes
from lattec_jax.models.clip import define, initial_params
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime import sharding
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.state import (
    TrainState,
    learning_rate_schedule,
    make_optimizer,
    state_shardings,
)
from lattec_jax.training.step import Batch, DeviceData, StepSettings, make_train_step
from lattec_jax.training.step_memory import (
    GIB,
    RESERVE,
    StepPlan,
    choose_plan,
    estimate_bytes,
    planned_bytes,
    step_plans,
)

IMAGES, CLASSES, LONG_SIDE = 18_900, 10, 64  # EuroSAT
# Buffers are assigned before code is generated, so fast code generation does not change them.
FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TEXTS = ((32, 0.9), (48, 0.1))  # bucket length in tokens, and its fraction of the descriptions
LENGTHS = tuple(length for length, _ in TEXTS)
MODELS = ("ViT-bigG-14", "ViT-g-14", "ViT-H-14", "ViT-L-14", "ViT-B-16", "ViT-B-32")
JAX_FRACTION = 0.75  # of a GPU's memory, which JAX takes unless it is told otherwise


class Memory(NamedTuple):
    """Bytes on one device, and seconds of compilation."""

    planned: int  # all of the step
    temporary: int
    arguments: int
    state: int  # part of the arguments: parameters and AdamW's moments
    full_state: int  # of all devices
    seconds: float


def shape(*dimensions: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
    """Return the shape and type of an array."""
    return jax.ShapeDtypeStruct(dimensions, dtype)


def model_config(name: str) -> CLIPConfig:
    """Return the architecture with open_clip's name."""
    try:
        return CLIPConfig.from_open_clip(built_in_model_cfg(name))
    except WeightsError as error:
        raise SystemExit(str(error)) from error


def arguments(
    model: CLIPConfig, batch_size: int, method: LatteCLIP, optimizer: Any, mesh: Mesh
) -> tuple[TrainState, DeviceData, Batch]:
    """Return the shapes and shardings of a step's arguments."""
    params = jax.eval_shape(lambda: initial_params(model, 0))
    prototypes = shape(CLASSES, model.embed_dim, dtype=np.float32)
    state = TrainState(
        step=shape(),
        seed=shape(dtype=np.uint32),
        params=params,
        optimizer=jax.eval_shape(optimizer.init, params),
        method=Prototypes(prototypes, prototypes),
    )
    kinds = len(method.description_kinds)
    device_data = DeviceData(
        class_tokens=shape(CLASSES, 16),
        description_tokens=shape(IMAGES * kinds, model.text.context_length),
        present=shape(IMAGES, kinds, dtype=bool),
        targets=Targets(shape(IMAGES)),
        pixels=shape(IMAGES, LONG_SIDE, LONG_SIDE, 3, dtype=np.uint8),
        sizes=shape(IMAGES, 2),
    )
    rest = batch_size * kinds
    sizes = [round(rest * fraction / mesh.size) * mesh.size for _, fraction in TEXTS]
    sizes[0] += rest - sum(sizes)
    batch = Batch(
        images=shape(batch_size),
        text_indices=tuple(shape(n) for n in sizes),
        text_positions=shape(rest),
        text_images=shape(batch_size, kinds),
        ends_epoch=shape(dtype=bool),
        is_logged=shape(dtype=bool),
    )

    def shard(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    replicated, split = sharding.replicated(mesh), sharding.over_batch(mesh)
    shardings = (
        jax.tree.map(lambda _: replicated, device_data),
        jax.tree.map(lambda x: split if x.shape else replicated, batch),
    )
    return shard(state, state_shardings(state, mesh)), *shard((device_data, batch), shardings)


def optimizer_and_method() -> tuple[Any, Any, LatteCLIP]:
    """Return the optimizer with its schedule, and the method, with the paper's settings."""
    config = get_config().train
    config.learning_rate, config.warmup_steps, config.weight_decay = 1e-7, 40, 0.2
    config.schedule, config.optimizer = "cosine", "adamw"
    schedule = learning_rate_schedule(config, 1800)
    return make_optimizer(config, schedule), schedule, LatteCLIP(0.99, 0.99)


def make_step(
    model: CLIPConfig, num_microbatches: int, remat: bool, dtype: jnp.dtype, mesh: Mesh
) -> Any:
    """Return the jitted step."""
    optimizer, schedule, method = optimizer_and_method()
    settings = StepSettings(
        model.vision.image_size,
        (0.5,) * 3,
        (0.25,) * 3,
        Augmentation((0.9, 1.0), (3 / 4, 4 / 3), (0.0,) * 4, 0.0, 0.0, 0.0),
        num_microbatches,
    )
    definition = define(model, dtype=dtype, remat=remat, mesh=mesh)
    return make_train_step(definition, method, optimizer, schedule, settings, mesh)


def measure(
    model: CLIPConfig, batch_size: int, micro: int, remat: bool, dtype: jnp.dtype, mesh: Mesh
) -> Memory:
    """Compile one step with microbatches of `micro` images, and return its memory."""
    optimizer, _, method = optimizer_and_method()
    step = make_step(model, batch_size // micro, remat, dtype, mesh)  # `main` checks divisibility
    given = arguments(model, batch_size, method, optimizer, mesh)
    start = time.perf_counter()
    compiled = step.lower(*given, LENGTHS).compile(FAST_COMPILATION)
    found, seconds = compiled.memory_analysis(), time.perf_counter() - start
    state = jax.tree.leaves((given[0].params, given[0].optimizer))
    per_device = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in state]
    full = sum(x.size * x.dtype.itemsize for x in state)
    return Memory(
        planned_bytes(compiled),
        found.temp_size_in_bytes,
        found.argument_size_in_bytes,
        sum(per_device),
        full,
        seconds,
    )


class Fit(NamedTuple):
    """How a model fits into memory."""

    name: str
    plan: StepPlan
    needed: float  # bytes
    compiled: int  # steps that were compiled to find it


def fit(name: str, limit: float, batch_size: int, dtype: jnp.dtype) -> Fit | None:
    """Return the plan that "auto" chooses for a model and `limit` bytes; None if none fits."""
    mesh, config, model = sharding.make_mesh(), get_config(), model_config(name)
    config.train.batch_size = batch_size
    optimizer, _, method = optimizer_and_method()
    given = arguments(model, batch_size, method, optimizer, mesh)
    if 16 * sum(x.size for x in given[0].params.values()) > limit:
        return None  # parameters, gradient and two moments alone are too much
    measured = []

    def compile_plan(plan: StepPlan) -> float:
        measured.append(plan)
        return measure(model, batch_size, plan.microbatch_size, plan.remat, dtype, mesh).planned

    estimates = {
        plan: estimate_bytes(plan, model, dtype, mesh, *given, LENGTHS)
        for plan in step_plans(config, batch_size, mesh)
    }
    plan, needed = choose_plan(estimates, compile_plan, limit)
    return Fit(name, plan, needed, len(measured)) if needed <= limit else None


def print_largest(sizes: list[int], batch_size: int, dtype: jnp.dtype) -> None:
    """Print the largest model that fits into each of several sizes of memory, in GiB."""
    print("| GPU (GB) | for the step (GiB) | model | `microbatch_size` | `remat` | "
          "needed (GiB) | steps compiled |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        limit = (1 - RESERVE) * JAX_FRACTION * size * GIB
        found = next(filter(None, (fit(name, limit, batch_size, dtype) for name in MODELS)), None)
        row = [size, f"{limit / GIB:.1f}", *(["none"] * 5)]
        if found:
            row[2:5] = found.name, found.plan.microbatch_size, found.plan.remat
            row[5:] = f"{found.needed / GIB:.1f}", found.compiled
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def print_memory(
    model: CLIPConfig, batch: int, micro: list[int], remat: bool, dtype: jnp.dtype, fsdp: list[int]
) -> None:
    """Print the memory of a model's step for several microbatch sizes."""
    print("| fsdp | microbatch_size | temporary buffers (GiB) | arguments (GiB) | "
          "state (GiB) | fraction of full state | compilation (s) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for group, size in itertools.product(fsdp, micro):
        found = measure(model, batch, size or batch, remat, dtype, sharding.make_mesh(group))
        row = [group, size or "0 (full batch)"]
        row += [f"{part / GIB:.2f}" for part in (found.temporary, found.arguments, found.state)]
        row += [f"1/{found.full_state / found.state:.2f}", f"{found.seconds:.0f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def print_times(
    model: CLIPConfig, batch: int, micro: list[int], remat: bool, dtype: jnp.dtype, rounds: int
) -> None:
    """Run the steps of several microbatch sizes in turns, and print how long each takes."""
    mesh = sharding.make_mesh()
    optimizer, _, method = optimizer_and_method()
    given = arguments(model, batch, method, optimizer, mesh)
    state, device_data, indices = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), given)
    prototypes = np.eye(CLASSES, model.embed_dim, dtype=np.float32)
    state = state.replace(
        params=initial_params(model, 0), method=Prototypes(prototypes, prototypes.copy())
    )
    device_data = device_data._replace(sizes=np.full((IMAGES, 2), LONG_SIDE, np.int32))
    shardings = jax.tree.map(lambda x: x.sharding, given)
    state, device_data, indices = jax.device_put((state, device_data, indices), shardings)
    steps, seconds = {}, {size: [] for size in micro}
    for size in micro:
        step = make_step(model, batch // (size or batch), remat, dtype, mesh)
        steps[size] = step.lower(state, device_data, indices, LENGTHS).compile()
    for turn in range(rounds + 1):  # the first one is not timed
        for size, step in steps.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, device_data, indices))
            if turn:
                seconds[size].append(time.perf_counter() - start)
    print("| microbatch_size | seconds of a step (median) | ratio to the first |\n|---|---|---|")
    medians = {size: statistics.median(found) for size, found in seconds.items()}
    for size, median in medians.items():
        ratio = median / medians[micro[0]]
        print(f"| {size or '0 (full batch)'} | {median:.2f} | {ratio:.2f} |")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 24, 40, 80])
    parser.add_argument("--model", default="", help="open_clip's name")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro", type=int, nargs="+", default=[0, 128, 64, 32])
    parser.add_argument("--fsdp", type=int, nargs="+", default=[1])
    parser.add_argument("--devices", type=int, default=1, help="virtual devices on this CPU")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 for "
                        "the sizes, float32 for a model")  # fmt: skip
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS", help="run the steps")
    values = parser.parse_args()
    for micro in (values.batch, *filter(None, values.micro)):
        if micro < 1 or values.batch % micro or micro % values.devices:
            parser.error(
                "--batch and --micro: expected multiples of the devices, the latter 0 or a divisor "
                f"of the batch, found {micro}"
            )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", values.devices)
    dtype = jnp.dtype(values.dtype or ("float32" if values.model else "bfloat16"))
    print(f"{values.model or 'largest model'}, batch {values.batch}, {dtype}, "
          f"remat {values.remat if values.model else 'auto'}, {values.devices} devices, "
          f"JAX {jax.__version__}\n")  # fmt: skip
    step = (values.batch, values.micro, values.remat, dtype)
    if not values.model:
        print_largest(values.sizes, values.batch, dtype)
    elif values.time:
        print_times(model_config(values.model), *step, values.time)
    else:
        print_memory(model_config(values.model), *step, values.fsdp)


if __name__ == "__main__":
    main()
