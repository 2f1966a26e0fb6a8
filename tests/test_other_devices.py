"""A run goes on with another number of devices, and with its state split or whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from lattec_jax import evaluate, train
from lattec_jax.runtime import sharding
from lattec_jax.runtime.preemption import Terminated
from lattec_jax.training.checkpoints import CheckpointManager
from lattec_jax.training.state import TrainState, init_state, state_shardings
from tests.runs import arguments, logged, run
from tests.test_resume import sigterm_in

MESHES = {"one device": (1, 1), "eight": (8, 1), "eight, fsdp 4": (8, 4), "eight, fsdp 8": (8, 8)}


def mesh_of(name: str) -> Mesh:
    devices, fsdp = MESHES[name]
    return sharding.make_mesh(fsdp, jax.devices()[:devices])


def random_state(seed: int, mesh: Mesh) -> TrainState:
    """A state whose every array is random: moments and prototypes, too."""
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (256, 96), "odd": (129, 513), "bias": (96,), "logit_scale": ()}
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    state = init_state(params, optax.adamw(1e-3), {"prototypes": jnp.ones((3, 4))}, mesh, seed=5)
    drawn = jax.tree.map(
        lambda x: x if x.dtype != np.float32 else rng.normal(size=x.shape).astype(np.float32),
        state,
    )
    return jax.device_put(drawn.replace(step=state.step + 2), state_shardings(state, mesh))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("eight", "one device"),
        ("one device", "eight"),
        ("eight", "eight, fsdp 8"),
        ("eight, fsdp 8", "eight"),
        ("eight, fsdp 8", "one device"),
        ("one device", "eight, fsdp 4"),
        ("eight, fsdp 4", "eight, fsdp 8"),
    ],
)
def test_a_checkpoint_is_equal_on_other_devices_and_lies_as_they_want(tmp_path, before, after):
    saved = random_state(1, mesh_of(before))
    with CheckpointManager(tmp_path, 2) as checkpoints:
        checkpoints.save(saved, 2, {"seconds": 1.5})
    like = random_state(2, mesh_of(after))
    assert not np.array_equal(like.params["kernel"], saved.params["kernel"])
    with CheckpointManager(tmp_path, 2) as checkpoints:
        found, beside = checkpoints.restore(like, mesh_of(after))
    assert beside == {"seconds": 1.5}
    jax.tree.map(np.testing.assert_array_equal, found, saved)
    wanted = state_shardings(like, mesh_of(after))
    assert jax.tree.all(jax.tree.map(lambda x, where: x.sharding == where, found, wanted))
    fsdp = MESHES[after][1]
    assert found.params["kernel"].addressable_shards[0].data.shape == (256 // fsdp, 96)


@pytest.mark.full
def test_a_run_goes_on_with_its_parameters_split_and_is_evaluated_elsewhere(
    trained,
    all_devices,
    monkeypatch,
    capsys,
):
    whole = run("labeled", "--workdir=whole")
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)  # so that the dummy's matrices are split
    with sigterm_in(monkeypatch, 3), pytest.raises(Terminated):
        train.main(arguments("labeled", "--workdir=moved"))
    found = run("labeled", "--workdir=moved", "--config.compute.fsdp=4")
    assert "continuing at step 3 of 6" in capsys.readouterr().out
    for one, other in zip(logged(trained / "whole"), logged(trained / "moved"), strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)
    assert found["adapted"] == whole["adapted"]
    # As on a machine that 4 does not divide.
    monkeypatch.setattr(sharding, "available_devices", lambda: jax.devices()[:1])
    evaluate.main(["evaluate", "--workdir=moved"])
    assert capsys.readouterr().out.strip() == found["table"]
