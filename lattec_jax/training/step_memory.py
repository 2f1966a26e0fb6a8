"""Choose how a train step is computed, so that it fits into device memory.

`config.train.microbatch_size = "auto"` takes the largest microbatch whose compiled step fits: the
whole batch, or the next smaller divisor of at most half its size, and so on. Where none of at least
MIN_IMAGES on a device fits, the step is rematerialized (`config.compute.remat`), again with the
largest microbatch that fits. An estimate says which one to compile first,
and the compiler's own figures decide: usually one step is compiled.

If a device is out of memory all the same, the run continues from its newest checkpoint with the
next plan.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime import distributed
from lattec_jax.runtime.device_memory import device_memory, is_out_of_memory
from lattec_jax.runtime.errors import ConfigError, TrainingError
from lattec_jax.training.state import TrainState
from lattec_jax.training.step import Batch, DeviceData

AUTO = "auto"
# What a plan leaves free: for batches that are sent ahead and for fragmentation; on the CPU for the
# rest of the process and the system, which ends a process that takes too much.
RESERVE, CPU_RESERVE = 0.1, 0.5
# Of each token, unit of the width and block, a step stores about so many numbers (fitted to the
# table of benchmarks/README.md, "Memory"); with rematerialization one, and all of one block.
NUMBERS_PER_UNIT = 26
# Of a microbatch on each device. Below, a larger one with rematerialization is preferred, because
# few tokens use a device badly; which is faster is not yet measured.
MIN_IMAGES = 16
MIB, GIB = 2**20, 2**30
REFUSED = 2**50  # bytes of a step that the compiler refuses


class StepPlan(NamedTuple):
    """One way to compute a step."""

    microbatch_size: int  # images encoded at once
    num_microbatches: int
    remat: bool


class StepOutOfMemory(Exception):
    """A device was out of memory in a step; `remaining` are the plans that are left to try."""

    def __init__(self, message: str, remaining: Sequence[StepPlan]) -> None:
        super().__init__(message)
        self.remaining = tuple(remaining)


def step_plans(config: ConfigDict, batch_size: int, mesh: Mesh) -> tuple[StepPlan, ...]:
    """Return the plans of a run in the order of preference; a single one if the configuration names
    a size.

    A batch that is smaller than configured, because there are few images, need not be divisible:
    its last microbatch is padded. Raises ConfigError if the microbatch size does not divide the
    configured batch size, or is not a multiple of the number of devices.
    """
    size, configured = config.train.microbatch_size, config.train.batch_size
    fitting = [n for n in range(mesh.size, configured + 1, mesh.size) if configured % n == 0]
    if size not in (AUTO, 0, *fitting):
        advice = f"use one of {', '.join(map(str, fitting))}" if fitting else "use 0"
        raise ConfigError(
            "config.train.microbatch_size: expected 'auto', 0 (the whole batch) or a divisor of "
            f"config.train.batch_size={configured} that is a multiple of the {mesh.size} devices, "
            f"found {size}; {advice}"
        )
    if size != AUTO:
        return (_plan(size or batch_size, batch_size, config.compute.remat),)
    sizes = [batch_size]
    for smaller in reversed(fitting):
        if 2 * smaller <= sizes[-1]:
            sizes.append(smaller)
    plans = [_plan(n, batch_size, remat=True) for n in sizes]
    if not config.compute.remat:
        large = [n for n in sizes if n == batch_size or n >= MIN_IMAGES * mesh.size]
        plans = [_plan(n, batch_size, remat=False) for n in large] + plans
    return tuple(plans)


def _plan(size: int, batch_size: int, remat: bool) -> StepPlan:
    return StepPlan(size, -(-batch_size // size), remat)


def compile_step(
    plans: Sequence[StepPlan],
    build: Callable[[StepPlan], Any],
    model: CLIPConfig,
    dtype: jnp.dtype,
    mesh: Mesh,
    arguments: tuple[TrainState, DeviceData, Batch, tuple[int, ...]],
) -> tuple[StepPlan, Any]:
    """Return the first plan whose step fits into the memory of a device, the last one if none does,
    and the jitted step that `build` makes of it, which is compiled for these arguments. All
    processes choose the same plan."""
    steps = {}

    def measure(plan: StepPlan) -> float:
        steps[plan] = build(plan)
        try:
            needed = planned_bytes(steps[plan].lower(*arguments).compile())
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
            if not is_out_of_memory(error):
                raise
            needed = REFUSED
        return MIB * max(distributed.allgather(needed // MIB))

    memory = MIB * min(distributed.allgather(device_memory() // MIB))
    reserve = CPU_RESERVE if mesh.devices.flat[0].platform == "cpu" else RESERVE
    limit = (1 - reserve) * memory
    estimates = {plan: estimate_bytes(plan, model, dtype, mesh, *arguments) for plan in plans}
    plan, needed = choose_plan(estimates, measure, limit)
    too_much = ", which may be too much" if needed > limit else ""
    print(
        f"microbatch size: {plan.microbatch_size} of {len(arguments[2].images)} images"
        f"{', with rematerialization' if plan.remat else ''}; the step needs {needed / GIB:.2f} of "
        f"{limit / GIB:.2f} GiB{too_much} ({reserve:.0%} of {memory / GIB:.2f} GiB is kept free)"
    )
    return plan, steps[plan]


def choose_plan(
    estimates: Mapping[StepPlan, float], measure: Callable[[StepPlan], float], limit: float
) -> tuple[StepPlan, float]:
    """Return the first plan that needs at most `limit` bytes, the last one if none does, and its
    bytes. `measure` is slow: it is called for plans that may fit by their estimates only, which
    every measurement corrects. An estimate may be wrong by a factor (activations) or by a number of
    bytes (copies of the parameters): what is less is expected, so that no plan is missed."""
    measured: dict[StepPlan, float] = {}
    factor, offset = 1.0, 0.0
    while True:
        expected = {plan: min(factor * n, n + offset) for plan, n in estimates.items()} | measured
        plan = next((p for p in estimates if expected[p] <= limit), [*estimates][-1])
        if plan in measured:
            return plan, measured[plan]
        measured[plan] = measure(plan)
        if measured[plan] < REFUSED:
            factor, offset = measured[plan] / estimates[plan], measured[plan] - estimates[plan]


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Return what a compiled step needs on each device, its arguments included."""
    found: Any = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


