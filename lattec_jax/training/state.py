"""The train state, the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from lattec_jax.models.clip import Params
from lattec_jax.runtime import distributed, sharding

MAX_LOG_SCALE = math.log(100)  # OpenCLIP's upper bound of the logit scale


@flax.struct.dataclass
class TrainState:
    """All that the next step needs. Random numbers come from `fold_in(seed, step)`.

    The leaves are arrays, or stand for them: their shapes or shardings.
    """

    step: Any  # [] int32, steps taken
    seed: Any  # [] uint32; an array, so that runs of other seeds share the compiled step
    params: dict[str, Any]
    optimizer: optax.OptState
    method: Any  # the method's own state, such as the prototypes


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Return linear warm-up, then half a cosine to zero (open_clip_train's `cosine_lr`) or a
    constant, by the section `config.train`. A warm-up longer than the run is cut to it."""
    warmup = min(config.warmup_steps, steps)

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rising = (step + 1) / max(warmup, 1)
        progress = (step - warmup) / max(steps - warmup, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.schedule == "cosine" else 1.0
        return config.learning_rate * jnp.where(step < warmup, rising, falling)

    return schedule


def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    """Select matrices for weight decay: no biases, norms, class embedding or logit scale."""
    return {name: value.ndim >= 2 for name, value in params.items()}


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Make AdamW as OpenCLIP has it, or stochastic gradient descent as PyTorch has it.

    AdamW decays matrices only, apart from the gradient. `torch.optim.SGD` adds the decay of every
    trained parameter to its gradient, before the momentum. `config` is `config.train`.
    """
    if config.optimizer == "sgd":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum),
        )
    return optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def select_trainable(params: Params, is_trainable: Callable[[str], bool]) -> Params:
    """Return the parameters whose names `is_trainable` accepts."""
    return {name: value for name, value in params.items() if is_trainable(name)}


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    method_state: Any,
    mesh: Mesh,
    is_trainable: Callable[[str], bool] = lambda name: True,
    seed: int = 0,
) -> TrainState:
    """Return the state before the first step, sharded over the mesh; the optimizer has state for
    the trained parameters only."""

    def build(seed: jax.Array, params: Params, method_state: Any) -> TrainState:
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=seed,
            params=params,
            optimizer=optimizer.init(select_trainable(params, is_trainable)),
            method=method_state,
        )
        return _copies(state)

    # One jitted function: otherwise each operation is compiled for each shape.
    arguments = (np.uint32(seed), params, method_state)
    shardings = state_shardings(jax.eval_shape(build, *arguments), mesh)
    return jax.jit(build, out_shardings=shardings)(*arguments)


def replicate(method_state: Any, mesh: Mesh) -> Any:
    """Copy a method's state, whose arrays may be NumPy's, to all devices; of several processes the
    main one's is taken."""
    state = _copies(distributed.broadcast(method_state))
    return sharding.place_tree(state, jax.tree.map(lambda _: sharding.replicated(mesh), state))


def _copies(tree: Any) -> Any:
    """Copy all arrays, because the next step donates them: no two may share a buffer, with each
    other or with the arrays that they were made from."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Return the sharding of each array of a state; `state` may hold shapes instead of arrays."""
    replicated = sharding.replicated(mesh)
    return TrainState(
        step=replicated,
        seed=replicated,
        params=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.params),
        optimizer=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.optimizer),
        method=jax.tree.map(lambda x: replicated, state.method),
    )


def clamp_logit_scale(params: Params) -> Params:
    """Clip the logarithm of the logit scale to [0, ln 100], as CLIP does."""
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOG_SCALE)}
