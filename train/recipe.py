"""What a training run is: one frozen dataclass, and the command line made from it.

A script subclasses Recipe, changes defaults, and calls `parse`; every field becomes a flag whose help
shows its default. Fields marked `what=False` (where to read and write, on which device) do not change the
trained network's meaning, so a run may be resumed with others; all the rest must agree.
"""

import argparse
import math
import os
import re
import sys
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from pathlib import Path

import torch

from augment import AUGMENTATIONS, MIXES, pipeline
from train import parallel

ROOT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """What the person who typed the command can set right: shown as one line, with this exit code."""

    code = 2


def command(main):
    """Decorate a script's main: a UserError becomes one line on standard error and its exit code.

    A full disk or too little memory becomes one line and exit code 1, Ctrl-C before there is a state to save one
    and exit code 130. Anything else is our mistake, and shows its traceback.
    """

    @wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.exit(complain(error, error.code))
        except KeyboardInterrupt:
            sys.exit(complain("interrupted", 130))
        except OSError as error:  # a full disk, a folder that became read-only
            sys.exit(complain(error, 1))
        except (RuntimeError, MemoryError) as error:
            if parallel.lost_another(error):
                sys.exit(complain("another rank has ended: so do all. The same command goes on from the last state", 1))
            memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
            if not memory:
                raise
            sys.exit(complain(f"out of memory ({one_line(error)[:150]}): try a smaller --batch-size", 1))

    return wrapped


def complain(message, code):
    if parallel.may_complain():
        print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def one_line(message):
    """The text of an exception or message in one line; an exception without a text is named by its kind."""
    return " ".join(str(message).split()) or type(message).__name__


# ---------------------------------------------------------------- values of flags


def whole(low, high=None):
    """A converter of flag values to int within low..high."""
    bound = f"{low} or more" if high is None else f"{low} to {high}"
    return lambda text: checked(text, int, f"a whole number, {bound}",
                                lambda value: value >= low and (high is None or value <= high))


def number(low, high=None, above=False):
    """A converter of flag values to a finite float within low..high (`above`: low itself excluded)."""
    bound = (f"above {low}" if above else f"{low} or more") if high is None else f"{low} to {high}"
    return lambda text: checked(text, float, f"a number, {bound}", lambda value: math.isfinite(value) and (
        value > low if above else value >= low) and (high is None or value <= high))


def checked(text, kind, wanted, fits):
    """`text` as int or float; ArgumentTypeError saying what is wanted when it is not or does not fit."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} should be {wanted}")
    return value


def names(text):
    """A comma list of augmentations as a tuple; the empty text and `none` mean no augmentation."""
    chosen = tuple(name for name in text.split(",") if name not in ("", "none"))
    try:
        pipeline(chosen)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return chosen


def setting(default, help, type=None, group="training", what=True, model=False, **extra):
    """A dataclass field with all that its flag needs; `model` marks an option of the model's constructor."""
    metadata = dict(help=help, type=type, group=group, what=what, model=model, extra=extra)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained, and where its files go.

    A subclass gives a field another default as a plain value, `epochs: int = 300`, and adds fields by `setting`.
    """

    model: str = field(default="resnet18", metadata={"what": True, "model": False})
    data: str = setting(str(ROOT / "data"), "folder with the images (fetched when absent), or synthetic",
                        group="data", what=False, metavar="PATH")
    fold: int | None = setting(0, "hold out this fifth of the training images, 0 to 4", whole(0, 4), "data",
                              metavar="K")
    limit: int | None = setting(None, "only the N images of smallest id, for a trial", whole(1), "data", metavar="N")
    include_test: bool = setting(False, "train on the test images too (their score is then refused)", group="data")

    epochs: int = setting(200, "passes over the training images", whole(1))
    batch_size: int = setting(128, "images per step", whole(1), alias="-b")
    lr: float = setting(0.1, "peak learning rate", number(0, above=True))
    momentum: float = setting(0.9, "SGD momentum", number(0, 1))
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    weight_decay: float = setting(5e-4, "L2 penalty on every parameter", number(0), alias="--wd")
    warmup_epochs: float = setting(5.0, "linear warm-up, at most a fifth of the run", number(0))
    min_lr: float = setting(0.0, "learning rate at the end of the cosine", number(0))
    ema_decay: float = setting(0.0, "decay per step of the weights' moving average, 0 for none", number(0, 1))
    seed: int = setting(0, "of the initial weights, the order and all augmentation", whole(0))

    augment: tuple = setting(("crop", "flip"), "in this order, any of " + ",".join(AUGMENTATIONS), names,
                             "augmentation", metavar="NAME[,NAME...]")
    mix: str = setting("none", "how images of a batch are mixed", str, "augmentation", choices=tuple(MIXES))

    alternate_flip: bool = setting(False, "mirror each image in every other epoch (leave flip out)",
                                   group="augmentation")

    out: str | None = setting(None, "weights file to write (default: weights/<run>.pt)", group="run", what=False,
                              metavar="FILE", alias="--output")
    device: str = setting("auto", "where to compute", str, "run", False, choices=("auto", "cuda", "cpu"))
    compile: bool | None = setting(None, "torch.compile the model (default: on CUDA, for long runs)", group="run",
                                   what=False)
    fresh: bool = setting(False, "ignore a saved state and start over", group="run", what=False)

    def __init_subclass__(cls):
        known = {f.name: f for f in fields(Recipe)}
        for name, value in list(vars(cls).items()):
            if name in known and not isinstance(value, Field):  # the help and the type of the flag stay
                setattr(cls, name, field(default=value, metadata=known[name].metadata))

    @property
    def options(self):
        """The keyword options of the model's constructor, as plain values; None leaves one to the constructor."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("model")}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def split_name(self):
        """`fold3` or `noval`."""
        return "noval" if self.fold is None else f"fold{self.fold}"

    def run_name(self, model_name):
        """The name of the run, and of its files."""
        return f"{model_name}-{self.split_name}"

    @property
    def identity(self):
        """What a resumed run must agree on, as plain values; no path is in it."""
        ranks = {"ranks": parallel.size()} if parallel.size() > 1 else {}
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.metadata.get("what", True)} | ranks


