"""Six steps by the preset "released_code" against the authors' loop, stated in `released.py`.

The loop of the release has two bugs in the weights of the class texts, which are not reproduced
here. Without them both agree; with either of them they do not.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.names import to_open_clip
from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.methods import make_method
from lattec_jax.methods.base import Targets
from lattec_jax.models.clip import define
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import parse
from lattec_jax.training.batches import Batches
from lattec_jax.training.state import init_state, learning_rate_schedule, make_optimizer
from lattec_jax.training.step import Batch, DeviceData, StepSettings, make_train_step
from tests.openclip_models import flat_params, random_open_clip, shrunken

torch = pytest.importorskip("torch")
from tests.methods import released  # noqa: E402 (needs torch)

# B = D, or the bug along D would not run.
N, B, D, C, KINDS, STEPS = 60, 24, 24, 5, 2, 6
VOCABULARY = 600
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)


class Setting(NamedTuple):
    """A tiny model, its data and the batches, and what six steps of ours make of them."""

    model: object  # of open_clip
    class_tokens: np.ndarray
    epochs: list[list[released.Batch]]
    train: object  # the section `config.train`
    ours: released.Outcome
    start: dict[str, np.ndarray]  # the parameters before, by open_clip's names


def tokens_of(rng: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """Token matrices of random words."""
    tokens = np.zeros((count, 77), np.int32)
    for row in tokens:
        used = rng.integers(4, longest + 1)
        row[:used] = rng.integers(1, VOCABULARY - 2, used)
        row[0], row[used - 1] = VOCABULARY - 2, VOCABULARY - 1
    return tokens


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small cost PyTorch's threads ten times the work itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def setting(one_thread) -> Setting:
    config, _ = parse(
        [
            "train",
            "--config=configs/folder.py:preset=released_code",
            f"--config.train.batch_size={B}",
            "--config.train.learning_rate=1e-3",
            "--config.train.warmup_steps=2",
        ]
    )
    assert config.train.epoch_batch_multiple == 3  # 60 images make 3 batches of 24
    model_config = shrunken("ViT-B-32", {"layers": 1}, {"layers": 1, "vocab_size": VOCABULARY})
    model = random_open_clip(model_config)
    ours, params = flat_params(model, model_config)
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (N, 32, 32, 3)).astype(np.uint8)
    class_tokens = tokens_of(rng, C, 9)
    description_tokens = tokens_of(rng, N * KINDS, 20)
    zero_shot = rng.integers(0, C, N).astype(np.int32)
    batches = Batches(
        N,
        B,
        seed=1,
        steps=STEPS,
        lengths=text_lengths(description_tokens, ours.text).reshape(N, KINDS),
        context_length=77,
        redraw=(1,),
        labels=zero_shot,
        epoch_batch_multiple=config.train.epoch_batch_multiple,
    )
    hosts = [batches.at(step) for step in range(STEPS)]
    assert [host.ends_epoch for host in hosts] == [False, False, True] * 2

    def theirs(host) -> released.Batch:
        images = (pixels[host.images] / 255 - np.array(MEAN)) / np.array(STD)
        of_image, of_group = (description_tokens.reshape(N, KINDS, 77)[:, k] for k in range(KINDS))
        return released.Batch(
            torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)),
            torch.from_numpy(of_image[host.text_images[:, 0]]).long(),
            torch.from_numpy(of_group[host.text_images[:, 1]]).long(),
            zero_shot[host.images].tolist(),
        )

    epochs = [[theirs(host) for host in hosts[:3]], [theirs(host) for host in hosts[3:]]]
    with torch.no_grad():
        first = model.encode_text(torch.from_numpy(class_tokens).long(), normalize=True).numpy()

    mesh = sharding.make_mesh(1, jax.devices()[:1])
    method, schedule = make_method(config.method), learning_rate_schedule(config.train, STEPS)
    optimizer = make_optimizer(config.train, schedule)
    step = make_train_step(
        define(ours, mesh=mesh),
        method,
        optimizer,
        schedule,
        StepSettings((32, 32), MEAN, STD, None),
        mesh,
    )
    device_data = DeviceData(
        class_tokens=jnp.asarray(class_tokens[:, :9]),
        description_tokens=jnp.asarray(description_tokens),
        present=jnp.ones((N, KINDS), bool),
        targets=Targets(jnp.asarray(zero_shot)),
        pixels=jnp.asarray(pixels),
        sizes=None,
    )
    state = init_state(
        sharding.shard_params(params, mesh), optimizer, method.init(jnp.asarray(first), N), mesh
    )
    losses = []
    for host in hosts:
        batch = Batch(
            images=jnp.asarray(host.images),
            text_indices=tuple(map(jnp.asarray, host.text_indices)),
            text_positions=jnp.asarray(host.text_positions),
            text_images=jnp.asarray(host.text_images),
            ends_epoch=jnp.asarray(host.ends_epoch),
            is_logged=jnp.asarray(True),
        )
        state, metrics = step(state, device_data, batch, host.bucket_lengths)
        losses.append(float(metrics["loss"]))
    moved = {name: np.asarray(value) for name, value in state.params.items()}
    outcome = released.Outcome(losses, np.asarray(state.method.current), to_open_clip(moved, ours))
    return Setting(model, class_tokens, epochs, config.train, outcome, to_open_clip(params, ours))


class Difference(NamedTuple):
    """Between six steps of the released loop and ours."""

    losses: float  # the largest, of any step
    prototypes: float  # the largest, of any coordinate
    params: float  # Euclidean, relative to the distance that ours moved


def difference(setting: Setting, *bugs: str) -> Difference:
    theirs = released.train(
        copy.deepcopy(setting.model),
        torch.from_numpy(setting.class_tokens).long(),
        setting.epochs,
        learning_rate=setting.train.learning_rate,
        warmup=setting.train.warmup_steps,
        weight_decay=setting.train.weight_decay,
        bugs=bugs,
    )
    ours, start = setting.ours, setting.start

    def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
        squares = [np.sum((one[k].astype(np.float64) - other[k]) ** 2) for k in start]
        return float(np.sqrt(sum(squares)))

    found = Difference(
        float(np.abs(np.subtract(theirs.losses, ours.losses)).max()),
        float(np.abs(theirs.prototypes - ours.prototypes).max()),
        distance(theirs.params, ours.params) / distance(start, ours.params),
    )
    print(bugs, found)
    return found


def test_without_its_slips_the_released_loop_and_the_preset_agree(setting):
    """Measured: 5e-7, 1.5e-7 and 2e-5."""
    found = difference(setting)
    assert found.losses <= 4e-6
    assert found.prototypes <= 1.5e-6
    assert found.params <= 2e-4


@pytest.mark.parametrize("bug", [released.ALONG_FEATURES, released.WEIGHTS_OF_CURRENT])
def test_with_either_bug_they_do_not(setting, bug):
    """Measured: at least 0.025, 0.022 and 0.56."""
    found = difference(setting, bug)
    assert found.losses > 2e-3
    assert found.prototypes > 2e-3
    assert found.params > 0.05
