"""The command line that all scripts share: mistakes as one line, the parser, flag types.

    @command
    def main():
        arguments = parser(__doc__)
        add_common(arguments)
        ...
"""

import argparse
import ctypes
import math
import os
import platform
import shlex
import sys
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path

import torch

from train.engine import parallel

ROOT = Path(__file__).resolve().parents[2]

# What is not trained in bfloat16, scores and labels above all, is float32: no TF32, which torch allows convolutions.
torch.backends.cudnn.allow_tf32 = False


class UserError(Exception):
    """What the person who typed the command can set right: shown as one line, with this exit code."""

    code = 2


@contextmanager
def user_errors(where=""):
    """Turn a ValueError of the library below into a UserError: its text, behind `where` it came from."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}{error}")


def command(main):
    """Decorate a script's main: what the user can mend becomes one line on standard error and an exit code.

    Anything else is our mistake, and shows its traceback.
    """

    @wraps(main)
    def guarded(*args, **kwargs):
        keep_memory()
        with suppress(AttributeError):  # a stream of a test's own
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is shown so
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message, code = error, error.code
        except KeyboardInterrupt:  # before there is a state to save
            message, code = "interrupted", 130
        except OSError as error:  # a full disk, a folder that became read-only
            message, code = error, 1
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):  # nccl's too
                message = f"out of memory ({one_line(error)[:150]}): try a smaller --batch-size or --limit"
            elif parallel.lost_another(error):
                message = "another rank has ended: so do all. The same command goes on from the last state"
            else:
                raise
            code = 1
        complain(message)
        sys.exit(code)

    return guarded


def out_of_memory(error):
    """Whether an exception says that there is not enough memory.

    torch has a class for its own allocator on CUDA, and none for a CPU, for the driver's (AcceleratorError), for cuBLAS
    and cuDNN, or for what runs out while it is compiled (InductorError).
    """
    words = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def keep_memory():
    """Let glibc keep what is freed for the next step, and not return it to the kernel.

    A step on a CPU allocates gigabytes, in tensors so large (above 32 MiB) that malloc maps each anew and the kernel
    zeroes it page by page. With kept memory FastNet's steps of 1,024 images are 1.4 to 1.7 times as fast, and take up
    to a third more of it. Another C library is left as it is.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, -1)  # never


def complain(message):
    """Print the one line with which a command fails; of several ranks only the first to ask does."""
    if parallel.may_complain():
        print_error(message)


def warn(message):
    """Print one line on standard error, after which the work goes on."""
    if parallel.rank() == 0:
        print_error(message)


def print_error(message):
    print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(message):
    """The text of an exception or message in one line; the kind of an exception that has none."""
    return " ".join(str(message).split()) or type(message).__name__


def command_line():
    """The command that is running, as a person would repeat it from the repository."""
    return shlex.join([*parallel.launcher(), short_path(sys.argv[0]), *sys.argv[1:]])


def short_path(file):
    """A path as a person in the repository would type it; of one outside of it the name only."""
    file = Path(file).resolve()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def count_of(number, noun):
    """`1 epoch`, `2,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


# ---------------------------------------------------------------- the parser


class Parser(argparse.ArgumentParser):
    """argparse, with one line instead of usage and error for a wrong flag, and no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message):
        complain(message)
        sys.exit(2)


class Help(argparse.HelpFormatter):
    """Help with each default in its line, paths inside the repository shown relative to it."""

    def _get_help_string(self, action):
        value = action.default
        switch = len(action.option_strings) == 1 and action.nargs == 0  # with no negation: off
        if switch or value is None or value == argparse.SUPPRESS or "default:" in action.help:
            return action.help
        if isinstance(action, argparse.BooleanOptionalAction):
            value = "on" if value else "off"
        text = (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
        return f"{action.help} [{text.removeprefix(f'{ROOT}/')}]"


def parser(doc):
    """An argument parser with the first line of the script's docstring as description and defaults in its help."""
    summary = doc.partition("\n")[0]
    return Parser(description=summary, formatter_class=lambda prog: Help(prog, max_help_position=32, width=110))


# The two flags that recipes and tools share.
DATA = dict(default=str(ROOT / "data"), help="folder with the images (fetched when absent), or synthetic",
            metavar="PATH")
DEVICE = dict(default="auto", help="where to compute", choices=("auto", "cuda", "cpu"))
# One that the tools share.
TTA = dict(action="store_true", help="mean of the image's and its mirror image's logits")


def add_common(arguments):
    """--data and --device."""
    arguments.add_argument("--data", **DATA)
    arguments.add_argument("--device", **DEVICE)


def check_target(flag, file, suffix):
    """UserError unless a file to write (or None) has this suffix and a folder; call it before the work."""
    if file is None:
        return
    if file.suffix != suffix:
        raise UserError(f"{flag} {file} should end in {suffix}")
    if not file.parent.is_dir():
        raise UserError(f"{flag} {file}: the folder {file.parent} does not exist")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{flag} {file}: the folder {file.parent} is not writable")


# ---------------------------------------------------------------- values of flags


def number(low, high=None, above=False, kind=float):
    """A converter of flag values to a finite number within low..high (`above`: low itself excluded)."""
    bound = f"above {low}" if above else f"{low}"
    if high is not None:
        bound += f" to {high:g}"
    elif not above:
        bound += " or more"
    below = 2**63 if kind is int else math.inf  # what torch takes
    wanted = f"a {'whole ' if kind is int else ''}number, {bound}"

    def convert(text):
        with suppress(ValueError):
            value = kind(text)
            if (low < value if above else low <= value) and (value < below if high is None else value <= high):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} should be {wanted}")

    return convert


integer = partial(number, kind=int)
