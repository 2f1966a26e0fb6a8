"""State dicts that torch saved: what is read, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from convert import sources, torch_file
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime.errors import WeightsError
from tests.convert.conftest import to_flax

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's model configurations"
)


def test_torch_files(hub_folder, tmp_path):
    torch = pytest.importorskip("torch")
    weights = hub_folder / "open_clip_model.safetensors"
    arrays = safetensors.numpy.load_file(weights).items()
    tensors = {name: torch.from_numpy(array) for name, array in arrays}
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'expected'}")
    expected = Checkpoint.load(tmp_path / "expected").sha256
    plain = hub_folder / "epoch_3.pt"
    for content in (
        tensors,
        {"epoch": 3, "state_dict": {f"module.{k}": t for k, t in tensors.items()}},
    ):
        torch.save(content, plain)
        to_flax(f"--pretrained={plain}", f"--out={tmp_path / 'flax'}")
        assert Checkpoint.load(tmp_path / "flax").sha256 == expected
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, plain)
    to_flax(f"--pretrained={plain}", f"--out={tmp_path / 'flax'}")
    half = Checkpoint.load(tmp_path / "flax")
    assert half.source["converted_to_float32_from"] == {"bfloat16": len(tensors)}
    np.testing.assert_array_equal(
        half.params["visual/projection"], tensors["visual.proj"].bfloat16().float().numpy()
    )
    torch.save({"model": torch.nn.Linear(2, 2)}, plain)
    with pytest.raises(WeightsError, match="only tensors are read"):
        to_flax(f"--pretrained={plain}", f"--out={tmp_path / 'flax'}")
    torch.save([1, 2], plain)
    with pytest.raises(WeightsError, match="state dict"):
        to_flax(f"--pretrained={plain}", f"--out={tmp_path / 'flax'}")
    plain.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"epoch_3\.pt cannot be read"):
        to_flax(f"--pretrained={plain}", f"--out={tmp_path / 'flax'}")


def test_torch_script_archives_are_refused(hub_folder, tmp_path):
    archive = hub_folder / "ViT-B-32.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ViT-B-32/code/__torch__.py", "")
        file.writestr("ViT-B-32/data.pkl", b"")
    with pytest.raises(WeightsError, match=r"TorchScript archive.*--pretrained=openai"):
        to_flax(f"--pretrained={archive}", f"--out={tmp_path / 'flax'}")


def damaged(tmp_path, content) -> str:
    """Return the error message for a .pt file with such content, beside a configuration."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        sources.read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "weights_only" not in message
    assert message.isprintable() and len(message) < 1500
    return message


def test_damaged_torch_files_are_user_errors(tmp_path):
    torch = pytest.importorskip("torch")
    assert "cannot be read as a state dict" in damaged(tmp_path, b"")
    assert "cannot be read as a state dict" in damaged(tmp_path, b"\x80\x02.")
    archive = io.BytesIO()
    torch.save({"w": torch.zeros(9)}, archive)
    content = archive.getvalue()
    assert "cannot be read" in damaged(tmp_path, content[:-30])
    assert "damaged zip file" in damaged(tmp_path, content[:-60] + b"\xff" * 20 + content[-40:])
    # What is more than tensors is not run, and nobody is told to run it.
    message = damaged(tmp_path, {"model": torch.nn.Linear(2, 2)})
    assert "only tensors are read" in message and "state dict only" in message


def test_compressed_archives_are_refused(tmp_path):
    """They may expand to any size."""
    torch = pytest.importorskip("torch")
    plain = io.BytesIO()
    torch.save({"w": torch.zeros(10**6)}, plain)
    packed = io.BytesIO()
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    assert "compressed zip file" in damaged(tmp_path, packed.getvalue())


def test_entries_that_share_a_record_are_refused_before_they_are_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    content = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, content)
    with zipfile.ZipFile(content, "a") as archive:
        stored = next(item for item in archive.infolist() if item.filename.endswith("data/0"))
        for number in range(1, 400):
            shared = copy.copy(stored)
            shared.filename = shared.orig_filename = f"{stored.filename[:-1]}{number}"
            archive.filelist.append(shared)
        archive.writestr("last", b"")  # so that the directory is written again

    def read(*_: object, **__: object) -> None:
        raise AssertionError("torch reads it")

    monkeypatch.setattr(torch, "load", read)
    assert "entries overlap" in damaged(tmp_path, content.getvalue())


def test_the_torch_file_that_was_checked_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("there is no path to a descriptor")
    for number, name in enumerate(["w.pt", "other"]):
        torch.save({"w": torch.full((3,), float(number))}, tmp_path / name)
    judge = torch_file._is_torch_script

    def swapping(*arguments) -> bool:
        os.replace(tmp_path / "other", tmp_path / "w.pt")
        return judge(*arguments)

    monkeypatch.setattr(torch_file, "_is_torch_script", swapping)
    assert not sources.read_tensors(tmp_path / "w.pt")["w"].any()


def test_files_of_old_versions_of_torch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(sources.read_tensors(tmp_path / "w.pt")["w"], np.ones(3))


def test_tensors_that_are_no_plain_weights_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.ones(4, 4)
    good = {"good": weight}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        others = {
            "nested": (nested, "nested"),
            "sparse": (weight.to_sparse(), "torch.sparse_coo"),
            "quantized": (quantized, "quantized"),
            "float8": (weight.to(torch.float8_e4m3fn), "float8_e4m3fn"),
            "complex": (weight.to(torch.complex64), "complex64"),
            "meta": (weight.to("meta"), "meta"),
        }
        for name, (tensor, kind) in others.items():
            message = damaged(tmp_path, {**good, name: tensor})
            assert f"found {name} (" in message and kind in message
    assert "dictionary of tensors" in damaged(tmp_path, {**good, 3: weight})
    shared = torch.ones(1).expand(10**6, 10**6)
    assert "many more than the file" in damaged(tmp_path, {"w": shared})
    weight[2, 2] = float("nan")
    assert "NaN or infinity in good" in damaged(tmp_path, good)


def test_parameters_are_read_as_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    parameters = {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)}
    torch.save(parameters, tmp_path / "w.pt")
    found = sources.read_tensors(tmp_path / "w.pt")
    np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3).T)