def family(run):
    """The name of a run without its fold and seed, as in seresnet164-fold3 or student-s1."""
    return re.sub(r"-(fold\d|noval|s(eed)?-?\d+)(?=-|$)", "", run)


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def parse(kind, doc, argv=None, **presets):
    """The `kind` (a Recipe class) that a command line describes; exits with 2 on a wrong flag.

    doc: the script's docstring, whose first line heads the help. presets: for a field with choices, the other
    fields' defaults under each choice, as in stage={"basic": {"lr": 0.1}}.
    """
    arguments = parser(doc)
    arguments.usage = "%(prog)s [flags]"
    add_flags(arguments, kind)
    for name, choices in presets.items():
        chooser = Parser(add_help=False)
        chooser.add_argument(f"--{name}", choices=choices, default=arguments.get_default(name))
        arguments.set_defaults(**choices[getattr(chooser.parse_known_args(argv)[0], name)])
    return kind(**read_flags(kind, arguments.parse_args(argv)))


def read_flags(kind, args):
    """The fields of `kind` from parsed arguments, checked where two flags must fit each other."""
    values = {f.name: getattr(args, f.name) for f in fields(kind) if f.name != "model" or hasattr(args, "model")}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values["fold"] = None if args.noval else args.fold
    if values["min_lr"] > values["lr"]:
        raise UserError(f"--min-lr {values['min_lr']} is above --lr {values['lr']}: it should be at most that")
    if values["nesterov"] and values["momentum"] == 0:
        raise UserError("--momentum 0 has no Nesterov form: add --no-nesterov")
    return values


def parser(doc):
    """An argument parser with the script's own docstring as description and defaults in its help."""
    summary = doc.partition("\n")[0]
    return Parser(description=summary, formatter_class=lambda prog: Help(prog, max_help_position=32, width=110))


class Parser(argparse.ArgumentParser):
    """argparse, with one line instead of usage and error for a wrong flag, and no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message):
        sys.exit(complain(message, 2))


class Help(argparse.HelpFormatter):
    """Help with each default in its line, paths inside the repository shown relative to it."""

    def _get_help_string(self, action):
        unset = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return action.help if unset or "default:" in action.help else f"{action.help} [{shown(action.default)}]"


def shown(value):
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return str(value).removeprefix(f"{ROOT}/")


def add_common(arguments):
    """--data and --device, as every tool has them."""
    help = "folder of the images, or synthetic"
    arguments.add_argument("--data", default=str(ROOT / "data"), metavar="PATH", help=help)
    arguments.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute")


def check_target(flag, file, suffix):
    """UserError unless a file to write (or None) has this suffix and a folder; call it before the work."""
    if file and file.suffix != suffix:
        raise UserError(f"{flag} {file} should end in {suffix}")
    if file and not file.parent.is_dir():
        raise UserError(f"{flag} {file}: the folder {file.parent} does not exist")
    if file and not os.access(file.parent, os.W_OK):
        raise UserError(f"{flag} {file}: the folder {file.parent} is not writable")


def add_flags(arguments, kind):
    """One flag per field of a Recipe class, in the groups that the fields name."""
    groups = {}
    for f in fields(kind):
        if "help" not in f.metadata:
            continue
        about = f.metadata
        group = groups.setdefault(about["group"], arguments.add_argument_group(about["group"]))
        flags = [f"--{f.name.replace('_', '-')}"]
        extra = dict(about["extra"])
        flags += [extra.pop("alias")] if "alias" in extra else []
        default = {} if f.default is MISSING else {"default": f.default}
        if about["type"] is None and f.type in (bool, "bool", bool | None):
            # A switch that is off has one form, a switch that is on (or decided later) needs its negation.
            action = "store_true" if f.default is False else argparse.BooleanOptionalAction
            group.add_argument(*flags, action=action, help=about["help"], **default)
            continue
        group = group.add_mutually_exclusive_group() if f.name == "fold" else group
        if "choices" not in extra:
            extra.setdefault("metavar", "X" if f.type is float else "N")
        group.add_argument(*flags, type=about["type"] or str, help=about["help"], **default, **extra)
        if f.name == "fold":
            group.add_argument("--noval", action="store_true", help="train on all 50,000, no validation")


def device_of(name):
    """The torch.device for auto|cuda|cpu, this rank's GPU; UserError for cuda on a machine without it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if parallel.device_index() >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is above the number of GPUs here, {torch.cuda.device_count()}")
        torch.cuda.set_device(parallel.device_index())
    return torch.device(name)
