"""All forms of `config.weights`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from convert import hub, openclip_to_flax
from lattec_jax.data.pseudo_labels import weights_sha256
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime import weights
from lattec_jax.runtime.errors import ConfigError, WeightsError
from tests.convert.conftest import PREPROCESS_CFG, random_tensors
from tests.data import hub_tokenizers
from tests.data.text.test_tokenizer import random_texts
from tests.dummy import dummy_checkpoint
from tests.openclip_models import miniature, shrunken, use_shrunken_models

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's vocabulary file"
)
ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


def write_model(folder: Path, model_cfg: dict | None = None, seed: int = 0) -> Path:
    """OpenCLIP's two files of a small model, as on the hub; returns the weights file."""
    model_cfg = model_cfg or shrunken("ViT-B-32")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    tensors = random_tensors(CLIPConfig.from_open_clip(model_cfg), seed)
    safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


def write_hub_cache(home: Path, repository: str) -> Path:
    """The folder of a repository's files in a hub cache, the branch pointing at it."""
    repository_folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (repository_folder / "refs").mkdir(parents=True)
    (repository_folder / "refs" / "main").write_text(COMMIT)
    return repository_folder / "snapshots" / COMMIT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of conversions and an empty hub cache, without a network."""
    monkeypatch.setenv("LATTECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    # huggingface_hub has read its settings already, in this process.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def convert_here(monkeypatch, tmp_path) -> None:
    """Let conversions run in this process, which imports PyTorch once for all of them."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        interpreter, option, code, *arguments = command
        assert (interpreter, option) == (sys.executable, "-c")
        status, script = 0, tmp_path / "child.py"
        script.write_text(code)
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.setattr(sys, "argv", ["-c", *arguments])
            try:
                runpy.run_path(str(script))
            except SystemExit as ended:
                status = ended.code
        return SimpleNamespace(returncode=status)

    replaced = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(weights, "subprocess", replaced)


@pytest.fixture(params=["here", pytest.param("apart", marks=pytest.mark.full)])
def conversion(request) -> None:
    """Conversions in this process, and in the tier `full` in one of their own too."""
    if request.param == "here":
        request.getfixturevalue("convert_here")


@pytest.fixture
def no_conversion(monkeypatch):
    """Returns a function that makes any later conversion fail."""

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(weights, "_convert", refuse)


def test_a_converted_directory_is_used_as_it_is(tmp_path, cache, no_conversion):
    no_conversion()
    dummy_checkpoint().save(tmp_path / "tiny")
    assert weights.locate(str(tmp_path / "tiny")) == tmp_path / "tiny"
    assert weights.locate(tmp_path / "tiny") == tmp_path / "tiny"
    assert not cache.exists()


def test_a_file_is_converted_once_and_again_when_it_changed(tmp_path, cache, monkeypatch, capsys):
    path = write_model(tmp_path / "model")
    found = weights.locate(str(path))
    assert found.parent == cache
    assert re.fullmatch(r"open_clip_model-[0-9a-f]{12}", found.name)
    assert [entry.name for entry in cache.iterdir()] == [found.name]  # no temporary directory
    assert "converting" in capsys.readouterr().err
    openclip_to_flax.main(["", f"--pretrained={path}", f"--out={tmp_path / 'expected'}"])
    expected = Checkpoint.load(tmp_path / "expected")
    assert Checkpoint.load(found).sha256 == expected.sha256 == weights_sha256(str(path))
    assert weights.locate(os.path.relpath(path)) == found  # another path to the same file
    write_model(tmp_path / "model", seed=1)
    changed = weights.locate(path)
    assert changed != found
    assert Checkpoint.load(changed).sha256 != expected.sha256


