"""WiSE-FT (arXiv 2109.01903): the average of a model before and after its adaptation."""

from __future__ import annotations

import dataclasses
from typing import Any

from lattec_jax.methods.base import Method, PrototypeMethod
from lattec_jax.models.clip import Params
from lattec_jax.training.state import TrainState


def average(
    method: Method, params: Params, method_state: Any, state: TrainState, fraction: float
) -> TrainState:
    """Average all parameters by Eq. (1) of WiSE-FT: `(1−a) · before + a · after`.

    A method with prototypes averages them too (they are unit vectors again). The optimizer's state
    is left: nothing is trained after this.

    Args:
        params, method_state: where training started.
        state: after the last step.
        fraction: a, of the adapted parameters.
    """
    if fraction == 0:  # exactly the start, not normalized once more
        return dataclasses.replace(state, params=params, method=method_state)
    mean = {
        name: (1 - fraction) * params[name] + fraction * after
        for name, after in state.params.items()
    }
    averaged = state.method
    if isinstance(method, PrototypeMethod):
        averaged = method.average(method_state, state.method, fraction)
    return dataclasses.replace(state, params=mean, method=averaged)
