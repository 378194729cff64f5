"""Files that survive what happens to files: damage, full disks, strangers and two writers (R2, R4-R7)."""

import errno
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from train.engine import checkpoint, loop, predict
from train.engine.checkpoint import Damaged, Run
from train.engine.command import UserError
from train.engine.state import Stopped


def content(step=1):
    """A little of everything that a state holds."""
    random = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)
    half = torch.randn(5, generator=random).bfloat16()
    return {"step": step, "recipe": {"lr": 0.1, "augment": ["crop"], "fold": None}, "data": "0" * 64,
            "rows": [{"epoch": 1, "lr": 0.1}],
            "model": {"weight": weight, "count": torch.tensor(3), "half": half, "empty": torch.empty(0)}}


@pytest.fixture
def run(tmp_path):
    """A run with a state and the state before it."""
    with Run(tmp_path / "run.pt") as run:
        run.save_state(content(1))
        run.save_state(content(2))
        yield run


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# ---------------------------------------------------------------- what is written is read


def test_a_state_comes_back_to_the_bit(run):
    assert toy.different(content(2), run.load_state()) is None
    assert toy.different(content(1), checkpoint.load(run.backup)) is None


def test_the_digest_sees_every_change():
    changes = [
        lambda c: c.update(step=2),
        lambda c: c["recipe"].update(lr=0.2),
        lambda c: c["recipe"].update(augment=["crop", ""]),
        lambda c: c["model"]["weight"][-1, -1, -1, -1].add_(1e-7),
        lambda c: c["model"].update(count=torch.tensor(3.0)),
        lambda c: c["model"].update(weight=c["model"]["weight"].reshape(3, 8, 3, 3)),
        lambda c: c.pop("rows"),
        lambda c: c["recipe"].update(fold=False),
        lambda c: c.update(more={}),
        lambda c: c["rows"].append({}),
    ]
    seen = {checkpoint.digest(content())}
    for change in changes:
        changed = content()
        with torch.no_grad():
            change(changed)
        seen.add(checkpoint.digest(changed))
    assert len(seen) == 1 + len(changes)


def test_the_digest_does_not_see_the_memory_format():
    tensor = content()["model"]["weight"]
    assert checkpoint.digest(tensor) == checkpoint.digest(tensor.contiguous())


# ---------------------------------------------------------------- R4: damage


def truncated(share):
    return lambda raw: raw[: int(len(raw) * share)]


def flipped(share):
    def flip(raw):
        place = min(int(len(raw) * share), len(raw) - 1)
        return raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]

    return flip


