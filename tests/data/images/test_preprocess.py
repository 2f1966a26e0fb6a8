"""The evaluation transform against open_clip's, to the pixel; and what cannot be read."""

from __future__ import annotations

import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from lattec_jax.data.images import preprocess as preprocess_module
from lattec_jax.data.images.preprocess import Preprocess, UnreadableImage, open_image
from lattec_jax.runtime.errors import WeightsError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SIZES = [
    (1, 1),
    (1, 40),
    (53, 1),
    (3, 5),
    (7, 2),
    (24, 24),
    (25, 24),
    (41, 300),
    (333, 97),
    (640, 480),
]
MODES = ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"]


def make_image(size: tuple[int, int], mode: str) -> Image.Image:
    """A generated image with smooth and noisy parts."""
    rng = np.random.default_rng([*size, len(mode)])
    width, height = size
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    values = np.where(rng.random((height, width, 1)) < 0.3, rng.integers(0, 256, 3), smooth)
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width)).astype(np.uint8)))
    return image.convert(mode)


def preprocess(size, **settings) -> Preprocess:
    return Preprocess(size=size, mean=MEAN, std=STD, **settings)


@pytest.fixture(scope="module")
def image_transform():
    pytest.importorskip("torch")
    from tests.torch_fix import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    return pytest.importorskip("open_clip.transform").image_transform


def images(sizes: int) -> list[tuple[str, Image.Image]]:
    """Images of so many sizes, each in 8 modes."""
    rng = np.random.default_rng(7)
    more = [tuple(int(n) for n in rng.integers(1, 160, 2)) for _ in range(sizes - len(SIZES))]
    return [(f"{s} {m}", make_image(s, m)) for s, m in itertools.product(SIZES + more, MODES)]


