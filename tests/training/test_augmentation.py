"""Crops, their distribution and flips, against PIL and torchvision."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from configs import common
from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images.image_cache import open_image_caches
from lattec_jax.data.images.preprocess import Preprocess, open_image
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.training import augmentation
from lattec_jax.training.augmentation import sample_augment_params

SIZE = (24, 32)
RATIO = (3 / 4, 4 / 3)


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Stripes, a color gradient, hard edges and noise, up to the ends of the range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 140 * np.sin(x[..., None] / (2, 5, 9) + y[..., None] / (7, 3, 4))
    waves[height // 3 : height // 2] = rng.integers(0, 256, 3)
    waves[:, width // 3 : width // 2] = 255 * rng.integers(0, 2, (height, 1, 1))
    noise = rng.integers(0, 256, (height, width, 3))
    waves[height // 2 :, width // 2 :] = noise[height // 2 :, width // 2 :]
    return np.clip(waves, 0, 255).astype(np.uint8)


# Crops ----------------------------------------------------------------------------------------


# Height and width of the image; top, left, height and width of the box.
CROPS = [
    ((50, 70), (0, 0, 50, 70)),  # all of it
    ((50, 70), (7, 11, 24, 32)),  # of the output's own size: copied
    ((50, 70), (26, 38, 24, 32)),  # the same in the last corner
    ((50, 70), (3, 5, 9, 13)),  # enlarged
    ((50, 70), (0, 61, 50, 9)),  # narrower and higher, on the right edge
    ((50, 70), (45, 0, 5, 70)),  # on the bottom edge
    ((50, 70), (49, 69, 1, 1)),  # one pixel
    ((50, 70), (10, 69, 40, 1)),  # one column
    ((96, 40), (0, 0, 96, 40)),
    ((33, 96), (1, 2, 31, 93)),  # reduced by a broken factor
    ((96, 96), (0, 0, 96, 96)),  # as large as the padded frame
    ((1, 1), (0, 0, 1, 1)),
    ((1, 96), (0, 20, 1, 60)),
]


@pytest.fixture(scope="module")
def crops():
    """What `crop_and_resize` makes of `CROPS`, once on zeros and once on loud padding."""
    crop = jax.jit(augmentation.crop_and_resize, static_argnums=2)
    boxes = np.array([box for _, box in CROPS], np.int32)
    found = []
    for padding in (0, 255):
        frames = np.full((len(CROPS), 96, 96, 3), padding, np.uint8)
        for number, ((height, width), _) in enumerate(CROPS):
            frames[number, :height, :width] = make_image(height, width, number)
        found.append(np.asarray(crop(frames, boxes, SIZE)))
    return found


@pytest.mark.parametrize("number", range(len(CROPS)))
def test_crops_are_pil_s_to_a_gray_level(crops, number):
    (height, width), (top, left, h, w) = CROPS[number]
    box = Image.fromarray(make_image(height, width, number)).crop((left, top, left + w, top + h))
    expected = np.asarray(box.resize(SIZE[::-1], Image.Resampling.BICUBIC), np.float32)
    found = crops[0][number]
    assert found.shape == (*SIZE, 3)
    assert np.array_equal(found, np.round(found)) and found.min() >= 0 and found.max() <= 255
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    if (h, w) == SIZE:
        assert difference.max() == 0


def test_padding_never_leaks_into_a_crop(crops):
    np.testing.assert_array_equal(crops[0], crops[1])


# Boxes ----------------------------------------------------------------------------------------

boxes_for = jax.jit(augmentation.random_boxes)


def boxes_of(size: tuple[int, int], scale, ratio, draws: int, seed: int = 0) -> np.ndarray:
    """Many draws for an image of one size: `[draws, 4]`."""
    sizes = np.tile(np.array(size, np.int32), (draws, 1))
    return np.asarray(boxes_for(jax.random.key(seed), sizes, scale, ratio))


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        # Mostly the first draw.
        pytest.param((240, 300), (0.08, 1.0), RATIO, marks=pytest.mark.full),
        ((180, 320), (0.6, 1.0), RATIO),  # many draws do not fit, some images fall back
        ((224, 224), (0.9, 1.0), RATIO),  # LatteCLIP's
        pytest.param((150, 100), (0.2, 0.5), (0.4, 3.0), marks=pytest.mark.full),
    ],
)
def test_boxes_are_distributed_like_torchvision_s(torchvision, size, scale, ratio):
    import torch

    draws = 4000
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    draw = torchvision.RandomResizedCrop.get_params
    theirs = np.array([draw(image, scale, ratio) for _ in range(draws)])
    ours = boxes_of(size, scale, ratio, draws)

    def metrics(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, height, width = boxes.T.astype(float)
        return {
            "area": height * width,
            "ratio": width / height,
            "height": height,
            "top": top,
            "left": left,
            # The place within the room that there is, where there is any.
            "share of top": (top / np.maximum(size[0] - height, 1))[height < size[0]],
            "share of left": (left / np.maximum(size[1] - width, 1))[width < size[1]],
        }

    for (name, one), other in zip(metrics(ours).items(), metrics(theirs).values(), strict=True):
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-3, name


def test_the_check_of_distributions_tells_another_one_apart(torchvision):
    """The bounds above are no formality: slightly other settings do not pass."""
    import torch

    torch.manual_seed(0)
    image = torch.empty(3, 240, 300)
    draw = torchvision.RandomResizedCrop.get_params
    theirs = np.array([draw(image, (0.08, 1.0), RATIO) for _ in range(4000)])
    ours = boxes_of((240, 300), (0.14, 1.0), RATIO, 4000)
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert scipy.stats.ks_2samp(*area).pvalue < 1e-6


@pytest.mark.parametrize("size", [(20, 200), (200, 20), (7, 300), (336, 3), (1, 1)])
def test_where_nothing_fits_the_box_is_torchvision_s_central_one(torchvision, size):
    import torch

    scale = (0.9, 1.0)
    expected = torchvision.RandomResizedCrop.get_params(torch.empty(3, *size), scale, RATIO)
    found = boxes_of(size, scale, RATIO, 4000)
    assert (found == expected).all()


def test_boxes_always_lie_inside():
    """For any size from one pixel up, also where the ratio leaves less than half a pixel."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [
            rng.integers(1, 337, (2400, 2)),
            rng.integers(1, 4, (1200, 2)),
            np.stack([rng.integers(1, 337, 400), np.ones(400, int)], axis=1),
        ]
    ).astype(np.int32)
    for scale, ratio in [((0.9, 1.0), RATIO), ((0.01, 1.0), (0.1, 10.0)), ((0.5, 1.0), (3.0, 4.0))]:
        boxes = np.asarray(boxes_for(jax.random.key(1), sizes, scale, ratio))
        assert boxes[:, :2].min() >= 0
        assert boxes[:, 2:].min() >= 1
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


