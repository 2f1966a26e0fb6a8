"""The schedule, the optimizer and the first state, against OpenCLIP's trainer and PyTorch."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from convert.names import open_clip_name, to_open_clip
from lattec_jax.models.checkpoint import expected_shapes
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime import sharding
from lattec_jax.training import state

SETTINGS = {
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "weight_decay": 0.2,
    "beta1": 0.9,
    "beta2": 0.98,
    "epsilon": 1e-6,
    "schedule": "cosine",
    "optimizer": "adamw",
    "momentum": 0.9,
}


def settings(**changes: float | str) -> ConfigDict:
    """The section `config.train`."""
    return ConfigDict({**SETTINGS, **changes})


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer with its schedule."""
    return state.make_optimizer(config, state.learning_rate_schedule(config, steps))


def cosine(rate: float, warmup: int, steps: int, step: int) -> float:
    """Linear warm-up that reaches `rate` with its last step, then half a cosine."""
    if step < warmup:
        return rate * (step + 1) / warmup
    return rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


# The schedule ---------------------------------------------------------------------------------

LENGTHS = [(40, 1800), (1, 10), (0, 7), (9, 10), (3, 120)]  # warm-up, steps


@pytest.mark.parametrize(("warmup", "steps"), LENGTHS)
def test_the_schedule_is_a_warm_up_and_half_a_cosine(warmup, steps):
    schedule = state.learning_rate_schedule(settings(warmup_steps=warmup), steps)
    found = np.asarray(jax.jit(schedule)(np.arange(steps)))
    expected = [cosine(1e-3, warmup, steps, step) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert found.max() == pytest.approx(1e-3)


@pytest.mark.parametrize(("warmup", "steps"), LENGTHS)
def test_the_schedule_is_open_clip_s(warmup, steps):
    pytest.importorskip("torch")
    scheduler = pytest.importorskip("open_clip_train.scheduler")

    class Optimizer:
        """Holds the rate that open_clip assigns."""

        param_groups: list[dict] = [{}]  # noqa: RUF012

    adjust = scheduler.cosine_lr(Optimizer(), 1e-3, warmup, steps)
    schedule = state.learning_rate_schedule(settings(warmup_steps=warmup), steps)
    found = np.asarray(jax.jit(schedule)(np.arange(steps)))
    np.testing.assert_allclose(found, [adjust(s) for s in range(steps)], rtol=1e-5, atol=1e-9)


def test_a_warm_up_longer_than_the_run_is_cut_to_it():
    schedule = state.learning_rate_schedule(settings(warmup_steps=40), 5)
    np.testing.assert_allclose(
        np.asarray(jax.jit(schedule)(np.arange(5))), 1e-3 * np.arange(1, 6) / 5, rtol=1e-6
    )


# The optimizer --------------------------------------------------------------------------------


def parameters() -> dict[str, np.ndarray]:
    """One of every kind that a CLIP has, under OpenCLIP's names."""
    rng = np.random.default_rng(0)
    shapes = {
        "visual.conv1.weight": (6, 3, 2, 2),
        "visual.class_embedding": (6,),
        "visual.positional_embedding": (5, 6),
        "visual.ln_pre.weight": (6,),
        "visual.ln_pre.bias": (6,),
        "visual.proj": (6, 4),
        "transformer.resblocks.0.attn.in_proj_weight": (18, 6),
        "transformer.resblocks.0.attn.in_proj_bias": (18,),
        "transformer.resblocks.0.mlp.c_fc.weight": (24, 6),
        "transformer.resblocks.0.mlp.c_fc.bias": (24,),
        "token_embedding.weight": (11, 6),
        "text_projection": (6, 4),
        "logit_scale": (),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Random ones over many orders of magnitude, some parts zero as of unused tokens."""
    rng = np.random.default_rng([1, step])
    found = {}
    for number, (name, value) in enumerate(parameters().items()):
        scale = 10.0 ** rng.uniform(-6, 1, value.shape)
        found[name] = np.asarray(scale * rng.normal(size=value.shape), np.float32)
        if number % 3 == 0 and value.ndim > 1:
            found[name][0] = 0
    return found


def open_clip_decays(name: str, ndim: int) -> bool:
    """`include` of open_clip_train's main.py."""
    return not (ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit" in name)


def test_decay_is_for_open_clip_s_parameters_only():
    """For all our names and layouts, by OpenCLIP's rule for its own; and as the optimizer does."""
    config = CLIPConfig(
        embed_dim=6,
        vision=VisionConfig(8, 1, 2, patch_size=4, image_size=(8, 8), layer_scale=0.1),
        text=TextConfig(4, 1, 1, context_length=5, vocab_size=7, layer_scale=0.1),
    )
    ours = {name: np.ones(shape, np.float32) for name, shape in expected_shapes(config).items()}
    theirs = to_open_clip(ours, config)
    names = {name: open_clip_name(name) for name in ours}
    expected = {n: open_clip_decays(names[n], theirs[names[n]].ndim) for n in ours}
    assert state.decay_mask(ours) == expected
    kept = {n for n, decayed in expected.items() if not decayed}
    assert {"logit_scale", "visual/class_embedding", "text/blocks/0/layer_scale_1"} <= kept
    assert {n for n in expected if n.endswith("kernel")} == expected.keys() - kept - {
        "visual/positional_embedding",
        "visual/projection",
        "text/token_embedding",
        "text/positional_embedding",
        "text/projection",
    }
    optimizer = make_optimizer(settings(warmup_steps=0), 10)
    zeros = {name: np.zeros_like(value) for name, value in ours.items()}
    change, _ = jax.jit(optimizer.update)(zeros, optimizer.init(ours), ours)
    assert {name for name, value in change.items() if np.asarray(value).any()} == {
        name for name, decayed in expected.items() if decayed
    }


def trajectory(config: ConfigDict, steps: int) -> list[dict[str, np.ndarray]]:
    """Our parameters after each step."""
    optimizer = make_optimizer(config, steps)
    params = {name: jnp.asarray(value) for name, value in parameters().items()}
    moments = optimizer.init(params)

    @jax.jit
    def update(params, moments, gradient):
        change, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments

    visited = []
    for step in range(steps):
        params, moments = update(params, moments, gradients(step))
        visited.append({name: np.asarray(value) for name, value in params.items()})
    return visited


def assert_trajectory_is_pytorch_s(config, theirs, optimizer, schedule) -> None:
    """Ten steps of ours beside those of a PyTorch optimizer of the parameters `theirs`."""
    torch = pytest.importorskip("torch")
    for step, ours in enumerate(trajectory(config, 10)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(1e-3, 4, 10, step)
        for name, gradient in gradients(step).items():
            theirs[name].grad = torch.tensor(gradient)
        optimizer.step()
        for name, value in ours.items():
            expected = theirs[name].detach().numpy()
            error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
            assert error < 1e-6, (step, name)


def test_ten_steps_of_adamw_are_pytorch_s():
    torch = pytest.importorskip("torch")
    theirs = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in parameters().items()}
    matrices = [p for n, p in theirs.items() if open_clip_decays(n, p.ndim)]
    others = [p for n, p in theirs.items() if not open_clip_decays(n, p.ndim)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.2}],
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    assert_trajectory_is_pytorch_s(settings(), theirs, optimizer, cosine)


def test_ten_steps_of_sgd_are_pytorch_s():
    """Momentum, and decay of every parameter through its gradient; a constant rate."""
    torch = pytest.importorskip("torch")
    config = settings(optimizer="sgd", schedule="constant", warmup_steps=0, weight_decay=0.1)
    theirs = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in parameters().items()}
    optimizer = torch.optim.SGD(theirs.values(), 1e-3, momentum=0.9, weight_decay=0.1)
    assert_trajectory_is_pytorch_s(config, theirs, optimizer, lambda rate, *_: rate)


def test_a_constant_schedule_stays_after_its_warm_up():
    schedule = state.learning_rate_schedule(settings(schedule="constant"), 10)
    expected = [2.5e-4, 5e-4, 7.5e-4, *[1e-3] * 7]
    np.testing.assert_allclose(np.asarray(jax.jit(schedule)(np.arange(10))), expected, rtol=1e-6)


def test_the_optimizer_knows_the_trained_parameters_only():
    mesh = sharding.make_mesh()
    optimizer = make_optimizer(settings(optimizer="sgd"), 10)
    params = sharding.shard_params(parameters(), mesh)
    made = state.init_state(params, optimizer, (), mesh, lambda name: "ln_pre" in name)
    sizes = sorted(x.shape for x in jax.tree.leaves(made.optimizer) if x.ndim)
    assert sizes == [(6,), (6,)]  # the momentum of weight and bias
    assert made.params.keys() == params.keys()


def test_ten_steps_of_adamw_are_the_formula_s():
    """Loshchilov and Hutter's algorithm 2 in float64; runs without torch."""
    expected = {n: v.astype(np.float64) for n, v in parameters().items()}
    first = {n: np.zeros_like(v) for n, v in expected.items()}
    second = {n: np.zeros_like(v) for n, v in expected.items()}
    start = parameters()
    for step, ours in enumerate(trajectory(settings(), 10)):
        rate = cosine(1e-3, 4, 10, step)
        for name, gradient in gradients(step).items():
            gradient = gradient.astype(np.float64)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            root = np.sqrt(second[name] / (1 - 0.98 ** (step + 1)))
            decay = 0.2 if open_clip_decays(name, gradient.ndim) else 0.0
            expected[name] = expected[name] * (1 - rate * decay) - rate * mean / (root + 1e-6)
            moved = np.linalg.norm(expected[name] - start[name])
            error = np.linalg.norm(ours[name] - expected[name])
            assert error < 1e-6 * np.linalg.norm(expected[name]), (step, name)
            assert error < 2e-3 * moved, (step, name)  # of the way, which is short


def test_without_gradients_only_matrices_shrink():
    optimizer = make_optimizer(settings(warmup_steps=0), 10)
    params = parameters()
    zeros = jax.tree.map(np.zeros_like, params)
    change, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name, value in parameters().items():
        factor = 1e-3 * 0.2 if value.ndim >= 2 else 0.0
        np.testing.assert_allclose(change[name], -factor * value, rtol=1e-5, atol=0)


# The logit scale ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(-0.3, 0.0), (0.0, 0.0), (2.5, 2.5), (math.log(100), math.log(100)), (4.7, math.log(100))],
)
def test_the_logit_scale_is_clamped_and_nothing_else(scale, expected):
    params = {"logit_scale": jnp.float32(scale), "proj": jnp.array([[-7.0, 9.0]])}
    found = state.clamp_logit_scale(params)
    assert float(found["logit_scale"]) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(found["proj"], [[-7.0, 9.0]])
    assert float(params["logit_scale"]) == pytest.approx(scale)  # the argument is left alone


