"""The batches of an epoch by both presets, and what fills an epoch up."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.methods import make_method
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.train_run import total_steps
from lattec_jax.training.batches import Batches

# Training images, batches of 512 in an epoch and steps of the run: by the paper's rule (50 epochs,
# at most 2,000 steps) and by the released scripts (their epochs, an epoch rounded up to a multiple
# of their data loader's workers).
SETS = {
    "caltech101": (5_777, (11, 550), (12, 600)),
    "dtd": (3_948, (7, 350), (9, 900)),
    "eurosat": (18_900, (36, 1800), (39, 585)),
    "fgvc_aircraft": (6_667, (13, 650), (15, 750)),
    "flowers102": (5_726, (11, 550), (12, 600)),
    "food101": (70_700, (138, 2000), (141, 2115)),
    "oxford_pets": (3_680, (7, 350), (9, 900)),
    "stanford_cars": (8_144, (15, 750), (18, 900)),
    "sun397": (19_850, (38, 1900), (39, 585)),
    "ucf101": (9_537, (18, 900), (21, 1050)),
}


def run_length(
    name: str, preset: str, *overrides: str, method: str = "latteclip"
) -> tuple[int, int, int]:
    """Training images, batches of an epoch and steps of a data set's configuration."""
    file = f"--config=configs/{name}.py:preset={preset},method={method}"
    config, _ = parse(["train", file, *overrides])
    images, size = config.dataset.expected.train, config.train.batch_size
    multiple = config.train.epoch_batch_multiple
    batches = Batches(
        images, size, 0, 0, np.zeros((images, 0), np.int32), 77, epoch_batch_multiple=multiple
    )
    return (
        images,
        batches.steps_per_epoch,
        total_steps(config, make_method(config.method), images, size),
    )


@pytest.mark.parametrize("name", SETS)
def test_steps_of_the_ten_sets_by_both_presets(name):
    images, paper, released = SETS[name]
    assert run_length(name, "paper") == (images, *paper)
    assert run_length(name, "released_code") == (images, *released)
    assert run_length(name, "released_code", method="flyp") == (images, *released)


def test_reclip_keeps_its_own_epochs_under_both_presets():
    # 3,680 images in batches of 64, and 3680 // 5000 + 2 epochs.
    for preset in ("paper", "released_code"):
        assert run_length("oxford_pets", preset, method="reclip") == (3_680, 57, 114)


def epochs_of(count: int, size: int, multiple: int, epochs: int) -> list[list[np.ndarray]]:
    """The images of each batch of each epoch."""
    batches = Batches(
        count, size, 5, 0, np.zeros((count, 0), np.int32), 77, epoch_batch_multiple=multiple
    )
    steps = batches.steps_per_epoch
    hosts = [batches.at(step) for step in range(epochs * steps)]
    assert [host.ends_epoch for host in hosts] == ([False] * (steps - 1) + [True]) * epochs
    return [[h.images for h in hosts[e * steps : (e + 1) * steps]] for e in range(epochs)]


@pytest.mark.parametrize(
    ("count", "size", "multiple", "steps"),
    [
        (53, 8, 1, 7),  # 7 batches hold all images
        (53, 8, 3, 9),
        (53, 8, 4, 8),
        (48, 8, 3, 6),  # a multiple already: nothing is repeated
        (53, 53, 3, 3),  # each image three times
    ],
)
def test_an_epoch_is_filled_up_with_images_of_further_permutations(count, size, multiple, steps):
    for epoch in epochs_of(count, size, multiple, 3):
        assert [len(images) for images in epoch] == [size] * steps
        images = np.concatenate(epoch)
        seen = np.bincount(images, minlength=count)
        whole, rest = divmod(steps * size, count)
        assert sorted(seen) == [whole] * (count - rest) + [whole + 1] * rest
        assert sorted(images[:count]) == list(range(count))


def test_the_fill_is_drawn_anew_in_every_epoch_and_the_first_permutation_is_the_same():
    filled = epochs_of(53, 8, 3, 4)
    tails = [np.concatenate(epoch)[53:].tolist() for epoch in filled]
    assert len({tuple(tail) for tail in tails}) == 4
    for epoch, dropped in zip(filled, epochs_of(53, 8, 0, 4), strict=True):
        np.testing.assert_array_equal(np.concatenate(epoch)[:48], np.concatenate(dropped))


def test_a_negative_multiple_is_refused():
    with pytest.raises(
        ConfigError, match=r"train\.epoch_batch_multiple: .* from 0 to 10000, found -1"
    ):
        run_length("dtd", "paper", "--config.train.epoch_batch_multiple=-1")
