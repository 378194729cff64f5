"""Of two processes that would write the files of one run the second is refused (R7)."""

import os
import subprocess
import sys

import pytest

from train.engine import checkpoint
from train.engine.checkpoint import Run
from train.engine.command import ROOT, UserError


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path):
    code = "import sys; from train.engine.checkpoint import Run; Run(sys.argv[1]).__enter__()"
    words = [sys.executable, "-c", code, tmp_path / "run.pt"]
    with Run(tmp_path / "run.pt") as run:
        second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        with Run(tmp_path / "other.pt"):
            pass
        assert run.lock.exists()
    assert f"run.pt is being trained by process {os.getpid()} on " in second.stderr and "UserError" in second.stderr


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / "run.lock").write_text("process 1 on elsewhere")
    with Run(tmp_path / "run.pt") as run:
        assert run.lock.read_text().startswith(f"process {os.getpid()} on ")
    assert names(tmp_path) == []


def test_a_lock_removed_by_its_holder_in_between_is_made_anew(tmp_path, monkeypatch):
    """The former holder removes the file just after it was opened: to hold that would be to hold nothing."""
    first = Run(tmp_path / "run.pt").__enter__()
    flock, second = checkpoint.fcntl.flock, Run(tmp_path / "run.pt")

    def late(handle, how):
        if first.handle.closed is False:
            first.__exit__()
        flock(handle, how)

    monkeypatch.setattr(checkpoint.fcntl, "flock", late)
    with second:
        with pytest.raises(UserError, match="is being trained"):
            Run(tmp_path / "run.pt").__enter__()


def test_litter_of_a_killed_writer_goes_and_that_of_other_runs_stays(tmp_path):
    for name in ("run.pt", "run.last.pt", "run.csv", "run2.pt", "run.b.pt"):
        (tmp_path / f".{name}.abc12345").write_bytes(b"half")
    with Run(tmp_path / "run.pt"):
        assert names(tmp_path) == [".run.b.pt.abc12345", ".run2.pt.abc12345", "run.lock"]