def test_a_state_dict_of_torch(tmp_path, conversion):
    torch = pytest.importorskip("torch")
    path = write_model(tmp_path / "model")
    tensors = safetensors.numpy.load_file(path).items()
    torch.save({name: torch.from_numpy(a) for name, a in tensors}, tmp_path / "model" / "last.pt")
    found = Checkpoint.load(weights.locate(str(tmp_path / "model" / "last.pt")))
    openclip_to_flax.main(["", f"--pretrained={path}", f"--out={tmp_path / 'expected'}"])
    assert found.sha256 == Checkpoint.load(tmp_path / "expected").sha256


def test_the_hubs_cache_is_read_without_a_network(tmp_path, cache, conversion, no_conversion):
    snapshot = write_hub_cache(tmp_path / "hf", LAION)
    path = write_model(snapshot)
    found = weights.locate(f"hf:{LAION}")
    checkpoint = Checkpoint.load(found)
    assert found.name.startswith("CLIP-ViT-B-32-laion2B-s34B-b79K-")
    assert checkpoint.source["hub"] == LAION
    assert checkpoint.source["commit"] == COMMIT
    expected = safetensors.numpy.load_file(path)["visual.proj"]
    np.testing.assert_array_equal(checkpoint.params["visual/projection"], expected)
    # The conversion is enough from now on, under either spelling.
    no_conversion()
    shutil.rmtree(tmp_path / "hf")
    assert weights.locate(f"hf:{LAION}") == weights.locate(f"hf-hub:{LAION}") == found
    assert weights_sha256(f"hf:{LAION}") == checkpoint.sha256


def test_a_revision_of_the_hub(tmp_path):
    write_model(write_hub_cache(tmp_path / "hf", LAION))
    (tmp_path / "hf" / "hub" / f"models--{LAION.replace('/', '--')}" / "refs" / "main").unlink()
    assert hub.fetch(f"hf:{LAION}@{COMMIT}").parent.name == COMMIT
    with pytest.raises(WeightsError, match="not in the hub's cache"):
        hub.fetch(f"hf:{LAION}")


def test_the_hub_is_read_without_torch_jax_and_open_clip(tmp_path):
    write_model(write_hub_cache(tmp_path / "hf", LAION))
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['jax'] = None\n"
        "from convert import openclip_to_flax\n"
        "openclip_to_flax.main(['', '--pretrained=hf:' + sys.argv[1], '--out=' + sys.argv[2]])\n"
        "assert 'open_clip' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, LAION, str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert Checkpoint.load(tmp_path / "out").source["hub"] == LAION


@pytest.mark.full
def test_the_older_file_of_the_hub_needs_torch(tmp_path, conversion):
    torch = pytest.importorskip("torch")
    snapshot = write_hub_cache(tmp_path / "hf", "org/old")
    path = write_model(snapshot)
    tensors = {n: torch.from_numpy(a) for n, a in safetensors.numpy.load_file(path).items()}
    torch.save(tensors, snapshot / "open_clip_pytorch_model.bin")
    path.unlink()
    found = Checkpoint.load(weights.locate("hf:org/old"))
    assert found.source["file"] == "open_clip_pytorch_model.bin"


def test_a_missing_repository_lists_the_ways_to_get_it(tmp_path, cache, conversion):
    with pytest.raises(WeightsError) as caught:
        weights.locate(f"hf:{LAION}")
    message = str(caught.value)
    for part in (
        f"hf:{LAION} are not in the hub's cache",
        f"hf download {LAION} open_clip_config.json open_clip_model.safetensors",
        "HF_HOME",
        "--local-dir=DIR",
        f"python -m convert.openclip_to_flax --pretrained=hf:{LAION} --out=DIR",
        "--config.weights=DIR",
    ):
        assert part in message
    assert list(cache.iterdir()) == []
    # The configuration alone is not enough.
    snapshot = write_hub_cache(tmp_path / "hf", LAION)
    write_model(snapshot).unlink()
    with pytest.raises(WeightsError, match="not in the hub's cache"):
        weights.locate(f"hf:{LAION}")
    with pytest.raises(WeightsError, match="expected hf:organization/name"):
        weights.locate("hf:a/b/c")


