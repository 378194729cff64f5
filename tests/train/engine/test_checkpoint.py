"""Files that survive what happens to files: damage, full disks, odd file systems and two writers."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from train import UserError
from train.engine import checkpoint, loop
from train.engine.checkpoint import Damaged, RunFiles


def content(step=1):
    """A little of everything that a state holds."""
    random = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)
    half = torch.randn(5, generator=random).bfloat16()
    return {"step": step, "config": {"lr": 0.1, "augment": ["crop"], "fold": None}, "data": "0" * 64,
            "rows": [{"epoch": 1, "lr": 0.1}],
            "model": {"weight": weight, "count": torch.tensor(3), "half": half, "empty": torch.empty(0)}}


FINISHED = content(9) | {"provenance": {}}


@pytest.fixture
def run(tmp_path):
    """A run with a state and the state before it."""
    with RunFiles(tmp_path / "run.pt") as run:
        run.save_state(content(1)), run.save_state(content(2))
        yield run


def names(folder):
    """The files of a folder but the lock."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def failing(number, real=None, when=lambda *_: True):
    """A function of the system that fails with an errno, where `when` says so; else it does what `real` does."""
    def call(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return call


# ---------------------------------------------------------------- what is written is read


def test_a_state_comes_back_to_the_bit(run):
    assert toy.different(content(2), run.load_state()) is None
    assert toy.different(content(1), checkpoint.load(run.backup)) is None


def test_the_digest_sees_every_change_but_that_of_the_memory_format():
    changes = [
        lambda c: c.update(step=2), lambda c: c["config"].update(lr=0.2), lambda c: c["config"].update(fold=False),
        lambda c: c["config"].update(augment=["crop", ""]), lambda c: c["rows"].append({}), lambda c: c.pop("rows"),
        lambda c: c["model"]["weight"][-1, -1, -1, -1].add_(1e-7), lambda c: c.update(more={}),
        lambda c: c["model"].update(count=torch.tensor(3.0)),
        lambda c: c["model"].update(weight=c["model"]["weight"].reshape(3, 8, 3, 3)),
    ]
    seen = {checkpoint.digest(content())}
    for change in changes:
        changed = content()
        change(changed)
        seen.add(checkpoint.digest(changed))
    assert len(seen) == 1 + len(changes)
    tensor = content()["model"]["weight"]
    assert checkpoint.digest(tensor) == checkpoint.digest(tensor.contiguous())


def test_a_resume_state_is_no_weights_file(run, tmp_path):
    for file, told in ((run.last, "is a resume state"), (tmp_path / "none.pt", "not exist"), (tmp_path, "be read")):
        with pytest.raises(UserError, match=told):
            checkpoint.load_weights(file)


# ---------------------------------------------------------------- damage


DAMAGE = {"empty": lambda raw: b"", "half": lambda raw: raw[:len(raw) // 2], "text": lambda raw: b"no such thing",
          "zip": lambda raw: b"PK\x03\x04" + raw[4:40]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told_of_and_the_one_before_it_used(run, damage, capsys):
    run.last.write_bytes(DAMAGE[damage](run.last.read_bytes()))
    assert toy.different(content(1), run.load_state()) is None
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and str(run.last) in told and str(run.backup) in told
    run.save_state(content(3))  # the damaged state must not have taken the good one's place
    assert checkpoint.load(run.backup)["step"] == 1 and run.load_state()["step"] == 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_states_are_never_a_silent_start_from_zero(run, damage):
    for file in (run.last, run.backup):
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    for remove in (None, run.last.unlink):
        remove and remove()
        with pytest.raises(UserError, match="--fresh starts over"):
            run.load_state()


def test_every_flipped_bit_is_recognised_or_without_effect(run, capsys):
    """Somewhere in the file, 150 times; a bit in the padding of the zip may change nothing."""
    raw, recognised = run.last.read_bytes(), 0
    for place in np.linspace(0, len(raw) - 1, 150).astype(int):
        run.last.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1:])
        try:
            state = run.load_state()
            told = capsys.readouterr().out.count("\n")
            assert toy.different(content(state["step"]), state) is None and told == (state["step"] == 1)
            recognised += told
        except UserError as error:  # the bit was in the name of the format
            assert "another format" in str(error)
    assert recognised > 50


def test_a_state_of_any_length_that_was_cut_is_damaged(run):
    """torch says of some lengths that the file has an invalid argument, as of a disk that does not give it."""
    run.save_state(content(1)), run.save_state(content(2) | {"more": torch.randn(40_000)})
    raw = run.last.read_bytes()
    for length in np.linspace(0, len(raw) - 1, 40).astype(int):
        run.last.write_bytes(raw[:length])
        assert run.load_state()["step"] == 1, length


@pytest.mark.parametrize("broken, error, told", [
    ((Path, "read_bytes"), OSError(errno.EIO, "Input/output error"), r"run.last.pt cannot be read \(Input/output"),
    ((torch, "load"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "can't allocate"),
    ((checkpoint, "FORMAT"), "cifar10-under-5m/99", f"another format, {checkpoint.FORMAT}")])
def test_a_state_that_may_be_whole_is_kept(run, monkeypatch, broken, error, told):
    """What the disk does not give, for what there is no memory, and what another version wrote."""
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*broken, error if isinstance(error, str) else fail)
    with pytest.raises((UserError, RuntimeError), match=told) as caught:
        run.load_state()
    assert not isinstance(caught.value, Damaged) and run.last.exists() and run.backup.exists()


@pytest.mark.parametrize("survived", [0, 1])
def test_a_killed_writer_leaves_a_good_state_at_every_moment(run, monkeypatch, survived):
    """Between any two of the renames that put a new state in place."""
    moves = []

    def dying(a, b):
        if len(moves) == survived:
            raise KeyboardInterrupt
        moves.append(os.rename(a, b))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dying)
        run.save_state(content(3))
    assert run.load_state()["step"] == 2
    run.save_state(content(3))
    assert run.load_state()["step"] == 3 and checkpoint.load(run.backup)["step"] == 2