# The first state ------------------------------------------------------------------------------


@flax.struct.dataclass
class Prototypes:
    """Two names for one array, as at the start of LatteCLIP."""

    current: jax.Array
    weighing: jax.Array


def first_state(fsdp: int = 1) -> tuple[dict[str, jax.Array], jax.Array, state.TrainState]:
    """Parameters, prototypes and the state made of them."""
    mesh = sharding.make_mesh(fsdp)
    params = sharding.shard_params(
        {**parameters(), "large": np.ones((256, 128), np.float32), "twin": np.ones(3)}, mesh
    )
    params["also twin"] = params["twin"]
    prototypes = jax.device_put(jnp.eye(3), sharding.replicated(mesh))
    optimizer = make_optimizer(settings(), 10)
    made = state.init_state(params, optimizer, Prototypes(prototypes, prototypes), mesh)
    return params, prototypes, made


def buffers(array: jax.Array) -> set[int]:
    """Where the parts of an array lie in memory."""
    return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


def test_no_two_arrays_of_the_state_share_memory(all_devices):
    params, prototypes, made = first_state()
    arrays = jax.tree.leaves(made)
    taken: set[int] = set().union(*map(buffers, [*params.values(), prototypes]))
    for array in arrays:
        assert not buffers(array) & taken
        taken |= buffers(array)
    assert len(arrays) > 3 * len(params)  # step, parameters, two moments, prototypes


