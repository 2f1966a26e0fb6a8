"""Report the memory of a training step on each device, as planned by XLA.

    python -m benchmarks.memory [--batch=512] [--micro 0 128 64 32] [--remat]
    python -m benchmarks.memory --model=ViT-bigG-14 --devices=8 --fsdp 1 8 --micro 64 --remat

The step is lowered with shapes only and compiled for the CPU: nothing is allocated or run. Prints
a Markdown table of `compiled.memory_analysis()` for one device: the temporary buffers of the step,
its arguments (parameters, optimizer state, images and tokens), and its fraction of the state.
"""

from __future__ import annotations

import argparse
import math
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

IMAGES, CLASSES, LONG_SIDE = 18_900, 10, 64  # EuroSAT
# Buffers are assigned before code is generated, so fast code generation does not change them.
FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TEXTS = ((32, 0.9), (48, 0.1))  # bucket length in tokens, and its fraction of the descriptions


class Memory(NamedTuple):
    """Bytes on one device, and seconds of compilation."""

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


def measure(
    model: CLIPConfig, batch_size: int, micro: int, remat: bool, dtype: jnp.dtype, mesh: Mesh
) -> Memory:
    """Compile one step with microbatches of `micro` images, and return its memory."""
    config = get_config().train
    config.learning_rate, config.warmup_steps, config.weight_decay = 1e-7, 40, 0.2
    config.schedule, config.optimizer = "cosine", "adamw"
    schedule = learning_rate_schedule(config, 1800)
    optimizer, method = make_optimizer(config, schedule), LatteCLIP(0.99, 0.99)
    settings = StepSettings(
        model.vision.image_size,
        (0.5,) * 3,
        (0.25,) * 3,
        Augmentation((0.9, 1.0), (3 / 4, 4 / 3), (0.0,) * 4, 0.0, 0.0, 0.0),
        num_microbatches=batch_size // micro,  # `main` checks divisibility
    )
    step = make_train_step(
        define(model, dtype=dtype, remat=remat, mesh=mesh),
        method,
        optimizer,
        schedule,
        settings,
        mesh,
    )
    given = arguments(model, batch_size, method, optimizer, mesh)
    start = time.perf_counter()
    lengths = tuple(length for length, _ in TEXTS)
    found = step.lower(*given, lengths).compile(FAST_COMPILATION).memory_analysis()
    seconds = time.perf_counter() - start
    state = jax.tree.leaves((given[0].params, given[0].optimizer))
    per_device = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in state]
    full = sum(x.size * x.dtype.itemsize for x in state)
    return Memory(
        found.temp_size_in_bytes, found.argument_size_in_bytes, sum(per_device), full, seconds
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro", type=int, nargs="+", default=[0, 128, 64, 32])
    parser.add_argument("--fsdp", type=int, nargs="+", default=[1])
    parser.add_argument("--devices", type=int, default=1, help="virtual devices on this CPU")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    values = parser.parse_args()
    for micro in (values.batch, *filter(None, values.micro)):
        if micro < 1 or values.batch % micro or micro % values.devices:
            parser.error(
                "--batch and --micro: expected multiples of the devices, the latter 0 or a divisor "
                f"of the batch, found {micro}"
            )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", values.devices)
    model = model_config(values.model)
    print(f"{values.model}, batch {values.batch}, {values.dtype}, remat {values.remat}, "
          f"{values.devices} devices, JAX {jax.__version__}\n")  # fmt: skip
    print("| fsdp | microbatch_size | temporary buffers (GiB) | arguments (GiB) | "
          "state (GiB) | fraction of full state | compilation (s) |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for fsdp in values.fsdp:
        mesh = sharding.make_mesh(fsdp)
        for micro in values.micro:
            dtype = jnp.dtype(values.dtype)
            found = measure(model, values.batch, micro or values.batch, values.remat, dtype, mesh)
            row = [fsdp, micro or "0 (full batch)"]
            row += [f"{part / 2**30:.2f}" for part in found[:3]]
            row += [f"1/{found.full_state / found.state:.2f}", f"{found.seconds:.0f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