# ---------------------------------------------------------------- finished, and trained again


def test_what_is_finished_leaves_nothing_to_resume(run, tmp_path):
    assert run.finished() is None
    run.save_csv([{"epoch": 1}]), run.finish(FINISHED)
    assert names(tmp_path) == ["run.csv", "run.pt"] and toy.different(FINISHED, run.finished()) is None


@pytest.mark.parametrize("gone", ["last", "backup"])
def test_a_state_is_newer_than_what_is_finished_until_it_is_forgotten(run, tmp_path, gone):
    """Either of the two states alone, too, as a killed writer may leave them."""
    checkpoint.save(run.weights, FINISHED)
    getattr(run, gone).unlink()
    assert run.finished() is None and run.load_state()["step"] in (1, 2)
    run.forget()
    assert names(tmp_path) == ["run.pt"] and toy.different(FINISHED, run.finished()) is None


def test_killed_while_it_finishes_a_run_has_its_weights_or_goes_on(run, monkeypatch):
    """Between any two of the changes in the folder; a state that is left is the newest one."""
    unlink, left = os.unlink, []

    def dying(path, *more):
        if len(left) == 1:
            raise KeyboardInterrupt
        left.append(path)
        unlink(path, *more)

    monkeypatch.setattr(os, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        run.finish(FINISHED)
    assert run.finished() is None and run.load_state()["step"] == 2
    assert toy.different(FINISHED, checkpoint.load_weights(run.weights)) is None


# ---------------------------------------------------------------- nowhere to write


def test_the_renames_are_flushed_too(tmp_path, monkeypatch):
    folders, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: folders.append(stat.S_ISDIR(os.fstat(fd).st_mode)) or fsync(fd))
    checkpoint.write_text(tmp_path / "a", "a")
    assert folders == [False, True]


def test_a_full_disk_keeps_the_old_state_and_leaves_no_litter(run, tmp_path, monkeypatch):
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left.*run.last.pt"):
            patch.setattr(os, broken, failing(errno.ENOSPC))
            run.save_state(content(3))
        assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_really_full_disk_ends_in_one_line(toy_set, tmp_path):
    """A file system of 1 MB, where that may be mounted: two states of this network fit in, three do not."""
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mount.returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        log, argv = tmp_path / "log", ("--data", toy_set, "--out", small / "run.pt", "--device", "cpu")
        with toy.training(*argv, "--stage", "basic", "--epochs", 9, "--width", 8, log=log, SAVE_EVERY=0) as process:
            process.join()
        assert process.exitcode == 1, log.read_text()
        assert "Traceback" not in log.read_text() and "No space left on device" in log.read_text().splitlines()[-1]
        assert names(small) == ["run.csv", "run.last.bak", "run.last.pt"]
        assert checkpoint.load(small / "run.last.pt")["step"] == 2
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_place_is_checked_before_the_work(tmp_path, monkeypatch):
    """The log of a run replaces a log only."""
    (tmp_path / "labels.csv").write_text("id,label,airplane\n")
    for file, told in (("nowhere/run.pt", "the folder .*nowhere does not exist"), ("run.pth", "should end in .pt"),
                       ("labels.pt", "its log .*labels.csv exists and holds something else")):
        with pytest.raises(UserError, match=told):
            RunFiles(tmp_path / file).__enter__()
    for _ in range(2):
        with RunFiles(tmp_path / "run.pt") as run:
            run.save_csv([{"epoch": 1, "lr": 0.1, "train_loss": 2.0}])
    monkeypatch.setattr(os, "open", failing(errno.EROFS, os.open, lambda file, *_: str(file).endswith(".lock")))
    with pytest.raises(UserError, match=r"--out .*run.pt: cannot write there \(Read-only file system\)"):
        RunFiles(tmp_path / "run.pt").__enter__()
    assert names(tmp_path) == ["labels.csv", "run.csv"]
    assert (tmp_path / "labels.csv").read_text() == "id,label,airplane\n"


