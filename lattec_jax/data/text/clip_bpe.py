"""CLIP's byte-pair tokenizer, equal to open_clip's `SimpleTokenizer` id for id."""

from __future__ import annotations

import gzip
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from lattec_jax.data.text.tokenizer import Tokenizer, start_and_end
from lattec_jax.runtime.errors import WeightsError

# CLIP's vocabulary: 256 bytes, the same 256 at the end of a word, one id per merge, two special
# tokens. open_clip's file begins with a header line and has more merges than that.
_CLIP_MERGES = 49408 - 2 * 256 - 2
_CLIP_START, _CLIP_END = "<start_of_text>", "<end_of_text>"
_END_OF_WORD = "</w>"

# Letters and numbers added by Unicode 15 to 18. open_clip's regular expressions (package `regex`)
# include them; those of the `tokenizers` library include some or none, depending on its version.
_NEW_LETTERS = (
    "558 58b-58c 88f c5c cdc 1c89-1c8a 208f 209d-209f a7cb-a7cf a7d2 a7d4 a7da-a7dd a7e2 a7f1 "
    "ab6c-ab6d 105c0-105f3 107bb-107bf 10940-10959 10d4a-10d65 10d6f-10d85 10ec2-10ec7 "
    "10ed9-10eee 1123f-11240 11380-11389 1138b 1138e 11390-113b5 113b7 113d1 113d3 11b0a "
    "11bc0-11be0 11db0-11ddb 11df1 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa "
    "16100-1611d 16d40-16d6c 16ea0-16eb8 16ebb-16ed3 16ff2-16ff3 187f8-187ff 18cd6-18cda 18cff "
    "18d09-18d20 18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b132 1b155 1b168 1d6a6 "
    "1df1f-1df81 1df90-1df96 1dfcd-1dfff 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 1e6c0-1e6de "
    "1e6e0-1e6e2 1e6e4-1e6e5 1e6e7-1e6ed 1e6f0-1e6f4 1e6fe-1e6ff 2b739-2b73f 2b81e 2cea2-2cead "
    "2ebf0-2ee5d 31350-33479 3d000-3fc3f"
)
_NEW_NUMBERS = (
    "10d40-10d49 116d0-116e3 11bf0-11bf9 11de0-11de9 11f50-11f59 1246f 12475-1247f 12550-12686 "
    "16130-16139 16d70-16d79 16ff4-16ff6 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa"
)


def clip_tokenizer(bpe_path: Path, context_length: int = 77, clean: str = "lower") -> Tokenizer:
    """Make CLIP's tokenizer from its merges. Raise WeightsError if the file has others.

    Args:
        bpe_path: open_clip's `bpe_simple_vocab_16e6.txt.gz`.
        context_length: tokens per text, start and end included.
        clean: "lower", "whitespace" or "canonicalize", as in open_clip.
    """
    with gzip.open(bpe_path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(pair[0], pair[1]) for pair in map(str.split, lines) if len(pair) == 2]
    if len(merges) != _CLIP_MERGES:
        raise WeightsError(
            f"expected {_CLIP_MERGES} merges in {bpe_path}, found another file; "
            "it should be bpe_simple_vocab_16e6.txt.gz of the open_clip_torch package"
        )
    letters = _byte_letters()
    names = [*letters, *(letter + _END_OF_WORD for letter in letters), *map("".join, merges)]
    vocabulary = {name: i for i, name in enumerate([*names, _CLIP_START, _CLIP_END])}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_clip_pattern()), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = start_and_end(vocabulary, _CLIP_START, _CLIP_END)
    return Tokenizer(backend, context_length, pad_id=0, clean=clean)


def _byte_letters() -> list[str]:
    """Return the character that stands for each byte, in the order of CLIP's first 256 ids.

    Bytes that are printable in Latin-1 come first and stand for themselves. The other bytes are
    represented by the characters from U+0100 on, so that no token contains white space or a control
    character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(i) for i in [*printable, *range(0x100, 0x100 + 256 - len(printable))]]


def _clip_pattern() -> str:
    """Return the pattern of one word: a special token, a contraction, letters, a digit, or others.

    open_clip ignores case here as the `regex` package does: "ſ" matches "s", but "ﬆ" does not match
    "st" (it would if this library ignored case), and the combining iota U+0345 matches neither
    letters nor other characters, so it is dropped.
    """
    literal = [_CLIP_START, _CLIP_END, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
    any_case = [
        "".join(f"[{c}{c.upper()}{'ſ' * (c == 's')}]" if c.isalpha() else c for c in word)
        for word in literal
    ]
    letter = r"\p{L}" + _character_ranges(_NEW_LETTERS)
    number = r"\p{N}" + _character_ranges(_NEW_NUMBERS)
    return "|".join([*any_case, f"[{letter}]+", f"[{number}]", rf"[^\s{letter}{number}\x{{345}}]+"])


def _character_ranges(ranges: str) -> str:
    """Convert hexadecimal ranges "558 58b-58c" to a part of a character class."""
    return "".join(
        "-".join(rf"\x{{{code}}}" for code in code_range.split("-"))
        for code_range in ranges.split()
    )
