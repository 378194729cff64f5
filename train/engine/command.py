"""What all scripts share on the command line: one-line errors, the parser, bounds of numbers.

    if __name__ == "__main__":
        with command():
            main()
"""

import argparse
import ctypes
import math
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from train import ROOT, UserError, one_line
from train.engine import distributed


@contextmanager
def command() -> Iterator[None]:
    """Turn an error that the user can fix into one line on standard error and an exit code.

    UserError has its own code; a full disk and too little memory are 1; Ctrl-C ends the process by its own signal (130
    in a shell). Anything else shows its traceback. It also sets glibc to keep freed memory (`keep_memory`).
    """
    keep_memory()
    for name in ("stdout", "stderr"):  # None if the shell has closed it: `>&-`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
    with suppress(AttributeError):  # a notebook's stream has no such method
        sys.stdout.reconfigure(errors="backslashreplace")  # escapes for characters that its encoding lacks
    try:
        yield
        sys.stdout.flush()  # which may fail, as below
        return
    except UserError as error:
        message, code = error, error.code
    except SystemExit:  # after --help, for example
        flush()
        raise
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        flush()
        sys.exit(141)
    except KeyboardInterrupt:  # before there was a state to save
        message, code = "interrupted", 128 + signal.SIGINT
    except OSError as error:  # a name that was mistyped; or a full disk, a folder that became read-only
        message, code = error, 2 if isinstance(error, FileNotFoundError | IsADirectoryError) else 1
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            if of_the_compiler(error):
                error.add_note("The network could not be compiled: --no-compile trains it as it is.")
            raise
        advice = "try a smaller --batch-size or --limit, or, on a GPU, --device cpu"
        message, code = f"out of memory ({one_line(error)[:150]}): {advice}", 1
    # All ranks raise the same UserError, and one on each machine reports it. Other errors may concern one rank only.
    same = isinstance(message, UserError) and "TORCHELASTIC_RUN_ID" in os.environ
    if distributed.local_rank() == 0 or not same:
        with suppress(OSError):  # the reader, such as `| tee log`, may have ended by the same Ctrl-C
            print_line(f"rank {distributed.rank()}: {message}" if distributed.rank() else message)
    flush()
    # After an exit code, a loop of the shell would go on with its next command. An interactive Python goes on.
    if code == 128 + signal.SIGINT and not hasattr(sys, "ps1"):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(code)


def flush() -> None:
    """Flush both streams. Drop one that fails: Python would flush it again at its end, and exit with 120."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, open(os.devnull, "w"))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has a class for this on CUDA only, not on CPUs or for cuDNN."""
    words = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def of_the_compiler(error: BaseException) -> bool:
    """Whether torch.compile has failed."""
    return any(part in type(error).__module__ for part in ("_dynamo", "_inductor"))


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step, and not return it to the kernel.

    A step on a CPU allocates gigabytes, in tensors so large (above 32 MiB) that malloc maps each one anew and the
    kernel zeroes it page by page. With kept memory, FastNet's steps of 1,024 images are 1.4 to 1.7 times as fast, and
    take up to a third more memory.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, -1)  # never


def warn(message: object) -> None:
    """Print one line on standard error, with the script's name before it; with several ranks, only on rank 0."""
    if distributed.rank() == 0:
        print_line(message)


def print_line(message: object) -> None:
    print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr, flush=True)


def command_line() -> str:
    """The running command, as one would repeat it in the repository."""
    return shlex.join([*distributed.launcher(), short_path(sys.argv[0]), *sys.argv[1:]])


def short_path(file: str | Path) -> str:
    """A path relative to the repository; of a path outside it, the name only."""
    file = Path(file).resolve()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def count_of(number: int, noun: str) -> str:
    """`1 epoch`, `2,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def check_target(flag: str, file: Path | None, suffix: str, *beginnings: str) -> None:
    """Raise UserError unless a file to write (or None) ends in `suffix` and can be written; call it early.

    beginnings: what a file that stands there may begin with, as for `check_replaceable`; by default anything.
    """
    if file is None:
        return
    if file.suffix != suffix:
        raise UserError(f"{flag} {file} should end in {suffix}")
    if file.is_dir():
        raise UserError(f"{flag} {file} is a folder")
    for folder in dict.fromkeys([file.parent, Path(os.path.realpath(file)).parent]):  # a link is written through
        if not folder.is_dir():
            raise UserError(f"{flag} {file}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{flag} {file}: the folder {folder} is not writable")
    if beginnings:
        check_replaceable(flag, file, *beginnings)


def check_replaceable(flag: str, file: Path, *beginnings: str) -> None:
    """Raise UserError if a file to write exists and begins with none of `beginnings`: it may be of another kind."""
    if not file.is_file():
        return
    with open(file, encoding="utf-8-sig", errors="replace") as handle:
        begins = handle.read(60)
    if begins and not begins.startswith(beginnings):
        raise UserError(f"{flag} {file} exists and holds something else (it begins with "
                        f"{begins.partition(chr(10))[0]!r}): choose another name, or delete it")


# ---------------------------------------------------------------- the parser


class Parser(argparse.ArgumentParser):
    """argparse with a single line for a wrong flag, and without abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise UserError(message)


class Help(argparse.HelpFormatter):
    """Help that shows each default; paths in the repository are relative to it."""

    def _get_help_string(self, action):
        value = action.default
        switch = isinstance(action, argparse._StoreTrueAction)
        if switch or value in (None, ()) or value == argparse.SUPPRESS or "default:" in action.help:
            return action.help
        if isinstance(action, argparse.BooleanOptionalAction):
            value = "on" if value else "off"
        return f"{action.help} [{str(value).removeprefix(f'{ROOT}/')}]".replace("%", "%%")


def parser(doc: str) -> Parser:
    """An argument parser whose help begins with the first line of the script's docstring."""
    summary = doc.partition("\n")[0]
    return Parser(description=summary, formatter_class=lambda prog: Help(prog, max_help_position=32, width=110))


def add_common(arguments: argparse._ActionsContainer) -> None:
    """--data and --device."""
    arguments.add_argument("--data", type=os.path.expanduser, default=str(ROOT / "data"), metavar="PATH",
                           help="folder with the images (fetched when absent), or synthetic")
    add_device(arguments)


def add_device(arguments: argparse._ActionsContainer) -> None:
    """--device."""
    arguments.add_argument("--device", type=one_of("auto", "cuda", "cpu"), default="auto", metavar="NAME",
                           help="device to use: auto, cuda or cpu")


def number(low: float, high: float | None = None, above: bool = False, kind: type = float) -> Callable[[str], float]:
    """A converter of a flag's text to a finite number in low..high (`above`: low itself excluded)."""
    bound = f"above {low}" if above else f"{low}"
    if high is not None:
        bound += f" to {high:g}"
    elif not above:
        bound += " or more"
    below = 2**63 if kind is int else math.inf  # what torch accepts

    def convert(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if (low < value if above else low <= value) and (value < below if high is None else value <= high):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} should be a {'whole ' * (kind is int)}number, {bound}")

    return convert


def one_of(*names: str) -> Callable[[str], str]:
    """A converter that accepts only these words. argparse does not check a default against its `choices`."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} should be one of {', '.join(names)}")
        return text

    return convert


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """A converter of a flag's text to a whole number in low..high."""
    return number(low, high, kind=int)
