"""Peak memory of a training step with and without micro-batches, from JAX's own figures.

    python -m benchmarks.micro_batches [--batch=512] [--micro 0 128 64 32] [--remat]

The step is lowered with shapes only and compiled for the CPU: nothing is allocated or run.
Prints a Markdown table of what `compiled.memory_analysis()` says: the temporary buffers of the
step, beside its arguments (parameters, optimiser state, pictures and tokens).
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs.common import get_config
from lattec_jax import sharding
from lattec_jax.augment import Augmentation
from lattec_jax.methods.base import Targets
from lattec_jax.methods.latteclip import LatteCLIP, Prototypes
from lattec_jax.models.clip import define, initial_params
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.state import TrainState, learning_rate_schedule, make_optimiser
from lattec_jax.step import Batch, StepSettings, Tables, make_train_step

VIT_B_32 = CLIPConfig(
    embed_dim=512,
    vision=VisionConfig(768, 12, 12, 32, (224, 224)),
    text=TextConfig(512, 12, 8, 77, 49408),
)
IMAGES, CLASSES, LONG_SIDE = 18_900, 10, 64  # EuroSAT
# Buffers are assigned before code is generated: leaving that quick does not change the figures.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TEXTS = ((32, 0.9), (48, 0.1))  # tokens of a group, and its share of the descriptions


def shape(*dimensions: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(dimensions, dtype)


def arguments(batch_size: int, method: LatteCLIP, optimiser) -> tuple[TrainState, Tables, Batch]:
    """Shapes of what a step takes."""
    params = jax.eval_shape(lambda: initial_params(VIT_B_32, 0))
    prototypes = shape(CLASSES, VIT_B_32.embed_dim, dtype=np.float32)
    state = TrainState(
        step=shape(),
        seed=shape(dtype=np.uint32),
        params=params,
        optimiser=jax.eval_shape(optimiser.init, params),
        method=Prototypes(prototypes, prototypes),
    )
    kinds = len(method.description_kinds)
    tables = Tables(
        class_tokens=shape(CLASSES, 16),
        description_tokens=shape(IMAGES * kinds, 77),
        present=shape(IMAGES, kinds, dtype=bool),
        targets=Targets(shape(IMAGES)),
        pixels=shape(IMAGES, LONG_SIDE, LONG_SIDE, 3, dtype=np.uint8),
        sizes=shape(IMAGES, 2),
    )
    rest = batch_size * kinds
    sizes = [round(rest * share) for _, share in TEXTS]
    sizes[0] += rest - sum(sizes)
    batch = Batch(
        images=shape(batch_size),
        text_rows=tuple(shape(n) for n in sizes),
        text_places=shape(rest),
        text_images=shape(batch_size, kinds),
        ends_epoch=shape(dtype=bool),
    )
    return state, tables, batch


def measure(
    batch_size: int, micro: int, remat: bool, dtype: jnp.dtype
) -> tuple[float, float, float]:
    """Temporary and argument memory in GiB, and seconds of compilation."""
    config = get_config().train
    config.learning_rate, config.warmup_steps, config.weight_decay = 1e-7, 40, 0.2
    config.schedule, config.optimizer = "cosine", "adamw"
    optimiser, method = make_optimiser(config, 1800), LatteCLIP(0.99, 0.99)
    settings = StepSettings(
        (224, 224),
        (0.5,) * 3,
        (0.25,) * 3,
        Augmentation((0.9, 1.0), (3 / 4, 4 / 3), (0.0,) * 4, 0.0, 0.0, 0.0),
        pieces=batch_size // micro,
    )
    step = make_train_step(
        define(VIT_B_32, dtype=dtype, remat=remat),
        method,
        optimiser,
        learning_rate_schedule(config, 1800),
        settings,
        sharding.make_mesh(1, jax.devices()[:1]),
    )
    start = time.perf_counter()
    lengths = tuple(length for length, _ in TEXTS)
    compiled = step.lower(*arguments(batch_size, method, optimiser), lengths).compile(QUICK)
    found = compiled.memory_analysis()
    seconds = time.perf_counter() - start
    return found.temp_size_in_bytes / 2**30, found.argument_size_in_bytes / 2**30, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro", type=int, nargs="+", default=[0, 128, 64, 32])
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    values = parser.parse_args()
    print(f"ViT-B-32, batch {values.batch}, {values.dtype}, remat {values.remat}, "
          f"JAX {jax.__version__} on {jax.default_backend()}\n")  # fmt: skip
    print("| micro_batch | temporary buffers (GiB) | arguments (GiB) | compilation (s) |")
    print("|---|---|---|---|")
    for micro in values.micro:
        temporary, kept, seconds = measure(
            values.batch, micro or values.batch, values.remat, jnp.dtype(values.dtype)
        )
        name = str(micro) if micro else "0 (whole batch)"
        print(f"| {name} | {temporary:.2f} | {kept:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