def estimate_bytes(
    plan: StepPlan,
    model: CLIPConfig,
    dtype: jnp.dtype,
    mesh: Mesh,
    state: TrainState,
    device_data: DeviceData,
    batch: Batch,
    bucket_lengths: tuple[int, ...],
) -> float:
    """Return about what `planned_bytes` finds. Of the arguments only shapes and shardings count."""

    def on_device(tree: Any) -> int:
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    def numbers(tower: VisionConfig | TextConfig, tokens: int) -> float:
        per_unit = NUMBERS_PER_UNIT
        if plan.remat:
            per_unit = 1 + NUMBERS_PER_UNIT / tower.layers
        return per_unit * tower.width * tower.layers * tokens

    images, (classes, length) = batch.images.shape[0], device_data.class_tokens.shape
    image_tokens = images * (model.vision.grid[0] * model.vision.grid[1] + 1)
    buckets = zip(batch.text_indices, bucket_lengths, strict=True)
    text_tokens = min(classes, 2 * images) * length + sum(len(n) * size for n, size in buckets)
    towers = numbers(model.vision, image_tokens), numbers(model.text, text_tokens)
    # Only one microbatch has its activations in memory, of images or of texts.
    activations = sum(towers) if plan.num_microbatches == 1 else max(towers) / plan.num_microbatches
    gradient = on_device(state.params)
    return (
        on_device((state, device_data, batch)) + gradient + activations / mesh.size * dtype.itemsize
    )


@contextlib.contextmanager
def out_of_memory_handled(
    plans: Sequence[StepPlan], plan: StepPlan, is_auto: bool
) -> Iterator[None]:
    """Raise StepOutOfMemory where a device is out of memory in a step of this plan and others are
    left, and TrainingError where none is."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        found = (
            f"a device is out of memory in a step with {_as_flags(plan)} "
            f"({str(error).splitlines()[0][:200]})"
        )
        remaining = plans[plans.index(plan) + 1 :]
        if remaining and distributed.count() == 1:
            raise StepOutOfMemory(found, remaining) from error
        advice = "use 'auto' or a smaller divisor of the batch for config.train.microbatch_size"
        if remaining:  # the other processes wait for this one in the middle of a step
            advice = f"use {_as_flags(remaining[0])}"
        elif is_auto:
            advice = (
                "use config.compute.dtype=bfloat16, config.image_cache.placement=host, a smaller "
                "config.train.batch_size, or more devices and config.compute.fsdp"
            )
        raise TrainingError(f"{found}; {advice}. The newest checkpoint is kept") from error


def _as_flags(plan: StepPlan) -> str:
    size, remat = plan.microbatch_size, plan.remat
    return f"--config.train.microbatch_size={size} --config.compute.remat={remat}"