@pytest.mark.parametrize("status", [401, 404])
def test_errors_of_the_hub_explain_what_to_do(status, monkeypatch):
    """Errors for a repository, a gate, a revision and a file."""
    import huggingface_hub
    from huggingface_hub import errors

    response = SimpleNamespace(status_code=status, headers={}, request=None)
    for error, message in (
        (errors.RepositoryNotFoundError, "no repository org/x, or it is private"),
        (errors.GatedRepoError, r"is gated: accept its terms at https://huggingface\.co/org/x"),
        (errors.RevisionNotFoundError, "no revision"),
        (errors.RemoteEntryNotFoundError, r"no open_clip_config\.json.*ViT-B-32-quickgelu:openai"),
        (errors.HfHubHTTPError, r"open_clip_config\.json of the hub's org/x: answer"),
    ):

        def answer(*_: object, error: type = error, **__: object) -> str:
            raise error("answer", response=response)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
        with pytest.raises(WeightsError, match=message):
            hub.fetch("hf:org/x")

    def only_config(_: str, name: str, **__: object) -> str:
        if name == hub.CONFIG_FILE:
            return "somewhere/commit/open_clip_config.json"
        raise errors.RemoteEntryNotFoundError("answer", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only_config)
    with pytest.raises(WeightsError, match="has neither"):
        hub.fetch("hf:org/x")


@pytest.fixture
def open_clip(monkeypatch, convert_here):
    """open_clip with miniatures of its models; nothing is downloaded."""
    return use_shrunken_models(monkeypatch)


def test_a_tag_of_open_clip(tmp_path, monkeypatch, open_clip, no_conversion):
    path = write_model(tmp_path / "model")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(path))
    found = weights.locate("ViT-B-32-quickgelu:openai")
    checkpoint = Checkpoint.load(found)
    assert found.name.startswith("ViT-B-32-quickgelu-openai-")
    assert checkpoint.config.quick_gelu
    assert checkpoint.source["pretrained"] == "openai"
    with pytest.raises(WeightsError, match=r"config\.weights: .*Did you mean 'laion2b_s34b_b79k'"):
        weights.locate("ViT-B-32:laion2b_s34b_b79")
    no_conversion()
    assert weights.locate("ViT-B-32-quickgelu:openai") == found


def test_a_tag_without_a_network(monkeypatch, open_clip):
    def offline(_: dict) -> str:
        raise OSError("Failed to download")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(WeightsError, match=rf"could not be downloaded.*hf download {LAION}.*HF_"):
        weights.locate("ViT-B-32:laion2b_s34b_b79k")


def test_unknown_weights_list_the_accepted_forms(tmp_path, cache):
    with pytest.raises(ConfigError, match=r"found nothing"):
        weights.locate("")
    for nothing in ("weights/ViT-B-32", "ViT-B-32", "weights/a:b", ":openai", "ViT-B-32:"):
        with pytest.raises(WeightsError, match=r"MODEL:TAG.*ViT-B-32:laion2b.*hf:laion/"):
            weights.locate(nothing)
    with pytest.raises(WeightsError, match=r"no file .*none\.safetensors"):
        weights.locate(str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match=r"no model 'ViTB32'.*Did you mean 'ViT-B-32'\?"):
        weights.locate("ViTB32:openai")
    assert list(cache.iterdir()) == []


def test_a_file_without_its_configuration(tmp_path):
    """The message of the conversion, and how to pass the flags that it requires."""
    path = write_model(tmp_path / "model")
    (path.parent / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError) as caught:
        weights.locate(str(path))
    assert "pass --model=NAME" in str(caught.value)
    assert f"openclip_to_flax --pretrained={path} --out=DIR" in str(caught.value)


