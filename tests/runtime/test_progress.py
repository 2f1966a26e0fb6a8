"""Progress bars that a program can hide."""

from __future__ import annotations

import sys

from lattec_jax.runtime.progress import hidden, tqdm


def test_bars_are_hidden_and_shown_again(capsys):
    with hidden():
        print("chosen values")
        assert list(tqdm([1, 2])) == [1, 2]
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("", "a warning\n")
    with hidden(False):
        print("chosen values")
        assert list(tqdm([1, 2], desc="images")) == [1, 2]
    shown = capsys.readouterr()
    assert shown.out == "chosen values\n" and "images: 100%" in shown.err
    assert tqdm([], disable=True).disable
