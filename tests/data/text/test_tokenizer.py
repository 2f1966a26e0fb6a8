from __future__ import annotations

import functools
import importlib.util
import json
import random
import sys
import unicodedata

import numpy as np
import pytest

from convert.open_clip_package import open_clip_folder
from lattec_jax.data.text.clip_bpe import clip_tokenizer
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.runtime.errors import WeightsError
from tests.torch_fix import define_missing_torchvision_operators

WORDS = ["a", "digit", "with", "two", "loops"]
UNUSED = ("Cn", "Co")  # categories of characters: not assigned, private

needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's vocabulary file"
)


@functools.cache
def make_clip_tokenizer(**settings) -> Tokenizer:
    return clip_tokenizer(open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz", **settings)


@pytest.fixture(scope="module")
def simple_tokenizer():
    """open_clip's SimpleTokenizer class, each made once."""
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    return functools.cache(pytest.importorskip("open_clip.tokenizer").SimpleTokenizer)


FRAGMENTS = [
    *(
        "it's",
        "IT'S",
        "don't",
        "WE'RE",
        "I'Ve",
        "i'm",
        "they'll",
        "he'D",
        "'s't",
        "''ll",
        "o'clock",
    ),
    *("'ſ", "it’s", "‘quoted’", "“curly”", "'", "''", "x'", "'re-entry", "ſ", "K", "ﬁ", "ﬆ", "ß"),
    *("&amp;", "&amp;amp;", "&amp;amp;amp;", "&lt;b&gt;", "&#39;", "&#x27;s", "&nbsp;", "&quot;"),
    *("&hearts;", "&notanentity;", "&#xD800;", "&#0;", "&eacute;", "&amp;#39;t", "&", "AT&T"),
    *(
        "😀",
        "👩‍👩‍👧‍👦",
        "🇫🇷",
        "👍🏽",
        "☃️",
        "日本語",
        "汉字",
        "한국어",
        "ไทย",
        "العربية",
        "עברית",
        "हिन्दी",
    ),
    *("e\u0301", "a\u0345", "\u0345", "İ", "ı", "Å", "Å", "ǅ", "Ⅷ", "½", "٣", "१२", "²", "①"),
    *("â€™", "Ã©", "schÃ¶n", "â€œmojibakeâ€\x9d", "ðŸ˜€", "Â£5", "ï»¿", "l’Ã©tÃ©", "\ufeff"),
    *("\x00", "\x01", "\x1b[31m", "\x1c", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\ufffd"),
    *("0", "42", "3.14", "1,000", "2e10", "１２", "C3PO", "mp3", "a1b2", "007"),
    *("<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "<start_OF_text>", "<end_of_text"),
    *("!<start_of_text>", "<<end_of_text>>", "<ſtart_of_text>", "<|endoftext|>", "<", ">", "</w>"),
    *("\n", "\n\n", "\t", " ", "  ", "\r\n", "\u3000", "\v", "snake_case", "a-b", "...", "!?", "_"),
    *(
        "photo",
        "A PHOTO of",
        "satellite",
        "Naïve",
        "CAFÉ",
        "Straße",
        "ΣΊΣΥΦΟΣ",
        "antidisestablishment",
    ),
    *(
        "\U000e0001",
        "\U0001f1e6",
        "\U00010940",
        "\U00011de3",
        "\u088f",
        "\u1c89",
        "\ud7ff",
        "\ue000",
    ),
]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    ranges = [(0x20, 0x7F), (0x00, 0x250), (0x250, 0x3000), (0x3000, 0xD7FF), (0xE000, 0x20000)]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(FRAGMENTS)
        if kind < 0.8:
            letters = "abcdefghijklmnopqrstuvwxyzABCSTé"
            return "".join(rng.choice(letters) for _ in range(rng.randint(1, 9)))
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 4)))

    def text() -> str:
        separator = rng.choice(["", " ", " ", " ", "  ", "\n"])
        length = rng.choice([1, 2, 3, 5, 8, 12])
        return separator.join(piece() for _ in range(length))

    special = ["", " ", "\n", "\t \n", "a" * 5000, "word " * 300, "<end_of_text> " * 100, "!" * 999]
    return [*special, *FRAGMENTS, *(text() for _ in range(count))]


@needs_open_clip
@pytest.mark.parametrize(
    "clean, count",
    [
        ("lower", 600),
        ("whitespace", 200),
        ("canonicalize", 200),
        pytest.param("lower", 20_000, marks=pytest.mark.full),
        pytest.param("whitespace", 4_000, marks=pytest.mark.full),
        pytest.param("canonicalize", 4_000, marks=pytest.mark.full),
    ],
)
def test_equals_open_clip_on_random_texts(simple_tokenizer, clean, count):
    texts = random_texts(count, seed=count)
    expected = simple_tokenizer(clean=clean)(texts).numpy()
    found = make_clip_tokenizer(clean=clean)(texts)
    different = [texts[row] for row in np.flatnonzero((found != expected).any(axis=1))]
    assert not different, different[:10]