def test_a_step_may_consume_the_state_but_not_what_it_was_made_of(all_devices):
    params, prototypes, made = first_state()
    twin = first_state()[2]  # not `made`: a NumPy view of it would keep it alive
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    after = add(made)
    assert all(array.is_deleted() for array in jax.tree.leaves(made))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), after, twin)
    np.testing.assert_array_equal(prototypes, np.eye(3))
    for name, value in parameters().items():
        np.testing.assert_array_equal(params[name], value)


def test_the_first_state_starts_at_zero_and_lies_as_declared(all_devices):
    params, _, made = first_state(fsdp=4)
    assert int(made.step) == 0 and made.step.dtype == jnp.int32
    np.testing.assert_array_equal(made.method.current, np.eye(3))
    for name, value in params.items():
        np.testing.assert_array_equal(made.params[name], value)
    adam = made.optimizer[0]
    for moments in (adam.mu, adam.nu):
        assert all(not np.asarray(m).any() for m in moments.values())
        # A parameter and its moments are split alike: 4 of the 8 devices hold a quarter each.
        assert moments["large"].sharding == made.params["large"].sharding
        assert moments["large"].addressable_shards[0].data.shape == (64, 128)
    expected = state.state_shardings(made, sharding.make_mesh(4))
    jax.tree.map(lambda x, s: None if x.sharding == s else pytest.fail(str(s)), made, expected)
