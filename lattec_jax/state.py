"""The train state, the optimiser and its schedule."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax import sharding
from lattec_jax.models.clip import Params

MAX_LOG_SCALE = math.log(100)  # OpenCLIP's upper bound of the logit scale


@flax.struct.dataclass
class TrainState:
    """All that the next step needs. Random numbers come from `fold_in(seed, step)`."""

    step: jax.Array  # [] int32, steps taken
    seed: jax.Array  # [] uint32; an array, so that runs of other seeds share the compiled step
    params: Params
    optimiser: optax.OptState
    method: Any  # of the method, such as the prototypes


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine to zero; open_clip_train's `cosine_lr`.

    Args:
        config: the section `config.train`.
        steps: of the whole run; a warm-up longer than this is cut to it.
    """
    warmup = min(config.warmup_steps, steps)

    def schedule(step: jax.Array) -> jax.Array:
        rising = (step + 1) / max(warmup, 1)
        progress = (step - warmup) / max(steps - warmup, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * jnp.where(step < warmup, rising, falling)

    return schedule


def decays(params: Params) -> dict[str, bool]:
    """Weight decay is for matrices only: no biases, norms, class embedding or logit scale."""
    return {name: value.ndim >= 2 for name, value in params.items()}


def make_optimiser(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW with OpenCLIP's settings; `config` is the section `config.train`."""
    return optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decays,
    )


def init_state(
    params: Params,
    optimiser: optax.GradientTransformation,
    method_state: Any,
    mesh: Mesh,
    seed: int = 0,
) -> TrainState:
    """The state before the first step, placed on the mesh."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        optimiser=optimiser.init(params),
        method=method_state,
    )
    # Copies, because the first step consumes the state: no two of its arrays may share memory, nor
    # may one be shared with `params`.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return jax.device_put(state, state_shardings(state, mesh))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of a state lies; `state` may hold shapes instead of arrays."""
    whole = sharding.replicated(mesh)
    return TrainState(
        step=whole,
        seed=whole,
        params=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.params),
        optimiser=jax.tree.map(lambda x: sharding.over_fsdp(mesh, x.shape), state.optimiser),
        method=jax.tree.map(lambda x: whole, state.method),
    )


def clamp_logit_scale(params: Params) -> Params:
    """Keep the logarithm of the inverse temperature within [0, ln 100], as CLIP does."""
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOG_SCALE)}
