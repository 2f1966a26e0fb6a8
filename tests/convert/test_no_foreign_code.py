"""Nothing that comes with weights runs: not through transformers, not through the hub's client."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from convert import hub
from lattec_jax.errors import WeightsError
from tests import hub_tokenizers

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
        hub.tokenizer(config, folder, "weights.x")
    assert not (tokenizer_folder.parent / "ran").exists()


def test_code_beside_a_tokenizer_does_not_run(tokenizer_folder):
    with pytest.raises(WeightsError, match=r"weights\.x: the tokenizer bert cannot be read"):
        hub.tokenizer({"hf_tokenizer_name": "bert"}, tokenizer_folder, "weights.x")
    assert not (tokenizer_folder.parent / "ran").exists()


@pytest.mark.parametrize("setting", [{"clean": 1}, {"strip_sep_token": "no"}, {"use_fast": False}])
def test_only_known_settings_of_the_right_type_are_taken(setting):
    with pytest.raises(WeightsError, match="is not read; expected clean and strip_sep_token"):
        hub.tokenizer({"hf_tokenizer_name": "x", "tokenizer_kwargs": setting}, None, "weights.x")


def test_every_call_that_loads_from_the_hub_refuses_code():
    calls = []
    for package in ("lattec_jax", "captioning", "convert"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = isinstance(node, ast.Call) and getattr(node.func, "attr", "")
                if name == "from_pretrained":
                    calls.append((f"{path.name}:{node.lineno}", node))
    assert len(calls) == 4  # a tokenizer, a processor, a model and its configuration
    for where, node in calls:
        stated = {keyword.arg: keyword.value for keyword in node.keywords}
        value = stated.get("trust_remote_code")
        assert isinstance(value, ast.Constant) and value.value is False, where