# The whole ------------------------------------------------------------------------------------

PLAIN = augmentation.Augmentation((1.0, 1.0), (1.0, 1.0), (0.0,) * 4, 0.0, 0.0, 0.0)
# Everything that is random, and of everything enough.
ALL = augmentation.Augmentation((0.3, 1.0), RATIO, (0.5, 0.5, 0.5, 0.1), 0.8, 0.2, 0.5)


@partial(jax.jit, static_argnums=(3, 4))
def apply(key, images, sizes, size, settings):
    return augmentation.apply_augment(images, sample_augment_params(key, sizes, settings), size)


def squares() -> tuple[np.ndarray, np.ndarray]:
    """Padded square images and their sizes."""
    sides = (40, 33, 24, 8)
    frames = np.full((len(sides), 40, 40, 3), 77, np.uint8)
    for number, side in enumerate(sides):
        frames[number, :side, :side] = make_image(side, side, number)
    return frames, np.array([(side, side) for side in sides], np.int32)


def test_augment_of_whole_squares_is_the_resize():
    frames, sizes = squares()
    found = np.asarray(apply(jax.random.key(0), frames, sizes, (24, 24), PLAIN))
    for crop, frame, (side, _) in zip(found, frames, sizes, strict=True):
        image = Image.fromarray(frame[:side, :side])
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC), np.float32)
        assert np.abs(crop * 255 - expected).max() <= 1.001
    assert found.max() <= 1


def test_flips_all_or_none():
    frames, sizes = squares()
    plain = np.asarray(apply(jax.random.key(0), frames, sizes, (24, 24), PLAIN))
    every = PLAIN._replace(flip_probability=1.0)
    flipped = np.asarray(apply(jax.random.key(0), frames, sizes, (24, 24), every))
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
    assert (flipped != plain).any()


@pytest.mark.full
def test_flips_have_their_share_and_leave_the_other_parameters_alone():
    sizes = jnp.full((4000, 2), 40, jnp.int32)
    settings = ALL._replace(flip_probability=0.3)
    params = sample_augment_params(jax.random.key(4), sizes, settings)
    without = sample_augment_params(
        jax.random.key(4), sizes, settings._replace(flip_probability=0.0)
    )
    assert abs(np.mean(params.flip) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    assert abs(np.corrcoef(params.flip, params.gray)[0, 1]) < 0.08
    assert without.flip is None
    jax.tree.map(np.testing.assert_array_equal, params._replace(flip=None), without)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.9,)),
        ("scale", (1.0, 0.9)),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.5)),
        ("scale", "0.9"),
        ("ratio", (-1.0, 1.0)),
        ("ratio", ("a", "b")),
        ("color_jitter", (0.5, 0.5, 0.5)),
        ("color_jitter", (0.5, 0.5, 0.5, 0.6)),
        ("color_jitter", (-0.1, 0.0, 0.0, 0.0)),
        ("flip_probability", 1.1),
        ("grayscale_probability", -0.1),
    ],
)
def test_settings_that_no_draw_can_be_made_with(name, value):
    config = common.get_config()
    assert augmentation.Augmentation.from_config(validate(config).augment).scale == (0.9, 1.0)
    with config.ignore_type():
        config.augment[name] = value
    with pytest.raises(ConfigError, match=rf"config\.augment\.{name}: expected"):
        validate(config)


