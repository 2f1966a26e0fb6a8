"""Small tokenizers of the kinds that open_clip's models name on the hub, made without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.torch_fix import define_missing_torchvision_operators

# Of each kind: open_clip's model, the name on the hub, and what the miniature's vocabulary needs.
KINDS = {
    "bert": "ViT-L-14-CLIPA",
    "xlm-v": "ViT-H-14-worldwide",
    "mt5": "ViT-L-14-worldwide",
}
_SENTENCEPIECE = {
    # kind -> vocabulary file, class, ids of (unk, start, end, pad) inside the sentencepiece model
    "xlm-v": ("sentencepiece.bpe.model", "XLMRobertaTokenizer", (0, 1, 2, -1)),
    "mt5": ("spiece.model", "T5Tokenizer", (2, -1, 1, 0)),
}


def transformers() -> Any:
    """The module; skips the test where it is not installed."""
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    return pytest.importorskip("transformers")


def make(kind: str, folder: Path, corpus: Sequence[str], vocabulary: int = 900) -> Path:
    """Write a tokenizer of `kind`, as `save_pretrained` does, with at most `vocabulary` ids."""
    folder.mkdir(parents=True)
    if kind == "bert":
        _bert(corpus, vocabulary).save_pretrained(folder)
        return folder
    raw = folder.parent / f"{folder.name}-sentencepiece"
    raw_sentencepiece(kind, raw, corpus, vocabulary)
    transformers().AutoTokenizer.from_pretrained(str(raw)).save_pretrained(folder)
    return folder


def raw_sentencepiece(kind: str, folder: Path, corpus: Sequence[str], vocabulary: int) -> None:
    """A folder with nothing but a sentencepiece model, as google/mt5-base is on the hub."""
    transformers()
    sentencepiece = pytest.importorskip("sentencepiece")
    file, name, (unknown, start, end, pad) = _SENTENCEPIECE[kind]
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "trained"),
        # XLM-R's tokenizer adds a padding and a mask token to the model's pieces.
        vocab_size=vocabulary - 2 * (kind == "xlm-v"),
        hard_vocab_limit=False,
        character_coverage=0.98,
        unk_id=unknown,
        bos_id=start,
        eos_id=end,
        pad_id=pad,
        minloglevel=2,
    )
    (folder / "trained.model").rename(folder / file)
    (folder / "trained.vocab").unlink()
    settings = {"tokenizer_class": name, **({"extra_ids": 0} if kind == "mt5" else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _bert(corpus: Sequence[str], vocabulary: int) -> Any:
    """Word pieces of the most frequent characters and words."""
    import tokenizers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(
        corpus, vocab_size=vocabulary, limit_alphabet=200, special_tokens=special
    )
    ids = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return transformers().BertTokenizer(vocab={token: row for row, (token, _) in enumerate(ids)})
