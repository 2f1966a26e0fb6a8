"""The word-level tokenizer of CLIPs with a small vocabulary, such as the demo's."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from lattec_jax.data.text.tokenizer import Tokenizer, start_and_end


def word_tokenizer(words: Sequence[str], context_length: int) -> Tokenizer:
    """Make a tokenizer with one token per word.

    Texts are lower-cased. Characters other than letters and digits separate words and are dropped.
    A word that is not in `words` becomes `[unk]`. Ids: `[pad]` 0, `[unk]` 1, `[start]` 2, the words
    in their order, then `[end]`: the largest id, which a text tower with pool "argmax" looks for.
    """
    word_pattern = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]+"), "removed", invert=True)
    wrong = [
        word
        for word in words
        if word != word.lower() or [w for w, _ in word_pattern.pre_tokenize_str(word)] != [word]
    ]
    if wrong or len(set(words)) != len(words):
        raise ValueError(f"expected different lower-case words of letters and digits; see {wrong}")
    names = ["[pad]", "[unk]", "[start]", *words, "[end]"]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    backend.pre_tokenizer = word_pattern
    backend.post_processor = start_and_end(vocabulary, "[start]", "[end]")
    return Tokenizer(backend, context_length, pad_id=0, clean="lower")