def test_litter_of_a_killed_writer_goes_and_that_of_other_runs_stays(tmp_path):
    for name in ("run.pt", "run.last.pt", "run.csv", "run2.pt", "run.b.pt"):
        (tmp_path / f".{name}.abc12345").write_bytes(b"half")
    (tmp_path / ".run.csv.swp").touch()  # an editor's
    with RunFiles(tmp_path / "run.pt"):
        assert names(tmp_path) == [".run.b.pt.abc12345", ".run.csv.swp", ".run2.pt.abc12345"]

    def breaks(handle):
        handle.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "file", breaks)
    assert names(tmp_path) == [".run.b.pt.abc12345", ".run.csv.swp", ".run2.pt.abc12345"]


# ---------------------------------------------------------------- what shared file systems cannot do


CANNOT = {
    "flush a folder": (["os.fsync"], failing(errno.EINVAL, os.fsync, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode))),
    "change modes": (["os.chmod", "os.fchmod"], failing(errno.EPERM)),
    "lock": (["fcntl.flock"], failing(errno.ENOSYS)),
}


@pytest.mark.parametrize("what", CANNOT)
def test_a_run_trains_where_the_file_system_cannot(configure, tmp_path, monkeypatch, what):
    functions, fails = CANNOT[what]
    for name in functions:
        monkeypatch.setattr(name, fails)
    loop.run(configure(epochs=1))
    assert checkpoint.load_weights(tmp_path / "run.pt") and names(tmp_path) == ["data", "run.csv", "run.pt"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_flock_a_file_keeps_the_second_out(tmp_path, monkeypatch, error):
    monkeypatch.setattr("fcntl.flock", failing(error))
    told = r"another process \(if none runs, delete .*lock\)"
    with RunFiles(tmp_path / "run.pt"), pytest.raises(UserError, match=told):
        RunFiles(tmp_path / "run.pt").__enter__()
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_decides_who_may_read(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with RunFiles(tmp_path / "run.pt") as run:
            run.save_state(content(1)), run.save_state(content(2)), run.save_csv([{"epoch": 1}])
            checkpoint.save(run.weights, FINISHED)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(
        [".run.lock", "run.csv", "run.last.bak", "run.last.pt", "run.pt"], mode)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "store").mkdir(), (tmp_path / "store" / "file.pt").write_text("old")
    for name, target in (("link.pt", "store/file.pt"), ("new.pt", "store/other.pt")):  # one leads nowhere yet
        (tmp_path / name).symlink_to(target)
        checkpoint.save(tmp_path / name, content(3))
        assert (tmp_path / name).is_symlink() and checkpoint.load(tmp_path / target)["step"] == 3
    assert names(tmp_path / "store") == ["file.pt", "other.pt"]


# ---------------------------------------------------------------- two processes


def test_of_two_processes_the_second_is_refused(toy_set, tmp_path):
    argv = "--data", toy_set, "--out", tmp_path / "run.pt", "--device", "cpu", "--width", 2
    with RunFiles(tmp_path / "run.pt"), RunFiles(tmp_path / "other.pt"):
        with toy.training(*argv, log=tmp_path / "log") as process:
            process.join()
        assert process.exitcode == 2
    assert (tmp_path / "log").read_text().endswith("run.pt is being trained by another process\n")
    with RunFiles(tmp_path / "run.pt"):  # what the holder leaves keeps nobody out
        assert names(tmp_path) == ["data", "log"]
