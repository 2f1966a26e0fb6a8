"""Checkpoints of a run: the only file that calls Orbax.

Saved are the step, the seed, the parameters, the optimiser state and the method's state. Random
numbers are rebuilt from seed and step and are not saved.
"""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from lattec_jax.state import TrainState, state_shardings


class Checkpoints:
    """The checkpoints below one work directory. Saving goes on in the background; use as a
    context manager so that leaving waits for it."""

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest saved step, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int) -> None:
        """Save `state`, which may be consumed as soon as this returns."""
        self._manager.save(step, args=ocp.args.StandardSave(_as_tree(state)))

    def restore(self, like: TrainState, mesh: Mesh) -> TrainState:
        """The newest state, placed on `mesh`; `like` gives its structure and shapes."""
        shapes = jax.eval_shape(lambda s: s, like)
        target = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            state_shardings(shapes, mesh),
        )
        tree = self._manager.restore(
            self._manager.latest_step(), args=ocp.args.StandardRestore(_as_tree(target))
        )
        return TrainState(**tree)


def _as_tree(state: TrainState) -> dict:
    return {
        "step": state.step,
        "seed": state.seed,
        "params": state.params,
        "optimiser": state.optimiser,
        "method": state.method,
    }
