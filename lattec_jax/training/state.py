"""The train state, the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax.models.clip import Params
from lattec_jax.runtime import distributed, sharding

MAX_LOG_SCALE = math.log(100)  # OpenCLIP's upper bound of the logit scale


@flax.struct.dataclass
class TrainState:
    """All that the next step needs. Random numbers come from `fold_in(seed, step)`."""

    step: jax.Array  # [] int32, steps taken
    seed: jax.Array  # [] uint32; an array, so that runs of other seeds share the compiled step
    params: Params
    optimizer: optax.OptState
    method: Any  # of the method, such as the prototypes


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine to zero (open_clip_train's `cosine_lr`) or a constant.

    Args:
        config: the section `config.train`.
        steps: of the whole run; a warm-up longer than this is cut to it.
    """
    warmup = min(config.warmup_steps, steps)

    def schedule(step: jax.Array) -> jax.Array:
        rising = (step + 1) / max(warmup, 1)
        progress = (step - warmup) / max(steps - warmup, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.schedule == "cosine" else 1.0
        return config.learning_rate * jnp.where(step < warmup, rising, falling)

    return schedule


def decays(params: Params) -> dict[str, bool]:
    """Weight decay is for matrices only: no biases, norms, class embedding or logit scale."""
    return {name: value.ndim >= 2 for name, value in params.items()}


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW as OpenCLIP has it, or stochastic gradient descent as PyTorch has it.

    AdamW decays matrices only, apart from the gradient. `torch.optim.SGD` adds the decay of every
    trained parameter to its gradient, before the momentum.

    Args:
        config: the section `config.train`.
        steps: of the whole run.
    """
    schedule = learning_rate_schedule(config, steps)
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
        mask=decays,
    )


def trainable(params: Params, choose: Callable[[str], bool]) -> Params:
    """The parameters that are trained, by their names."""
    return {name: value for name, value in params.items() if choose(name)}


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    method_state: Any,
    mesh: Mesh,
    choose: Callable[[str], bool] = lambda name: True,
    seed: int = 0,
) -> TrainState:
    """The state before the first step, placed on the mesh.

    Args:
        params: of the model.
        optimizer: keeps its state for the trained parameters only.
        method_state: of the method.
        mesh: the devices.
        choose: which parameters are trained, by their names.
        seed: of the run.
    """

    def build(seed: jax.Array, params: Params, method_state: Any) -> TrainState:
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=seed,
            params=params,
            optimizer=optimizer.init(trainable(params, choose)),
            method=method_state,
        )
        return _copies(state)

    # One program; by itself each operation on each shape would be compiled.
    given = (np.uint32(seed), params, method_state)
    where = state_shardings(jax.eval_shape(build, *given), mesh)
    return jax.jit(build, out_shardings=where)(*given)


def replace_method(state: TrainState, method_state: Any, mesh: Mesh) -> TrainState:
    """The state with another one of the method, which may be of NumPy arrays."""
    return state.replace(method=replicate(method_state, mesh))


def replicate(method_state: Any, mesh: Mesh) -> Any:
    """Copies of a method's state on all devices; of several processes the first one's is taken."""
    state = _copies(distributed.broadcast(method_state))
    return sharding.place_tree(state, jax.tree.map(lambda _: sharding.replicated(mesh), state))


def _copies(tree: Any) -> Any:
    """Copies, because the next step consumes the state: no two of its arrays may share memory, nor
    may one be shared with what it was made of."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of a state lies; `state` may hold shapes instead of arrays."""
    whole = sharding.replicated(mesh)
    return TrainState(
        step=whole,
        seed=whole,
        params=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.params),
        optimizer=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.optimizer),
        method=jax.tree.map(lambda x: whole, state.method),
    )


def clamp_logit_scale(params: Params) -> Params:
    """Keep the logarithm of the inverse temperature within [0, ln 100], as CLIP does."""
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOG_SCALE)}
