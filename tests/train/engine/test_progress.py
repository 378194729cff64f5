"""Bars and lines: on standard error, with an estimate that is true, and no division by an idle moment."""

import io
import subprocess
import sys

import pytest

from train import ROOT
from train.engine import progress
from train.engine.progress import Every, Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_every_is_true_once_in_so_many_seconds(clock):
    due = Every(10)
    found = []
    for now in (101, 109, 110, 111, 119.5, 120, 141, 142):
        clock[0] = now
        found.append(due())
    assert found == [False, False, True, False, False, True, True, False]


def test_without_a_terminal_a_line_comes_now_and_then(clock, capsys):
    with Progress(100, "job", "step", done=20) as bar:
        bar.reach(20)
        clock[0] += 10
        bar.reach(30, "loss 2.000")
        assert capsys.readouterr().err == ""
        clock[0] += 30
        bar.reach(40, "loss 1.500")  # 20 steps in 40 s: 60 left take 120 s
        assert capsys.readouterr().err == "job: 40/100 step, loss 1.500, 2 min left\n"
        clock[0] += 1
        bar.reach(50)
    assert capsys.readouterr() == ("", "")


def test_work_prices_the_units(clock, capsys):
    """The first ten steps cost a fifth of the others: 2 s each, then 10 s each. What comes before them is not timed."""
    with Progress(20, "job", work=lambda done: min(done, 10) / 5 + max(0, done - 10)) as bar:
        clock[0] += 500  # it compiles
        bar.reach(0)
        assert capsys.readouterr().err == ""  # nothing is timed yet
        clock[0] += 32
        bar.reach(12)  # 2 + 2 units of work in 32 s: 8 left take 64 s
        assert "12/20 it, 64 s left" in capsys.readouterr().err
        clock[0] += 40
        bar.reach(16)
        assert "16/20 it, 36 s left" in capsys.readouterr().err  # 8 units in 72 s


def test_what_an_earlier_process_did_is_not_timed(clock, capsys):
    with Progress(100, "job", done=90, work=lambda done: done**2, announce="net: 100 steps") as bar:
        bar.reach(90)
        clock[0] += 60
        bar.reach(92)
    out, err = capsys.readouterr()
    assert "4 min left" in err  # (92^2 - 90^2) in 60 s: (100^2 - 92^2) take 253 s
    assert out == "net: 100 steps, about 5 min\n"  # 100^2 - 90^2 take 313 s


def test_the_first_line_comes_once_and_as_soon_as_the_time_is_known(clock, capsys):
    told = []
    for total, moments in ((10, (1, 2, 3, 4)), (1, (1,))):
        with Progress(total, "job", announce=f"net: {total}") as bar:
            for done in moments:
                clock[0] += 5
                bar.reach(done)
                told.append(capsys.readouterr().out)
    assert told == ["", "", "net: 10, about 45 s\n", "", "net: 1, about 0 s\n"]


def test_an_idle_bar_does_not_divide_by_zero_and_every_item_passes(clock, capsys):
    with Progress(10, "job", done=10) as bar:
        clock[0] += 60
        bar.reach(10)
    assert "0 s left" in capsys.readouterr().err
    assert list(progress.progress([1, 2, 3], "job")) == [1, 2, 3]


@pytest.mark.parametrize("flags, drawn", [
    (" -j2 --jobserver-auth=3,4", False), ("j --jobserver-fds=3,4", False), ("", True), ("k", True)])
def test_a_terminal_gets_a_bar_but_jobs_of_make_do_not_draw_over_each_other(monkeypatch, clock, flags, drawn):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("MAKEFLAGS", flags)
    with Progress(10, "job", "step") as bar:
        bar.reach(0)
        clock[0] += 60
        bar.reach(5, "loss 1.5")
        bar.bar.refresh()
    bars = ["job:  50%|", "5/10 step", "loss 1.5", "left"]
    assert all(words in shown.getvalue() for words in (bars if drawn else ["job: 5/10 step, loss 1.5, "]))
    assert ("|" in shown.getvalue()) == drawn


def test_of_several_ranks_the_first_alone_talks(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress.distributed, "rank", lambda: 1)
    with Progress(10, "job", announce="net") as bar:
        bar.reach(0)
        clock[0] += 60
        bar.reach(5)
    progress.say("done")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_when_nobody_listens_any_more(stream):
    """Neither a line nor the end of the process fails, or make would delete what was just finished."""
    lines = "say('a line'); bar = progress.Progress(2, 'a'); bar.next_line = lambda: True; bar.reach(1); bar.reach(2)"
    script = f"from train.engine import progress; say = progress.say; {lines}; say('done')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, **pipes) as process:
        getattr(process, stream).close()  # before it has read its libraries
        other = process.stderr if stream == "stdout" else process.stdout
        assert ("a: 2/2" if stream == "stdout" else "done") in other.read()
    assert process.returncode == 0


@pytest.mark.parametrize("seconds, words", [
    (0.4, "0 s"), (42, "42 s"), (98.6, "99 s"), (120, "2 min"), (3540, "59 min"), (7500, "2 h 05 min"),
    (200_000, "2 d 07 h")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
