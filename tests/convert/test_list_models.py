from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from convert import list_models
from lattec_jax.models.config import CLIPConfig
from tests.torch_fix import define_missing_torchvision_operators

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's model configurations"
)
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "models.md"


def test_the_page_is_what_the_command_prints(capsys):
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    list_models.main(["list_models"])
    printed = capsys.readouterr().out
    assert printed == PAGE.read_text(encoding="utf-8"), (
        "make it again: python -m convert.list_models > docs/models.md"
    )
    assert "45 models, 92 pretrained tags." in printed
    assert "`ViT-B-32:laion2b_s34b_b79k`" in printed


def test_parameters_of_known_models():
    """As published: 151.28 million for ViT-B-32, 427.62 for ViT-L-14."""
    models = list_models.plain_models()
    sizes = {
        name: list_models.parameters(CLIPConfig.from_open_clip(models[name]))
        for name in ("ViT-B-32", "ViT-L-14")
    }
    assert sizes["ViT-B-32"][2] == 151_277_313
    assert sizes["ViT-L-14"][2] == 427_616_513
    assert all(image + text + 1 == total for image, text, total in sizes.values())
