"""No code that comes with weights runs, through transformers or the hub's client."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from convert import hub, hub_tokenizer, open_clip_package
from lattec_jax.runtime.errors import WeightsError
from tests.data import hub_tokenizers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A tokenizer that names a Python file beside it, which leaves a mark when it runs."""
    folder = tmp_path_factory.mktemp("foreign")
    corpus = ["a photo of a cat", "a drawing of a dog"]
    made = hub_tokenizers.make("bert", folder / "tokenizer", corpus, 60)
    settings = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    settings |= {"tokenizer_class": "Mine"}
    (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    code = f"open({str(folder / 'ran')!r}, 'w').close()\nclass Mine: pass\n"
    (made / "mine.py").write_text(code, encoding="utf-8")
    return made


@pytest.mark.parametrize("value", [True, "True", 1])
def test_weights_cannot_ask_for_code(tokenizer_folder, tmp_path, value):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "weights")
    config = {"hf_tokenizer_name": "bert", "tokenizer_kwargs": {"trust_remote_code": value}}
    with pytest.raises(WeightsError, match=r"trust_remote_code=.* is not read"):
        hub_tokenizer.read(config, folder, "weights.x")
    assert not (tokenizer_folder.parent / "ran").exists()


def test_code_beside_a_tokenizer_does_not_run(tokenizer_folder, tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer_class: expected .* found 'Mine'"):
        hub_tokenizer.read({"hf_tokenizer_name": "bert"}, tokenizer_folder, "weights.x")
    folder = shutil.copytree(tokenizer_folder, tmp_path / "weights")
    change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    hub_tokenizer.read({"hf_tokenizer_name": "bert"}, folder, "weights.x")
    assert not (tokenizer_folder.parent / "ran").exists()


def change(path: Path, **settings: object) -> None:
    """Set keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(content), encoding="utf-8")


def test_settings_cannot_point_out_of_the_folder(tokenizer_folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tokenizer_folder, elsewhere)
    vocabulary = json.loads((elsewhere / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["vocab"] |= {"[CLS]": 3, "[SEP]": 2}
    change(elsewhere / "tokenizer.json", **vocabulary)
    folder = shutil.copytree(tokenizer_folder, tmp_path / "weights")
    change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    expected = hub_tokenizer.read({"hf_tokenizer_name": "bert"}, folder, "weights.x")
    change(
        folder / "tokenizer_config.json",
        name_or_path=str(elsewhere),
        tokenizer_file=str(elsewhere / "tokenizer.json"),
        vocab_file=str(elsewhere / "vocab.txt"),
        special_tokens_map_file=str(elsewhere / "special_tokens_map.json"),
        chat_template="{{ 1 }}",
    )
    found = hub_tokenizer.read({"hf_tokenizer_name": "bert"}, folder, "weights.x")
    assert found.to_json() == expected.to_json()
    change(folder / "tokenizer_config.json", sp_model_file="x", extra_ids=10**12)
    with pytest.raises(WeightsError, match=r"extra_ids: expected less.*sp_model_file is not known"):
        hub_tokenizer.read({"hf_tokenizer_name": "bert"}, folder, "weights.x")


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../b", "http://a.b/c", "a/b/c", "C:\\x", "", ".", 3, ["a"]]
)
def test_weights_name_no_path_or_address_of_a_tokenizer(name, tokenizer_folder):
    for folder in (None, tokenizer_folder):
        with pytest.raises(WeightsError, match=r"expected a name of the hub"):
            hub_tokenizer.read({"hf_tokenizer_name": name}, folder, "weights.x")


def test_weights_name_no_other_repository(tokenizer_folder, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"expected one of bert-base-uncased.*found 'evil/t'"):
        hub_tokenizer.read({"hf_tokenizer_name": "evil/t"}, tmp_path, "weights.x")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tokenizer_folder, tmp_path / "roberta-base")
    with pytest.raises(WeightsError, match=r"would read \./roberta-base instead"):
        hub_tokenizer.read({"hf_tokenizer_name": "roberta-base"}, None, "weights.x")


def test_known_tokenizers_are_those_that_open_clip_names():
    pytest.importorskip("open_clip")
    configs = [
        open_clip_package.built_in_model_cfg(name) for name in open_clip_package.built_in_models()
    ]
    named = {config["text_cfg"].get("hf_tokenizer_name") for config in configs} - {None}
    assert tuple(sorted(named)) == hub_tokenizer.NAMES


@pytest.mark.parametrize("name", ["hf:../../x", "hf:http://a.b/c", "hf:/etc/x", "hf:a/b/c"])
def test_a_repository_is_no_path_and_no_address(name):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(WeightsError, match=r"expected hf:organization/name, found"):
        hub.fetch(name)


@pytest.mark.parametrize("revision", ["", "../../x", "/x", "a//b", "a?b=c", "a\nb"])
def test_a_revision_is_no_path(revision):
    with pytest.raises(WeightsError, match="expected a branch, a tag or a commit after the @"):
        hub.fetch(f"hf:a/b@{revision}")


@pytest.mark.parametrize("setting", [{"clean": 1}, {"strip_sep_token": "no"}, {"use_fast": False}])
def test_only_known_settings_of_the_right_type_are_read(setting):
    with pytest.raises(WeightsError, match="is not read; expected clean and strip_sep_token"):
        hub_tokenizer.read(
            {"hf_tokenizer_name": "x", "tokenizer_kwargs": setting}, None, "weights.x"
        )


# What a call of this name must state, and how many there are.
STATED = {
    "from_pretrained": ("trust_remote_code", False, 5),  # tokenizers, processor, model, config
    "torch.load": ("weights_only", True, 1),
    "np.load": ("allow_pickle", False, 1),
}
# Whatever of these runs what is in a file, or downloads all that a repository has.
REFUSED = ("torch.jit.load", "transformers.pipeline", "snapshot_download", "torch.hub.load")
REFUSED_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def nodes(text: str) -> list[tuple[str, ast.AST]]:
    """Calls and imports of a module by their full names; `np` stands for numpy."""
    found: list[tuple[str, ast.AST]] = []
    tree = ast.parse(text)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = (module + alias.name).replace("numpy", "np")
                found.append((full, node))
                if alias.asname or "." not in alias.name:
                    names[alias.asname or alias.name] = full
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            found.append((names.get(first, first) + dot + rest, node))
    return found


def faults(text: str) -> list[str]:
    """The calls and imports that could run what is in a file."""
    wrong = []
    for name, node in nodes(text):
        if f".{name}".endswith(tuple(f".{refused}" for refused in REFUSED)):
            wrong.append(name)
        if name.partition(".")[0] in REFUSED_MODULES:
            wrong.append(name)
        for call, (key, expected, _) in STATED.items():
            if isinstance(node, ast.Call) and f".{name}".endswith(f".{call}"):
                stated = {keyword.arg: keyword.value for keyword in node.keywords}
                value = stated.get(key)
                if not isinstance(value, ast.Constant) or value.value is not expected:
                    wrong.append(name)
    return wrong


def test_no_call_runs_what_is_in_a_file():
    counts = dict.fromkeys(STATED, 0)
    for package in ("lattec_jax", "captioning", "convert"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            assert not faults(text), path
            calls = [name for name, node in nodes(text) if isinstance(node, ast.Call)]
            for call in STATED:
                counts[call] += sum(f".{name}".endswith(f".{call}") for name in calls)
    assert counts == {call: count for call, (*_, count) in STATED.items()}


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(p)",
        "import torch as t\nt.load(p, weights_only=False)",
        "from torch import load\nload(p)",
        "import numpy as np\nnp.load(p)",
        "import numpy\nnumpy.load(p, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.jit.load(p)",
        "import transformers\ntransformers.pipeline('x')",
        "from transformers import pipeline",
        "from huggingface_hub import snapshot_download",
        "import huggingface_hub\nhuggingface_hub.snapshot_download('x')",
        "x.AutoModel.from_pretrained('x')",
    ],
)
def test_calls_that_could_are_found(text):
    assert faults(text)
