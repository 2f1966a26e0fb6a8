"""Progress as lines where the output is no terminal, by a clock that the tests set."""

from __future__ import annotations

import sys
import types

import pytest
from tqdm.std import tqdm

from lattec_jax.runtime import progress
from lattec_jax.runtime.progress import (
    INTERVAL,
    ProgressLines,
    duration,
    hidden,
    progress_bar,
)


class Clock:
    """Seconds that pass only when a test says so."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(capsys: pytest.CaptureFixture) -> list[str]:
    """What was printed to the standard error; nothing else may be printed."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    return err.splitlines()


def test_a_line_every_thirty_seconds_says_what_is_left(capsys):
    clock = Clock()
    bar = ProgressLines(None, "train", "step", total=2000, clock=clock)
    for _ in range(120):  # 0.5 s each: a line after 60 and after 120 steps
        clock.seconds += 0.5
        bar.update()
    assert lines_of(capsys) == [
        "train: 60/2000 steps, 2.0 steps/s, 16 min left",
        "train: 120/2000 steps, 2.0 steps/s, 16 min left",
    ]
    bar.set_postfix_str("loss 1.234", refresh=False)
    clock.seconds += 2 * INTERVAL
    bar.update(1880)
    assert lines_of(capsys) == ["train: 2000/2000 steps, 31 steps/s, 0 s left, loss 1.234"]
    bar.close()
    assert lines_of(capsys) == ["train: 2000/2000 steps in 2 min"]
    bar.close()
    assert lines_of(capsys) == []


def test_steps_of_an_earlier_process_are_not_part_of_the_speed(capsys):
    clock = Clock()
    bar = ProgressLines(None, "train", "step", total=2000, initial=1940, clock=clock)
    clock.seconds += INTERVAL - 10
    bar.update()
    clock.seconds += 10
    bar.update(20)
    # Nor is the time to the first step, which is compiled.
    assert lines_of(capsys) == ["train: 1961/2000 steps, 2.0 steps/s, 20 s left"]


def test_slow_steps_are_told_in_seconds(capsys):
    clock = Clock()
    bar = ProgressLines(None, "describing", "image", total=100, clock=clock)
    for seconds in (300, 120, 40):  # the first contains a compilation, which says nothing
        clock.seconds += seconds
        bar.update(seconds > 40)
    assert lines_of(capsys) == [
        "describing: 1/100 images after 5 min",
        "describing: 2/100 images, 120.0 s/image, 3 h 16 min left",
        "describing: 2/100 images, no progress",
    ]


def test_a_short_loop_prints_nothing(capsys):
    clock = Clock()
    bar = ProgressLines("abc", "reading", "file", clock=clock)
    for _ in bar:
        clock.seconds += 1
    assert bar.n == 3
    assert lines_of(capsys) == []


def test_a_loop_counts_what_it_yields_and_ends_with_its_time(capsys):
    clock = Clock()
    seen = []
    for letter in ProgressLines("abcd", "reading", "file", clock=clock):
        seen.append(letter)
        clock.seconds += 20
    assert seen == list("abcd")
    assert lines_of(capsys) == [
        "reading: 2/4 files, 20.0 s/file, 40 s left",
        "reading: 4/4 files, 20.0 s/file, 0 s left",
        "reading: 4/4 files in 1 min",
    ]


def test_without_a_total_nothing_is_said_to_be_left(capsys):
    clock = Clock()
    for _ in ProgressLines(iter("ab"), "reading", "file", clock=clock):
        clock.seconds += INTERVAL
    assert lines_of(capsys)[:2] == [
        "reading: 1 files after 30 s",
        "reading: 2 files, 30.0 s/file",
    ]


def test_a_message_is_printed_at_once(capsys):
    with ProgressLines(None, "reading", "file", clock=Clock()) as bar:
        bar.write("unreadable: a.jpg", file=sys.stderr)
    assert lines_of(capsys) == ["unreadable: a.jpg"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (89, "1 min"),
        (3570, "1 h 0 min"),
        (3 * 3600 + 25 * 60, "3 h 25 min"),
        (50 * 3600, "50 h 0 min"),
    ],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_a_terminal_has_a_bar_and_a_file_has_lines(monkeypatch, capsys):
    assert isinstance(progress_bar(desc="a", unit="b", total=3), ProgressLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress_bar("abc", desc="reading", unit="file")
    assert isinstance(bar, tqdm)
    assert list(bar) == list("abc")
    assert "reading: 100%" in capsys.readouterr().err


def test_what_is_disabled_shows_nothing_anywhere(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert list(progress_bar("abc", desc="a", unit="b", disable=True)) == list("abc")
    assert lines_of(capsys) == []


def test_progress_is_hidden_and_shown_again(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with hidden():
        print("chosen values")
        assert list(progress_bar([1, 2], desc="images", unit="image")) == [1, 2]
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("", "a warning\n")
    with hidden(False):
        print("chosen values")
        assert list(progress_bar([1, 2], desc="images", unit="image")) == [1, 2]
    shown = capsys.readouterr()
    assert shown.out == "chosen values\n" and "images: 100%" in shown.err


def test_a_notebook_is_recognized(monkeypatch):
    def running(config: dict) -> types.SimpleNamespace:
        shell = types.SimpleNamespace(config=config)
        return types.SimpleNamespace(get_ipython=lambda: shell)

    monkeypatch.setitem(sys.modules, "IPython", running({"IPKernelApp": {}}))
    assert progress._in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", running({}))  # IPython on a terminal
    assert not progress._in_notebook()
    no_shell = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", no_shell)
    assert not progress._in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress._in_notebook()
