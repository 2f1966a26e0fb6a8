"""Matching of answers to classes: each step of the rule, and what no step may match."""

from __future__ import annotations

import difflib

import numpy as np
import pytest

from captioning.answer_matching import AnswerMatcher, normalized_words

EUROSAT = [
    "annual crop land",
    "forest",
    "herbaceous vegetation land",
    "highway or road",
    "industrial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings",
    "river",
    "sea or lake",
]


def matched(names, answer):
    """Return the display name of the class and the step."""
    names = [(name,) if isinstance(name, str) else name for name in names]
    label, how = AnswerMatcher(names)(answer)
    return None if label is None else names[label][0], how


@pytest.mark.parametrize(
    ("answer", "name", "how"),
    [
        ("forest", "forest", "exact"),
        ("  river \n", "river", "exact"),
        ("Forest", "forest", "normalized"),
        ("Forest.", "forest", "normalized"),
        ("HIGHWAY_OR_ROAD", "highway or road", "normalized"),
        ("sea-or-lake", "sea or lake", "normalized"),
        ("The river", "river", "normalized"),
        ("Rivers", "river", "normalized"),
        ("Industrial building", "industrial buildings", "normalized"),
        ("The category is: 'Pasture Land'.", "pasture land", "normalized"),
        ("Annual   crop\tland", "annual crop land", "normalized"),
        ("forrest", "forest", "closest"),
        ("Residential", "residential buildings", "closest"),
        ("herbaceous vegetation", "herbaceous vegetation land", "closest"),
        ("forest and river", None, "unmatched"),
        ("I cannot tell what this is.", None, "unmatched"),
        ("deforestation of the Amazon", None, "unmatched"),
        ("", None, "unmatched"),
        (" \n", None, "unmatched"),
        ("...", None, "unmatched"),
        ("the", None, "unmatched"),
    ],
)
def test_eurosat(answer, name, how):
    if how == "closest":  # by a plain reading of the rule
        ratios = [difflib.SequenceMatcher(None, n, answer.lower()).ratio() for n in EUROSAT]
        assert EUROSAT[ratios.index(max(ratios))] == name and max(ratios) >= 0.6
    assert matched(EUROSAT, answer) == (name, how)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("cat", "cat"),
        ("A wild cat.", "wild cat"),
        ("It is a Wild-Cat", "wild cat"),
        ("this cat is wild", "cat"),
        ("a cat, or a wild cat", None),  # a cat apart from the wild one
        ("wild cats and wild cats", "wild cat"),
        ("a black cat", "cat"),
        ("a european wild cat", "European wild cat"),
        ("caterpillar tracks", None),
    ],
)
def test_names_inside_of_names(answer, name):
    assert matched(["cat", "wild cat", "European wild cat"], answer)[0] == name


def test_overlapping_names_of_one_length_tie():
    assert matched(["wild cat", "cat fish"], "a wild cat fish") == (None, "unmatched")


def test_a_tie_is_not_broken_by_a_later_step():
    # "dog, cat" is close to the third name, but two classes are named in it.
    assert matched(["cat", "dog", "dog and cat show"], "dog, cat") == (None, "unmatched")
    assert matched(["bat", "cat"], "rat") == (None, "unmatched")  # equally far
    assert matched(["bat", "cat", "rats"], "zat") == (None, "unmatched")
    assert matched([("bat", "cat"), ("cow",)], "rat") == ("bat", "closest")  # of one class


def test_every_name_of_a_class_counts():
    names = [("automobile", "car", "motor car"), ("lorry", "truck")]
    assert matched(names, "car") == ("automobile", "exact")
    assert matched(names, "A motor-car!") == ("automobile", "normalized")
    assert matched(names, "a car, that is, an automobile") == ("automobile", "normalized")
    assert matched(names, "a truck or a car") == (None, "unmatched")
    assert matched(names, "trucck") == ("lorry", "closest")


@pytest.mark.parametrize(
    ("answer", "name", "how"),
    [
        ("猫", "猫", "exact"),
        ("猫。", "猫", "normalized"),
        ("Это Собака!", "собака", "normalized"),
        ("FENNEC DU SAHARA", "fennec du sahara", "normalized"),
        ("E\u0301TE\u0301", "été", "normalized"),  # decomposed
        ("STRASSE", "Straße", "normalized"),
        ("बिल्ली।", "बिल्ली", "normalized"),
        ("犬", None, "unmatched"),
    ],
)
def test_other_scripts(answer, name, how):
    names = ["猫", "собака", "fennec du sahara", "été", "Straße", "बिल्ली"]
    assert matched(names, answer) == (name, how)


def test_names_that_normalization_makes_alike():
    # Letters, one of which is an article; signs only; a plural beside its singular.
    assert matched(["A", "B", "S"], "A") == ("A", "exact")
    assert matched(["A", "B", "S"], "a.") == ("A", "normalized")
    assert matched(["A", "B", "S"], "It's a B.") == ("B", "normalized")
    assert matched(["C", "C++", "?"], "c++") == ("C++", "normalized")
    assert matched(["C", "C++", "?"], "?") == ("?", "exact")
    assert matched(["C", "C++", "?"], "it is c++") == (None, "unmatched")
    assert matched(["glass", "glasses"], "Glass") == ("glass", "normalized")
    assert matched(["cat", "cats"], "Cats") == ("cats", "normalized")
    assert matched(["cat", "cats"], "the cats") == (None, "unmatched")


def test_words():
    assert normalized_words("The bird-of-paradise flowers' glass_bus, an atlas.") == (
        "bird", "of", "paradise", "flower", "glass", "bus", "atla",
    )  # fmt: skip
    assert normalized_words("The A") == ("the", "a")


def test_four_hundred_classes():
    """Each name finds its class in a sentence, and long answers of other words find none."""
    names = [f"scene {i} {'indoor' if i % 2 else 'outdoor'}" for i in range(400)]
    match = AnswerMatcher([(name,) for name in names])
    for label, name in enumerate(names):
        assert match(f"The image shows {name.upper()}.") == (label, "normalized")
    assert match(", ".join(names)) == (None, "unmatched")
    for number in range(200):
        assert match(f"{number} nothing of what is listed " * 12) == (None, "unmatched")


def test_time_is_bounded_for_long_answers():
    """120,000 characters took 38 s: each name was compared with all that had been found."""
    match = AnswerMatcher([("cat",), ("dog",), ("wild cat", "big wild cat")])
    assert match("cat " * 30_000) == (None, "unmatched")
    assert match("x" * 4001) == (None, "unmatched")
    assert match("cat " * 1000) == (0, "normalized")
    assert match("cat " * 900 + "a big wild cat") == (None, "unmatched")
    assert match("big wild cat " * 300) == (2, "normalized")
    assert match("c" * 4000) == (None, "unmatched")


def test_names_are_found_as_by_comparing_all():
    """The longest names win, as in a plain reading of the rule, on random words."""
    random = np.random.default_rng(0)
    for _ in range(300):
        names = {tuple(random.choice(list("bcd"), random.integers(1, 5))) for _ in range(6)}
        names = [" ".join(name) for name in sorted(names)]
        said = tuple(random.choice(list("bcde"), random.integers(0, 12)))
        spans = [
            (start, stop, names.index(name))
            for start in range(len(said))
            for stop in range(start + 1, len(said) + 1)
            if (name := " ".join(said[start:stop])) in names
        ]
        kept = {
            label
            for start, stop, label in spans
            if not any(a <= start and stop <= b and (a, b) != (start, stop) for a, b, _ in spans)
        }
        assert AnswerMatcher([(name,) for name in names])._named(said) == kept
