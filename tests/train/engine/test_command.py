"""The command line that scripts share: a mistake is one line."""

import argparse
import io
import platform
import subprocess
import sys

import pytest
import torch

from train.engine.command import ROOT, UserError, check_target, command, command_line, count_of, integer, user_errors

FAULTS = """
import resource, sys, torch
from train.engine.command import keep_memory
if sys.argv[1:]:
    keep_memory()
for turn in range(60):  # the first forty until aligned requests fit into what was freed
    if turn == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_freed_memory_is_kept_for_the_next_step():
    def faults(*words):
        """Pages that the kernel gives anew for twenty tensors of 64 MiB: 16,384 each, or 32 where pages are large."""
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, *words], cwd=ROOT, text=True))

    assert 4 * faults("keep") < faults()


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
def test_what_the_user_can_mend_is_one_line(capsys, error, code, told):
    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        main()
    text = capsys.readouterr().err
    assert caught.value.code == code and told in text and text.count("\n") == 1


def test_a_name_that_the_terminal_lacks_is_printed_all_the_same(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    command(lambda: print("f\u00fcr.pt"))()
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"f\\xfcr.pt\n"


def test_whole_numbers_are_what_torch_takes():
    assert integer(1)(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number, 1 or more"):
        integer(1)(str(2**63))


def test_our_own_mistakes_keep_their_traceback():
    @command
    def main():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError):
        main()


def test_a_value_error_of_the_library_is_the_users():
    with pytest.raises(UserError, match="^here: unknown model"), user_errors("here: "):
        raise ValueError("unknown model")
    with pytest.raises(KeyError), user_errors():
        raise KeyError("ours")


@pytest.mark.parametrize("file, told", [
    ("x.csv", "--json .*x.csv should end in .json"), ("nowhere/x.json", "the folder .*nowhere does not exist")])
def test_a_target_is_checked_before_the_work(tmp_path, file, told):
    check_target("--json", None, ".json"), check_target("--json", tmp_path / "x.json", ".json")
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


def test_counts_are_in_words():
    assert [count_of(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