@pytest.mark.full
def test_all_mismatched_tensors_are_listed(tmp_path):
    path = write_model(tmp_path / "model")
    tensors = safetensors.numpy.load_file(path)
    del tensors["visual.proj"], tensors["text_projection"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        weights.locate(str(path))
    for part in ("2 tensors", "missing: visual.proj", "missing: text_projection", "by hand"):
        assert part in str(caught.value)


def test_a_conversion_that_dies_is_reported(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(WeightsError, match=r"ended with status 1.*by hand"):
        weights.locate(str(write_model(tmp_path / "model")))
    assert list(cache.iterdir()) == []


@pytest.mark.full
def test_the_first_of_two_conversions_is_kept(tmp_path, monkeypatch, cache):
    path = write_model(tmp_path / "model")

    def slower(_: list[str], out: Path) -> None:
        name = out.parent.name.removeprefix(".").rpartition("-")[0]
        assert name == "open_clip_model"
        dummy_checkpoint(seed=1).save(out)
        monkeypatch.setattr(weights, "_convert", lambda _, out: dummy_checkpoint().save(out))
        weights.locate(path)

    monkeypatch.setattr(weights, "_convert", slower)
    found = Checkpoint.load(weights.locate(path))
    assert found.sha256 == dummy_checkpoint().sha256
    assert len(list(cache.iterdir())) == 1


def test_imports_neither_jax_nor_torch():
    code = (
        "import sys, lattec_jax.runtime.weights, lattec_jax.data.pseudo_labels;"
        "sys.exit(bool({'jax', 'torch', 'convert', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("kind", hub_tokenizers.KINDS)
@pytest.mark.full
def test_models_with_a_tokenizer_of_the_hub(kind, tmp_path, conversion):
    """Hub cache -> checkpoint -> OpenCLIP's files -> checkpoint, tokenizer and weights the same."""
    from convert import flax_to_openclip
    from tests.data.text.test_hub_tokenizers import corpus, reference, text_cfg

    model_cfg = miniature(hub_tokenizers.KINDS[kind])
    name = model_cfg["text_cfg"]["hf_tokenizer_name"]
    model_cfg["text_cfg"]["vocab_size"] = 1200
    original = write_model(write_hub_cache(tmp_path / "hf", "org/model"), model_cfg)
    tokenizer = write_hub_cache(tmp_path / "hf", name)
    tokenizer.parent.mkdir()
    hub_tokenizers.make(kind, tmp_path / "tokenizer", corpus()).rename(tokenizer)
    kinds = {"bert": "bert", "xlm-v": "xlm-roberta", "mt5": "mt5"}
    (tokenizer / "config.json").write_text(json.dumps({"model_type": kinds[kind]}))
    checkpoint = Checkpoint.load(weights.locate("hf:org/model"))
    strings = random_texts(300, seed=11)
    tokens = checkpoint.tokenizer(strings)
    expected = reference(text_cfg(kind), tokenizer)(strings).numpy()
    np.testing.assert_array_equal(tokens, expected)

    exported = tmp_path / "exported" / "open_clip_model.safetensors"
    flax_to_openclip.export(checkpoint, exported)
    back, before = (safetensors.numpy.load_file(file) for file in (exported, original))
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in before.items()}
    content = json.loads((exported.parent / "open_clip_config.json").read_text())
    exported_text = content["model_cfg"]["text_cfg"]
    assert exported_text["hf_tokenizer_name"] == name
    assert exported_text["tokenizer_kwargs"] == model_cfg["text_cfg"].get("tokenizer_kwargs", {})
    shutil.rmtree(tmp_path / "hf")  # the folder is enough, for us and for open_clip
    again = Checkpoint.load(weights.locate(str(exported)))
    assert again.sha256 == checkpoint.sha256
    np.testing.assert_array_equal(again.tokenizer(strings), tokens)
    from open_clip import get_tokenizer

    theirs = get_tokenizer(f"local-dir:{exported.parent}")
    np.testing.assert_array_equal(theirs(strings).numpy(), tokens)


def test_names_that_cannot_be_looked_up_are_user_errors():
    with pytest.raises(WeightsError, match="cannot be read: File name too long"):
        weights.locate("x" * 5000)
