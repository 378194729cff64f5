"""`train/remaining.py`: the time left over several runs, by hand."""

from pathlib import Path

import pytest

from train import baseline, checkpoint, remaining
from train.remaining import Pace
from untrained import write_weights


def paces(**runs):
    return {Path(f"weights/{name.replace('_', '-')}.pt"): Pace(*run) for name, run in runs.items()}


NONE = (None, None)


@pytest.mark.parametrize("runs, jobs, seconds, strange", [
    (dict(net_fold0=(100, 0), net_fold1=NONE, net_noval=NONE), 1, 100 + 125, []),  # all images are five folds, not four
    (dict(net_fold0=(100, 0), net_fold1=(140, 70), net_fold2=NONE), 1, 70 + 120, []),  # as the mean of the two
    (dict(net_fold0=(100, 40), net_fold1=(100, 20), net_fold2=NONE), 2, 100, []),  # the longest cannot be shared
    (dict(net_fold0=(100, 100), net_fold1=NONE, net_fold2=NONE), 2, 150, []),
    (dict(net_fold0=(100, 0), wide_noval=NONE, wide_fold1=NONE), 1, 0, ["wide"]),
    (dict(net_fold0=NONE, wide_noval=NONE), 3, 0, ["net", "wide"]),
])
def test_what_is_left(runs, jobs, seconds, strange):
    assert remaining.remaining(paces(**runs), jobs) == (pytest.approx(seconds), strange)


@pytest.mark.parametrize("runs, words", [
    (dict(net_fold0=(60, 0), net_fold1=(60, 0)), "2 of 2 runs finished"),
    (dict(net_fold0=(7200, 0), net_fold1=NONE), "1 of 2 runs finished, about 2 h 00 min left"),
    (dict(net_fold0=(60, 30), wide_noval=NONE),
     "0 of 2 runs finished, about 30 s left and the time of wide, not known yet"),
    (dict(net_fold0=NONE), "0 of 1 runs finished, the time of net, not known yet"),
])
def test_in_words(runs, words):
    assert remaining.told(paces(**runs)) == words


def test_the_files_of_finished_begun_and_planned_runs(toy_set, tmp_path, typed):
    done, begun, planned = (tmp_path / f"net-fold{fold}.pt" for fold in range(3))
    write_weights(done, toy_set, seed=40)  # took 60 + 40 seconds
    state = {"rows": [{"seconds": 20.0}, {"seconds": 30.0}], "recipe": {"epochs": 5}}
    checkpoint.save(checkpoint.Run(begun).last, state)
    assert remaining.pace(done) == (100, 0) and remaining.pace(begun) == (125, 75)
    assert remaining.pace(planned) == (None, None)
    code, out, err = typed(remaining.main, done, begun, planned)
    assert (code, out, err) == (0, "1 of 3 runs finished, about 3 min left\n", "")  # 75 + 112.5 seconds
    assert "1 of 3 runs finished, about 2 min left" in typed(remaining.main, done, begun, planned, "--jobs", 9, 2)[1]
    (tmp_path / "net-fold2.last.pt").write_bytes(b"damaged")
    assert typed(remaining.main, done, begun, planned) == (0, out, "")


def test_a_state_of_a_real_run_is_understood(toy_set, tmp_path, typed):
    weights = tmp_path / "run.pt"
    small = ("--data", toy_set, "--out", weights, "--width", 2, "--epochs", 2, "--batch-size", 20, "--device", "cpu")
    assert typed(baseline.main, *small)[0] == 0
    whole = remaining.pace(weights)
    weights.unlink()
    assert remaining.pace(weights) == pytest.approx(whole)


def test_weights_that_cannot_be_read_are_for_their_own_run_to_tell(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"bad")
    assert remaining.pace(tmp_path / "bad.pt") == NONE
