"""Bars and lines: on standard error, with a rate that is true, and no division by an idle moment."""

import pytest

from train import progress
from train.progress import Bar, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_now_and_then(clock, capsys):
    with Bar(100, "job", "step", initial=20) as bar:
        bar.update(10, "loss 2.000")
        assert capsys.readouterr().err == ""
        clock[0] += 40
        bar.update(10, "loss 1.500")  # 20 steps in 40 s: 60 left take 120 s
        assert capsys.readouterr().err == "job: 40/100 step, loss 1.500, 2 min left\n"
        clock[0] += 1
        bar.update(10)
    streams = capsys.readouterr()
    assert streams.err == streams.out == ""


def test_an_idle_bar_does_not_divide_by_zero(clock, capsys):
    with Bar(10, "job", initial=10) as bar:
        clock[0] += 60
        bar.update(0)
    assert "0 s left" in capsys.readouterr().err


def test_every_item_passes():
    assert list(progress.progress([1, 2, 3], "job")) == [1, 2, 3]


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (98.6, "99 s"),
        (120, "2 min"),
        (3540, "59 min"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 07 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