@needs_open_clip
@pytest.mark.parametrize("pattern", ["{} ", "a{}b '{}! "], ids=["alone", "inside"])
@pytest.mark.parametrize("every", [50, pytest.param(1, marks=pytest.mark.full)])
def test_equals_open_clip_on_every_code_point(simple_tokenizer, pattern, every):
    """Every assigned character; of the others and the private ones every 50th.

    In the default tier of all from U+0600 on every 50th.
    """
    code_points = [
        code
        for code in range(sys.maxunicode + 1)
        if not 0xD800 <= code < 0xE000
        and (
            code % 50 == 0
            or ((every == 1 or code < 0x600) and unicodedata.category(chr(code)) not in UNUSED)
        )
    ]
    # 16 to a text: a text all of one kind of character can look like a broken encoding to ftfy.
    chunks = [code_points[i : i + 16] for i in range(0, len(code_points), 16)]
    texts = ["".join(pattern.replace("{}", chr(code)) for code in chunk) for chunk in chunks]
    reference, ours = simple_tokenizer(), make_clip_tokenizer(context_length=1024)
    expected = reference(texts, context_length=1024).numpy()
    different = [texts[i] for i in np.flatnonzero((ours(texts) != expected).any(axis=1))]
    assert not different, different[:5]


@needs_open_clip
def test_new_letters_and_numbers_are_classified_like_open_clips(simple_tokenizer):
    """Assigned after the Unicode version that Python or the tokenizers library knows."""
    codes = [0x88F, 0xC5C, 0x1C89, 0xA7DD, 0x10940, 0x11DE3, 0x11F02, 0x1E4F3, 0x323B0, 0x31350]
    texts = [f"a{chr(code)}b{chr(code)}{chr(code)}!" for code in codes]
    np.testing.assert_array_equal(make_clip_tokenizer()(texts), simple_tokenizer()(texts).numpy())


@needs_open_clip
def test_lone_surrogates_are_replaced_as_in_open_clip(simple_tokenizer):
    texts = ["a\ud800b", "\udfff", "\ud83d\ude00", "x" + "\udc80" * 3]
    np.testing.assert_array_equal(make_clip_tokenizer()(texts), simple_tokenizer()(texts).numpy())


@needs_open_clip
def test_long_text_keeps_its_end_token_at_every_length(simple_tokenizer):
    for length in (2, 3, 16, 77):
        texts = ["", "a", " ".join(["cat"] * (length - 2)), " ".join(["cat"] * (length - 1))]
        found = make_clip_tokenizer(context_length=length)(texts)
        expected = simple_tokenizer()(texts, context_length=length).numpy()
        np.testing.assert_array_equal(found, expected)
        assert (found.max(axis=1) == 49407).all()


@needs_open_clip
def test_vocabulary_and_special_ids():
    tokenizer = make_clip_tokenizer()
    assert tokenizer.vocab_size == 49408
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (49406, 49407, 0)


@needs_open_clip
def test_saved_clip_tokenizer_is_self_contained(tmp_path):
    tokenizer = make_clip_tokenizer(clean="canonicalize", context_length=20)
    settings = json.loads(json.dumps(tokenizer.save(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path, settings)
    texts = random_texts(500, seed=1)
    np.testing.assert_array_equal(loaded(texts), tokenizer(texts))
    assert loaded.save(tmp_path) == settings


def test_other_vocabulary_file_is_refused(tmp_path):
    import gzip

    path = tmp_path / "other.txt.gz"
    path.write_bytes(gzip.compress(b"header\na b\n"))
    with pytest.raises(WeightsError, match="48894 merges"):
        clip_tokenizer(path)


def test_words():
    tokenizer = word_tokenizer(WORDS, context_length=8)
    tokens = tokenizer(["A Digit, with two-loops!", "", "three loops", "a " * 20])
    np.testing.assert_array_equal(
        tokens,
        [
            [2, 3, 4, 5, 6, 7, 8, 0],
            [2, 8, 0, 0, 0, 0, 0, 0],
            [2, 1, 7, 8, 0, 0, 0, 0],
            [2, 3, 3, 3, 3, 3, 3, 8],
        ],
    )
    assert tokens.dtype == np.int32
    assert tokenizer.vocab_size == 9
    # The tower reads out where the id is largest, so nothing else may have the end token's id.
    np.testing.assert_array_equal(tokens.argmax(axis=1), [6, 1, 3, 7])


def test_one_text_and_no_text():
    tokenizer = word_tokenizer(WORDS, context_length=4)
    np.testing.assert_array_equal(tokenizer("a digit"), [[2, 3, 4, 8]])
    assert tokenizer([]).shape == (0, 4)


def test_special_token_names_are_plain_words_to_the_word_tokenizer():
    tokenizer = word_tokenizer(WORDS, context_length=6)
    np.testing.assert_array_equal(tokenizer("[start] [end] a"), [[2, 1, 1, 3, 8, 0]])


def test_saved_word_tokenizer(tmp_path):
    tokenizer = word_tokenizer(WORDS, context_length=8)
    loaded = Tokenizer.load(tmp_path, tokenizer.save(tmp_path))
    np.testing.assert_array_equal(loaded(["a digit", "?"]), tokenizer(["a digit", "?"]))


@pytest.mark.parametrize("words", [["a", "a"], ["Upper"], ["two words"], ["a-b"], [""]])
def test_impossible_words_are_refused(words):
    with pytest.raises(ValueError, match="words"):
        word_tokenizer(words, context_length=8)


def test_damaged_tokenizers_are_user_errors(tmp_path):
    settings = word_tokenizer(WORDS, context_length=8).save(tmp_path)
    with pytest.raises(WeightsError, match=r"clean: expected .* found 'upper'"):
        Tokenizer.load(tmp_path, {**settings, "clean": "upper"})
    with pytest.raises(WeightsError, match=r"context_length: expected .* found 1"):
        Tokenizer.load(tmp_path, {**settings, "context_length": 1})
    with pytest.raises(WeightsError, match="context_length is missing"):
        Tokenizer.load(tmp_path, {"clean": "lower"})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"tokenizer in .*tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path, settings)
    with pytest.raises(WeightsError, match="no such file"):
        Tokenizer.load(tmp_path / "elsewhere", settings)
