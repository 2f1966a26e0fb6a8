"""List the models of open_clip that lattec_jax can convert, as a page of Markdown.

    python -m convert.list_models > docs/models.md

Needs open_clip and torch for the list of pretrained tags.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convert import open_clip_package
from lattec_jax.models.checkpoint import expected_shapes
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.errors import WeightsError

# Models whose features are compared with open_clip's in full size (tests/models).
FULL_SIZE = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-CLIPA")

_HEAD = """\
# Models

The plain ViT CLIPs of open_clip 3.3: those without a timm tower, a Hugging Face text tower or a
multimodal decoder. This page is what `python -m convert.list_models` prints.

Parameters are in millions. "shrunken" says that a copy with few layers and small widths, all
settings of the architecture kept and every parameter random, gives open_clip's features in float32
to 1e-5, and that its weights come back from a conversion there and back bit for bit; "full size",
that the same features hold for the whole model with random weights. Pretrained weights themselves
were not at hand for any of the tests.
"""
_TOKENIZERS = """\

## Tokenizers

"CLIP" is CLIP's byte-pair tokenizer, which comes with open_clip. The others are those of the
Hugging Face hub, which conversion reads with transformers; the checkpoint directory then holds
`tokenizer.json` and needs neither. Their token ids are compared with open_clip's on tokenizers of
the same kind (WordPiece, Unigram with start and end, Unigram with an end alone) that the tests
build, not on the hub's own vocabularies.

## Pretrained tags

Any of these is a value of `config.weights`.
"""


def plain_models() -> dict[str, dict[str, Any]]:
    """Return name -> `model_cfg` of every model of open_clip that `CLIPConfig` can represent."""
    found = {}
    for name in open_clip_package.built_in_models():
        model_cfg = open_clip_package.built_in_model_cfg(name)
        try:
            CLIPConfig.from_open_clip(model_cfg, name)
        except WeightsError:
            continue
        found[name] = model_cfg
    return found


def parameters(config: CLIPConfig) -> tuple[int, int, int]:
    """Return the number of parameters of the image tower, the text tower and the full model."""
    sizes = {name: math.prod(shape) for name, shape in expected_shapes(config).items()}
    image = sum(size for name, size in sizes.items() if name.startswith("visual/"))
    text = sum(size for name, size in sizes.items() if name.startswith("text/"))
    return image, text, sum(sizes.values())


def page(models: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Sequence[str]]) -> str:
    """Render the page; `models`: see `plain_models`; `tags`: pretrained tags of each model."""
    return "\n".join([_HEAD, *_table(models, tags), _TOKENIZERS, *_tag_list(tags)]) + "\n"


def _table(
    models: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    yield (
        "| model | image M | text M | total M | input | patch | context | embedding | tokenizer "
        "| tags | tested |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|---|"
    for name, model_cfg in models.items():
        config = CLIPConfig.from_open_clip(model_cfg)
        image, text, total = (f"{count / 1e6:.1f}" for count in parameters(config))
        rows, columns = config.vision.image_size
        tested = "shrunken, full size" if name in FULL_SIZE else "shrunken"
        tokenizer = model_cfg["text_cfg"].get("hf_tokenizer_name", "CLIP")
        cells = [name, image, text, total, f"{rows}×{columns}", config.vision.patch_size]
        cells += [config.text.context_length, config.embed_dim, tokenizer, len(tags[name]), tested]
        yield f"| {' | '.join(map(str, cells))} |"
    total = sum(len(tags[name]) for name in models)
    yield f"\n{len(models)} models, {total} pretrained tags."


def _tag_list(tags: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, of_model in tags.items():
        if of_model:
            yield f"- {', '.join(f'`{name}:{tag}`' for tag in of_model)}"


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    read(argv, __doc__)
    models = plain_models()
    sys.stdout.write(
        page(models, {name: open_clip_package.pretrained_tags(name) for name in models})
    )


if __name__ == "__main__":
    command(main)