# The original images --------------------------------------------------------------------------

SHAPES = [(40, 40), (64, 48), (33, 90), (90, 31), (7, 60), (3, 5), (89, 90), (1, 33)]
MODES = ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16"]


ONCE = list(zip(SHAPES, MODES, strict=True))  # every shape and every mode
EVERY = list(itertools.product(SHAPES, MODES))


@pytest.mark.parametrize(
    "kinds", [ONCE, pytest.param(EVERY, marks=pytest.mark.full)], ids=["once", "every"]
)
def test_device_crops_are_torchvision_s_of_the_original_file(torchvision, tmp_path, kinds):
    """File to crop: through the training image cache and the device, and through PIL and
    torchvision."""
    functional = torchvision.functional
    images = []
    for number, (shape, mode) in enumerate(kinds):
        image = Image.fromarray(make_image(*shape, number))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
        elif mode in ("LA", "RGBA"):
            image.putalpha(image.convert("L"))
        suffix = "tiff" if mode in ("CMYK", "I;16") else "png"
        path = tmp_path / f"{number:03d}.{suffix}"
        (image if mode == "I;16" else image.convert(mode)).save(path)
        images.append(path)
    split = Split(tuple(path.name for path in images), tuple(images), None)
    preprocess = Preprocess(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    cache = open_image_caches(split, tmp_path / "image_caches", preprocess, 90).training
    settings = PLAIN._replace(scale=(0.3, 1.0), ratio=RATIO, flip_probability=0.5)
    params = sample_augment_params(jax.random.key(11), jnp.asarray(cache.sizes), settings)
    assert 0.15 < np.mean(params.flip) < 0.85
    crops = jax.jit(augmentation.apply_augment, static_argnums=2)(cache.pixels, params, SIZE)
    differences = []
    for path, crop, box, flip in zip(images, crops, params.boxes, params.flip, strict=True):
        original = open_image(path).convert("RGB")
        expected = functional.resized_crop(
            original, *map(int, box), SIZE, torchvision.InterpolationMode.BICUBIC
        )
        if flip:
            expected = functional.hflip(expected)
        differences.append(np.abs(np.asarray(crop) * 255 - np.asarray(expected, np.float32)))
    assert np.max(differences) <= 1.001
    assert max(d.mean() for d in differences) <= 0.02


def test_grayscale_all_or_none():
    frames, sizes = squares()
    plain = np.asarray(apply(jax.random.key(0), frames, sizes, (24, 24), PLAIN))
    gray = np.asarray(
        apply(jax.random.key(0), frames, sizes, (24, 24), PLAIN._replace(grayscale_probability=1.0))
    )
    assert (plain.max(axis=-1) > plain.min(axis=-1)).any(axis=(1, 2)).all()
    for color, level in zip(plain, gray, strict=True):
        image = Image.fromarray(np.round(color * 255).astype(np.uint8)).convert("L")
        expected = np.asarray(image, np.float32)[..., None] / 255
        np.testing.assert_allclose(level, np.broadcast_to(expected, level.shape), atol=1e-6)


def test_the_key_decides_everything():
    frames, sizes = squares()
    one, again, other = (
        np.asarray(apply(jax.random.key(seed), frames, sizes, (24, 24), ALL)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other).max(axis=(1, 2, 3)) > 0.05).all()
    # Equal images in one batch get draws of their own.
    same = np.asarray(
        apply(jax.random.key(5), frames[:1].repeat(4, 0), sizes[:1].repeat(4, 0), (24, 24), ALL)
    )
    assert all(np.abs(a - b).max() > 0.05 for a, b in itertools.combinations(same, 2))


def test_the_crops_of_microbatches_are_those_of_the_batch():
    images, sizes = squares()
    params = jax.jit(sample_augment_params, static_argnums=2)(jax.random.key(2), sizes, ALL)
    crop = jax.jit(augmentation.apply_augment, static_argnums=2)
    num_microbatches = [
        crop(images[i::2], jax.tree.map(lambda x, i=i: x[i::2], params), (24, 24)) for i in (0, 1)
    ]
    whole = apply(jax.random.key(2), images, sizes, (24, 24), ALL)
    np.testing.assert_array_equal(whole[0::2], num_microbatches[0])
    np.testing.assert_array_equal(whole[1::2], num_microbatches[1])