DAMAGE = {f"truncated-{share}": truncated(share) for share in (0, 0.01, 0.5, 0.99)}
DAMAGE |= {"text": lambda raw: b"no such thing", "zip": lambda raw: b"PK\x03\x04" + raw[4:40]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told_of_and_the_one_before_it_used(run, damage):
    run.last.write_bytes(DAMAGE[damage](run.last.read_bytes()))
    told = []
    assert toy.different(content(1), run.load_state(told.append)) is None
    assert len(told) == 1 and str(run.last) in told[0] and str(run.backup) in told[0]
    run.save_state(content(3))  # the damaged state must not have taken the good one's place
    assert checkpoint.load(run.backup)["step"] == 1 and run.load_state()["step"] == 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_states_are_never_a_silent_start_from_zero(run, damage):
    for file in (run.last, run.backup):
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(UserError, match="--fresh starts over"):
        run.load_state()
    run.last.unlink()
    with pytest.raises(UserError, match="--fresh starts over"):
        run.load_state()


def test_every_flipped_bit_is_recognised_or_without_effect(run):
    """Somewhere in the file, 150 times; a bit in the padding of the zip may change nothing."""
    raw, told, recognised = run.last.read_bytes(), [], 0
    for share in np.linspace(0, 1, 150):
        run.last.write_bytes(flipped(share)(raw))
        try:
            state = run.load_state(told.append)
            assert toy.different(content(state["step"]), state) is None and len(told) == (state["step"] == 1)
        except UserError as error:  # the bit was in the name of the format
            assert "another format" in str(error)
        recognised += len(told)
        told.clear()
    assert recognised > 50


def test_every_flipped_bit_of_the_pixels_is_recognised(run):
    raw = run.last.read_bytes()
    place = raw.index(content(2)["model"]["weight"].permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    for offset in (0, 1, 431, 863):
        run.last.write_bytes(flipped((place + offset + 0.5) / len(raw))(raw))
        with pytest.raises(Damaged):
            checkpoint.load(run.last)


def test_a_killed_writer_leaves_a_good_state_at_every_moment(run, monkeypatch):
    """Between any two of the renames that put a new state in place."""

    class Killed(BaseException):
        pass

    for survived in (0, 1):
        moves = iter(range(10))
        monkeypatch.setattr(os, "replace", lambda a, b: os.rename(a, b) if next(moves) < survived else kill())

        def kill():
            raise Killed

        with pytest.raises(Killed):
            run.save_state(content(3))
        assert run.load_state()["step"] == 2
    monkeypatch.undo()
    run.save_state(content(3))
    assert run.load_state()["step"] == 3 and checkpoint.load(run.backup)["step"] == 2


def test_the_state_of_another_version_is_refused_and_kept(run, monkeypatch):
    before = run.last.read_bytes()
    monkeypatch.setattr(checkpoint, "FORMAT", "cifar10-under-5m/2")
    with pytest.raises(UserError, match="another format, cifar10-under-5m/1"):
        run.load_state()
    assert run.last.read_bytes() == before


def test_a_resume_state_is_no_weights_file(run, tmp_path):
    with pytest.raises(UserError, match="is a resume state"):
        checkpoint.load_weights(run.last)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_weights(tmp_path / "none.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_weights(tmp_path)


# ---------------------------------------------------------------- finished, and trained again


FINISHED = content(9) | {"provenance": {}}


def test_what_is_finished_leaves_nothing_to_resume(run, tmp_path):
    assert run.finished() is None
    run.finish(FINISHED)
    assert names(tmp_path) == ["run.lock", "run.pt"] and toy.different(FINISHED, run.finished()) is None


@pytest.mark.parametrize("gone", ["last", "backup"])
def test_a_state_is_newer_than_what_is_finished(run, gone):
    """Either of the two states alone, too, as a killed writer may leave them."""
    checkpoint.save(run.weights, FINISHED)
    getattr(run, gone).unlink()
    assert run.finished() is None and run.load_state()["step"] in (1, 2)


def test_forgetting_the_states_leaves_what_is_finished(run, tmp_path):
    run.save_csv([{"epoch": 1}])
    checkpoint.save(run.weights, FINISHED)
    run.forget()
    assert names(tmp_path) == ["run.csv", "run.lock", "run.pt"] and toy.different(FINISHED, run.finished()) is None


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


@pytest.mark.usefixtures("handlers")
def test_what_is_finished_stays_until_new_weights_replace_it(recipe, tmp_path, capsys):
    again = recipe(seed=1)
    weights = loop.run(recipe())
    before = weights.read_bytes()
    with pytest.raises(Stopped, match="the same command without --fresh"):
        loop.run(toy.hook(replace(again, fresh=True), loss=toy.terminate(5, signal.SIGINT)))
    assert weights.read_bytes() == before and len(predict.load([weights])) == 1
    loop.run(again)
    assert "resumed at step 5" in capsys.readouterr().out
    undisturbed = loop.run(recipe("undisturbed", seed=1))
    assert toy.different(toy.result(undisturbed), toy.result(weights)) is None
    assert "run.last.pt" not in names(tmp_path) and "run.last.bak" not in names(tmp_path)


# ---------------------------------------------------------------- R5: nowhere to write


def test_a_full_disk_keeps_the_old_state_and_leaves_no_litter(run, tmp_path, monkeypatch):
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(OSError, match="No space left.*run.last.pt"):
                run.save_state(content(3))
        assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_full_buffer_is_no_litter_either(tmp_path):
    def breaks(handle):
        handle.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "file", breaks)
    assert names(tmp_path) == []


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


def test_a_folder_that_cannot_be_written_to_is_named(toy_set, tmp_path, monkeypatch):
    real = open

    def denied(file, *more):
        if str(file).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *more)

    monkeypatch.setattr(checkpoint, "open", denied, raising=False)
    with pytest.raises(UserError, match=r"--out .*run.pt: cannot write there \(Permission denied\)"):
        Run(tmp_path / "run.pt").__enter__()
    assert names(tmp_path) == ["data"]


def test_the_log_of_a_run_replaces_a_log_only(tmp_path):
    labels = tmp_path / "run.csv"
    labels.write_text("id,label,airplane\n")
    with pytest.raises(UserError, match="its log would replace .*run.csv, which is no log"):
        Run(tmp_path / "run.pt").__enter__()
    assert labels.read_text() == "id,label,airplane\n" and names(tmp_path) == ["run.csv"]
    labels.unlink()
    for _ in range(2):
        with Run(tmp_path / "run.pt") as run:
            run.save_csv([{"epoch": 1, "lr": 0.1, "train_loss": 2.0}])


def test_a_state_of_any_length_that_was_cut_is_damaged(run):
    """torch says of some lengths that the file has an invalid argument, as of a disk that does not give it."""
    run.save_state(content(1)), run.save_state(content(2) | {"more": torch.randn(40_000)})
    raw = run.last.read_bytes()
    for length in np.linspace(0, len(raw) - 1, 40).astype(int):
        run.last.write_bytes(raw[:length])
        assert run.load_state(lambda told: None)["step"] == 1, length


def test_a_state_that_the_disk_does_not_give_is_kept(run, monkeypatch):
    """It may be whole."""
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(UserError, match=r"run.last.pt cannot be read \(Input/output error\)") as caught:
        run.load_state()
    assert not isinstance(caught.value, Damaged) and run.last.exists() and run.backup.exists()


def test_a_state_for_which_there_is_no_memory_is_kept(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(RuntimeError, match="allocate"):
        run.load_state()
    assert run.last.exists() and run.backup.exists()


def test_the_folder_and_the_ending_are_checked(tmp_path):
    with pytest.raises(UserError, match="the folder .*nowhere does not exist"):
        Run(tmp_path / "nowhere" / "run.pt").__enter__()
    with pytest.raises(UserError, match="should end in .pt"):
        Run(tmp_path / "run.pth").__enter__()
