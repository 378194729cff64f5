"""The command line that scripts share: a mistake is one line."""

import argparse
import ctypes
import io
import os
import signal
import sys

import pytest
import torch
from torch._inductor.exc import InductorError

from train import ROOT, UserError
from train.engine.command import check_target, command, command_line, count_of, integer


@pytest.mark.parametrize("error, code, told", [
    (UserError("two\nlines"), 2, "two lines"),
    (OSError(28, "No space left on device"), 1, "No space left on device"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."), 1, "try a smaller --batch-size"),
    (MemoryError(), 1, "out of memory (MemoryError): try a smaller --batch-size or --limit"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "try a smaller --batch-size"),
    (torch.AcceleratorError("CUDA error: out of memory"), 1, "try a smaller --batch-size"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 1, "try a smaller --batch-size"),
    (KeyboardInterrupt(), 130, "interrupted"),
])
def test_what_the_user_can_mend_is_one_line(typed, monkeypatch, handlers, error, code, told):
    monkeypatch.setattr(signal, "raise_signal", lambda _: None)  # it would end the tests

    def main():
        raise error

    found, out, err = typed(main)
    assert (found, out) == (code, "") and told in err and err.count("\n") == 1
    assert err.startswith("test_command.py: ")


def test_a_closed_pipe_is_exit_code_141_without_a_message(typed, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # or it would lead nowhere after the test too

    def main():
        raise BrokenPipeError(32, "Broken pipe")

    assert typed(main) == (141, "", "")


@pytest.mark.parametrize("error, code", [(OSError(28, "No space left on device"), 1), (BrokenPipeError(32, ""), 141)])
@pytest.mark.parametrize("mistake", [None, UserError("mine")])
def test_output_that_fails_only_when_it_is_flushed_is_not_flushed_again(capsys, monkeypatch, error, code, mistake):
    stream = io.StringIO()
    stream.flush = lambda: (_ for _ in ()).throw(error)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended, command():
        print("short")
        if mistake:
            raise mistake
    told = "mine" if mistake else "No space left" if code == 1 else ""
    assert ended.value.code == (2 if mistake else code) and sys.stdout is not stream
    assert told in (err := capsys.readouterr().err) and err.count("\n") == bool(told)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit) as ended, command():
        sys.exit(3)
    assert ended.value.code == 3 and sys.stderr is not stream


def test_streams_that_the_shell_has_closed_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None), monkeypatch.setattr(sys, "stderr", None)
    with command():
        print("nobody hears it")
        assert not sys.stderr.isatty()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("ours"), KeyError("ours")])
def test_our_own_mistakes_keep_their_traceback(typed, error):
    def main():
        raise error

    with pytest.raises(type(error)):
        typed(main)


def test_a_failed_compilation_names_the_flag_beneath_its_traceback(typed):
    def main():
        raise InductorError(AssertionError("libcuda.so cannot found!"), 1)

    with pytest.raises(InductorError) as caught:
        typed(main)
    assert "--no-compile" in caught.value.__notes__[0]


def test_a_name_that_the_terminal_lacks_is_printed_all_the_same(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    with command():
        print("f\u00fcr.pt")
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"f\\xfcr.pt\n"


def test_whole_numbers_are_what_torch_takes():
    assert integer(1)(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number, 1 or more"):
        integer(1)(str(2**63))


@pytest.mark.parametrize("file, told", [
    ("x.csv", "--json .*x.csv should end in .json"), ("nowhere/x.json", "the folder .*nowhere does not exist"),
    ("x.json", "the folder .* is not writable"), ("a.json", "a.json is a folder")])
def test_a_target_is_checked_before_the_work(tmp_path, monkeypatch, file, told):
    check_target("--json", None, ".json"), check_target("--json", tmp_path / "x.json", ".json")
    (tmp_path / "link.json").symlink_to(tmp_path / "away" / "x.json")  # what it leads to is what is written
    with pytest.raises(UserError, match="the folder .*away does not exist"):
        check_target("--json", tmp_path / "link.json", ".json")
    (tmp_path / "a.json").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=told):
        check_target("--json", tmp_path / file, ".json")


def test_the_command_is_told_as_a_person_in_the_repository_would_type_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train" / "baseline.py"), "--out", "my run.pt"])
    assert command_line() == "python train/baseline.py --out 'my run.pt'"
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert command_line() == "torchrun --nproc-per-node 4 train/baseline.py --out 'my run.pt'"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert command_line() == "torchrun --nnodes 2 --nproc-per-node 2 train/baseline.py --out 'my run.pt'"


def test_a_notebooks_stream_that_cannot_be_reconfigured_is_written_to(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with command():
        print("±")
    assert sys.stdout.getvalue() == "±\n"


def test_counts_are_in_words():
    assert [count_of(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 returns; hblks is the number of regions that were mapped for one allocation each."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", *"abcdef")]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc has it since 2.33")
def test_a_large_tensor_is_not_mapped_anew():
    with command():
        pass
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    before = mallinfo2().hblks
    tensor = torch.empty(64 << 20, dtype=torch.uint8)
    assert mallinfo2().hblks == before and len(tensor) == 64 << 20