def normalizations() -> list[tuple[tuple, tuple]]:
    """Every pair of mean and deviation among open_clip's pretrained weights."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    found = {}
    for model, tag in list_pretrained():
        ours = Preprocess.from_open_clip(get_pretrained_cfg(model, tag), 24)
        found[ours.mean, ours.std] = None
    return list(found)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("sizes", [len(SIZES), pytest.param(25, marks=pytest.mark.full)])
def test_pixels_equal_open_clip(image_transform, interpolation, resize_mode, sizes):
    """Before normalization to the bit, and after it, for every mean and deviation in use."""
    pairs = normalizations()
    assert len(pairs) >= 3
    ours = preprocess((24, 24), interpolation=interpolation, resize_mode=resize_mode)
    settings = {"interpolation": interpolation, "resize_mode": resize_mode}
    transforms = [image_transform(24, is_train=False, mean=m, std=s, **settings) for m, s in pairs]
    compared, chosen = 0, images(sizes)
    for name, image in chosen:
        found = ours.pixels(image)
        assert found.dtype == np.uint8 and found.shape == (24, 24, 3)
        try:
            prepared = transforms[0].transforms[:-1]
            whole = image.copy()
            for operation in prepared:
                whole = operation(whole)
        except ValueError:
            # A side that shrinks to nothing: open_clip fails, here one pixel is left.
            assert resize_mode == "longest" and max(image.size) > 24 * min(image.size), name
            continue
        expected = np.rint(whole.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
        np.testing.assert_array_equal(found, expected, err_msg=name)
        for (mean, std), transform in zip(pairs, transforms, strict=True):
            values = (found / np.float32(255) - np.float32(mean)) / np.float32(std)
            theirs = transform.transforms[-1](whole).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(values, theirs, atol=1e-6, rtol=0, err_msg=name)
        compared += 1
    assert compared >= (0.8 if resize_mode == "longest" else 1) * len(chosen)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_of_oblong_inputs_equal_open_clip(image_transform, interpolation, resize_mode):
    settings = {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": 77}
    transform = image_transform((24, 36), is_train=False, mean=MEAN, std=STD, **settings)
    transform.transforms = transform.transforms[:-1]  # without normalization
    ours = preprocess((24, 36), **settings)
    for shape, mode in itertools.product(SIZES[3:8], MODES):
        expected = transform(make_image(shape, mode)).numpy().transpose(1, 2, 0) * 255
        found = ours.pixels(make_image(shape, mode))
        np.testing.assert_array_equal(found, np.rint(expected).astype(np.uint8), f"{shape} {mode}")


def test_the_order_of_operations_shows():
    """Resizing before turning to RGB differs from the reverse: the test above can fail."""
    image = make_image((333, 97), "P")
    ours = preprocess((24, 24))
    assert (ours.pixels(image) != ours.pixels(image.convert("RGB"))).any()


def test_dictionaries_round_trip():
    ours = preprocess((24, 36), interpolation="bilinear", resize_mode="longest", fill_color=3)
    assert Preprocess.from_dict(ours.to_dict()) == ours
    with pytest.raises(WeightsError, match="convert the weights again"):
        Preprocess.from_dict({"size": [1, 2]})
    with pytest.raises(WeightsError, match="convert the weights again"):
        Preprocess.from_dict({**ours.to_dict(), "crop": 1})


def test_from_open_clip():
    found = Preprocess.from_open_clip({"mean": 0.5, "interpolation": "random", "size": 1}, 224)
    assert found.size == (224, 224)
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.interpolation == "bicubic" and found.resize_mode == "shortest"
    assert found.std == (0.26862954, 0.26130258, 0.27577711)
    with pytest.raises(WeightsError, match=r"interpolation.*nearest"):
        Preprocess.from_open_clip({"interpolation": "nearest"}, (24, 24))


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    make_image((64, 48), "RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_format_opens(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        path = tmp_path / "image.jpg"  # what counts is the content
        path.write_bytes(encoded(kind))
        image = open_image(path)
        assert image.size == (64, 48)
        assert preprocess((24, 24)).pixels(image).shape == (24, 24, 3)


def test_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=exif))
    assert open_image(tmp_path / "a.jpg").size == (64, 48)


def bomb() -> bytes:
    """A BMP whose header states 60000 × 60000 pixels."""
    content = bytearray(encoded("BMP"))
    content[18:26] = (60000).to_bytes(4, "little") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html>no image</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded("JPEG")[:-300], "OSError: image file is truncated"),
        (encoded("PNG")[:300], "OSError"),
        (encoded("PNG")[:20], "ValueError|OSError"),
        (encoded("WEBP")[:60], "OSError"),
        (bomb(), "DecompressionBombError"),
    ],
    ids=["empty", "html", "eps", "jpeg", "png", "png-header", "webp", "bomb"],
)
def test_damaged_files(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_image(path)
    assert str(path) in str(caught.value) and str(path) not in caught.value.reason


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImage, match="regular file, found a directory"):
        open_image(tmp_path)


def damaged(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    kind = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")[seed % 6]
    content = bytearray(encoded(kind))
    if rng.random() < 0.3:
        return bytes(content[: rng.integers(len(content))])
    for _ in range(rng.integers(1, 20)):
        content[rng.integers(min(len(content), (64, 600, 10**6)[seed % 3]))] = rng.integers(256)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.full)])
def test_random_damage_is_either_read_or_reported(tmp_path, count):
    path = tmp_path / "damaged"
    outcomes = []
    for seed in range(count):
        path.write_bytes(damaged(seed))
        try:
            outcomes.append(open_image(path).size[0] > 0)
        except UnreadableImage as error:
            assert error.reason and "\n" not in error.reason
            outcomes.append(False)
    assert 0.1 < np.mean(outcomes) < 0.9  # both happen


def test_the_first_image_with_16_bits_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(preprocess_module, "_warned_of_16_bits", threading.Event())
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 9), 40_000, np.uint16)).save(tmp_path / name)
        assert open_image(tmp_path / name).mode == "I;16"
    (record,) = caplog.records
    assert "a.png has 16 bits per pixel: values above 255 become white" in record.getMessage()
