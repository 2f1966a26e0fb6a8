"""`config.train.microbatch_size = "auto"`: the largest microbatch that fits into memory."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from lattec_jax.methods.base import Targets
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime import device_memory, distributed, sharding
from lattec_jax.runtime.config import parse, validate
from lattec_jax.runtime.errors import ConfigError, TrainingError
from lattec_jax.training import step_memory
from lattec_jax.training.state import TrainState
from lattec_jax.training.step import Batch, DeviceData
from lattec_jax.training.step_memory import StepOutOfMemory, StepPlan, choose_plan, step_plans


def configured(size: int | str, batch: int = 512, remat: bool = False):
    config = get_config()
    config.train.batch_size, config.train.microbatch_size = batch, size
    config.compute.remat = remat
    return config


def meshes():
    return (sharding.make_mesh(1, jax.devices()[:n]) for n in (1, 8))


def test_a_size_of_the_configuration_is_the_only_plan():
    one, eight = meshes()
    assert step_plans(configured(0), 512, one) == (StepPlan(512, 1, False),)
    assert step_plans(configured(64, remat=True), 512, eight) == (StepPlan(64, 8, True),)
    # A small set; the last microbatch is padded.
    assert step_plans(configured(64), 500, one)[0].num_microbatches == 8
    assert step_plans(configured(64), 40, one)[0].num_microbatches == 1
    for size, message in [(100, "found 100; use one of 8, 16, 32"), (4, "8 devices")]:
        with pytest.raises(ConfigError, match=rf"config\.train\.microbatch_size: .*{message}"):
            step_plans(configured(size), 512, eight)


def test_the_command_line_and_a_file_take_a_number_or_auto():
    for given, expected in [("64", 64), ("0", 0), ("auto", "auto")]:
        argv = ["x", "--config=configs/folder.py", f"--config.train.microbatch_size={given}"]
        assert parse(argv)[0].train.microbatch_size == expected
    config = get_config()
    assert config.train.microbatch_size == "auto"
    config.train.microbatch_size = np.int64(64)
    assert validate(config).train.microbatch_size == 64
    with pytest.raises(
        ConfigError, match=r"'auto' or a whole number .* found 'aut'\. Did you mean"
    ):
        parse([*argv[:2], "--config.train.microbatch_size=aut"])


def test_auto_halves_the_batch_then_rematerializes():
    one, eight = meshes()
    found = step_plans(configured("auto", 500), 500, one)
    sizes = [500, 250, 125, 50, 25, 10, 5, 2, 1]
    assert [plan.microbatch_size for plan in found] == sizes[:5] + sizes  # 16 or more; all
    assert [plan.num_microbatches for plan in found[:4]] == [1, 2, 4, 10]
    assert [plan.remat for plan in found] == [False] * 5 + [True] * 9
    sizes = [plan.microbatch_size for plan in step_plans(configured("auto"), 512, eight)]
    assert sizes == [512, 256, 128, 512, 256, 128, 64, 32, 16, 8]
    found = step_plans(configured("auto", remat=True), 512, eight)
    assert [plan.microbatch_size for plan in found] == [512, 256, 128, 64, 32, 16, 8]
    assert all(plan.remat for plan in found)
    few = step_plans(configured("auto", remat=True), 40, eight)  # images
    assert [plan[:2] for plan in few] == [(40, 1), (16, 3), (8, 5)]


PLANS = step_plans(configured("auto", 64), 64, sharding.make_mesh(1, jax.devices()[:1]))
# What the compiler finds: two bytes, and one for each image; a third with rematerialization.
TRUE = {plan: 2 + plan.microbatch_size / (3 if plan.remat else 1) for plan in PLANS}


@pytest.mark.parametrize("limit", [1000, 66.1, 65, 34.1, 20, 3.1, 2.5, 2.35, 1])
@pytest.mark.parametrize(
    ("factor", "offset"), [(0.2, 0), (0.9, 0), (1, 0), (1.1, 0), (5, 0), (1, -1.9), (1, 30)]
)
def test_the_first_plan_that_fits_is_chosen_whatever_the_estimate(limit, factor, offset):
    compiled = []

    def measure(plan):
        compiled.append(plan)
        return TRUE[plan]

    estimates = {plan: factor * size + offset for plan, size in TRUE.items()}
    plan, needed = choose_plan(estimates, measure, limit)
    assert plan == next((p for p in PLANS if TRUE[p] <= limit), PLANS[-1])
    assert needed == TRUE[plan] and len(set(compiled)) == len(compiled)
    assert len(compiled) <= (1 if (factor, offset) == (1, 0) else 4)


def test_what_the_compiler_refuses_does_not_fit():
    def measure(plan):
        return TRUE[plan] if plan.microbatch_size <= 16 else step_memory.REFUSED

    estimates = dict.fromkeys(PLANS, 1.0)
    assert choose_plan(estimates, measure, 1000)[0] == StepPlan(16, 4, False)


@pytest.mark.full
def test_the_estimate_is_near_the_compilers_figures():
    """Those of XLA for ViT-B-32, float32, batch 512 (benchmarks/README.md, "Memory")."""
    memory = pytest.importorskip("benchmarks.memory", exc_type=ImportError)
    mesh, model = next(meshes()), memory.model_config("ViT-B-32")
    optimizer, _, method = memory.optimizer_and_method()
    given = memory.arguments(model, 512, method, optimizer, mesh)
    for micro, gib in [(512, 44.36), (128, 8.24), (64, 5.13), (32, 3.90)]:
        plan = StepPlan(micro, 512 // micro, False)
        arguments = (plan, model, jnp.dtype("float32"), mesh, *given, memory.LENGTHS)
        assert step_memory.estimate_bytes(*arguments) / 2**30 == pytest.approx(gib, rel=0.15)


class Step:
    """A jitted step whose compiler plans for a gibibyte, and another for each four images."""

    def __init__(self, plan: StepPlan) -> None:
        self.size = plan.microbatch_size

    def lower(self, *arguments):
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return SimpleNamespace(
            argument_size_in_bytes=2**30,
            output_size_in_bytes=2**30,
            alias_size_in_bytes=2**30,
            temp_size_in_bytes=self.size * 2**28,
        )


@pytest.mark.parametrize(
    ("gib", "allowed", "size", "said"),
    [
        (64, 64, 64, "64 of 64 images; the step needs 17.00 of 32.00 GiB (50% of 64.00 GiB"),
        (64, 7, 8, "8 of 64 images, with rematerialization; the step needs 3.00 of 3.50 GiB"),
        (1, 64, 1, "1 of 64 images, with rematerialization; the step needs 1.25 of 0.50 GiB, "
                   "which may be too much"),
    ],
)  # fmt: skip
def test_all_processes_take_what_the_smallest_memory_allows(
    monkeypatch, capsys, gib, allowed, size, said
):
    """`allowed`: GiB of another process."""
    monkeypatch.setattr(step_memory, "device_memory", lambda: gib * 2**30)
    monkeypatch.setattr(step_memory.distributed, "allgather", lambda n: [n, min(n, allowed * 1024)])
    mesh = next(meshes())

    def shape(*dimensions):
        return jax.ShapeDtypeStruct(dimensions, np.int32, sharding=sharding.replicated(mesh))

    state = TrainState(shape(), shape(), {"w": shape(8)}, (), ())
    data = DeviceData(shape(3, 16), shape(64, 24), shape(64, 1), Targets(shape(64)), None, None)
    batch = Batch(shape(64), (shape(64),), shape(64), shape(64, 1), shape(), shape())
    model = CLIPConfig(16, VisionConfig(32, 2, 2, 8, (16, 16)), TextConfig(24, 2, 2, 24, 30))
    plan, step = step_memory.compile_step(
        PLANS, Step, model, jnp.dtype("float32"), mesh, (state, data, batch, (24,))
    )
    assert plan.microbatch_size == step.size == size
    assert said in capsys.readouterr().out


def test_the_memory_of_a_host_is_that_of_the_smallest_control_group(tmp_path, monkeypatch):
    own = tmp_path / "cgroup"
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    monkeypatch.setattr(device_memory, "CGROUP_OF_PROCESS", own)
    host = device_memory.host_memory()
    assert host > 2**28
    (tmp_path / "slurm/job").mkdir(parents=True)
    own.write_text("1:cpu:/other\n0::/slurm/job\n")
    (tmp_path / "slurm/job/memory.max").write_text("max\n")
    assert device_memory.host_memory() == host
    (tmp_path / "slurm/memory.max").write_text("4096000\n")
    assert device_memory.host_memory() == 4096000
    assert device_memory.device_memory() == 4096000 // jax.local_device_count()
    (tmp_path / "memory.max").write_text("1024000\n")
    assert device_memory.host_memory() == 1024000


def out_of_memory(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")


def test_out_of_memory_is_answered_by_the_next_plan_or_by_advice(monkeypatch):
    handled = step_memory.out_of_memory_handled
    flags = r"microbatch_size=32 .*Out of memory all"
    with pytest.raises(StepOutOfMemory, match=flags) as caught, handled(PLANS, PLANS[1], True):
        out_of_memory()
    assert caught.value.remaining == PLANS[2:]
    for plans, is_auto, advice in [
        (PLANS[-1:], True, "remat=True .*; use config.compute.dtype=bfloat16"),
        (PLANS[:1], False, "microbatch_size=64 .*; use 'auto' or a smaller divisor"),
    ]:
        with pytest.raises(TrainingError, match=advice), handled(plans, plans[-1], is_auto):
            out_of_memory()
    monkeypatch.setattr(distributed, "count", lambda: 2)
    advice = r"; use --config\.train\.microbatch_size=16 "
    with pytest.raises(TrainingError, match=advice), handled(PLANS, PLANS[1], True):
        out_of_memory()
    error = jax.errors.JaxRuntimeError("INTERNAL: other")
    with pytest.raises(type(error), match="INTERNAL"), handled(PLANS, PLANS[0], True):
        raise error
