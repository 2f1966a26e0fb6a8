"""WiSE-FT (arXiv 2109.01903): the average of a model before and after its adaptation."""

from __future__ import annotations

from typing import Any

from lattec_jax.methods.base import Method
from lattec_jax.models.clip import Params
from lattec_jax.training.state import TrainState


def average(
    method: Method, params: Params, first: Any, state: TrainState, fraction: float
) -> TrainState:
    """Eq. (1) of WiSE-FT for all parameters: `(1−a) · before + a · after`.

    The method averages its own state alike (prototypes are unit vectors again). The optimizer's
    state stays; nothing is trained after this.

    Args:
        method: whose state it is.
        params: before, where training started.
        first: the method's state before.
        state: after the last step.
        share: a, of the adapted parameters; at 1 there is nothing to average.
    """
    if fraction == 0:  # exactly what was there, not normalized once more
        return state.replace(params=params, method=first)
    mean = {
        name: (1 - fraction) * params[name] + fraction * after
        for name, after in state.params.items()
    }
    return state.replace(params=mean, method=method.average(first, state.method, fraction))
