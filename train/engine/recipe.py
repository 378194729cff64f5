"""What a training run is: a frozen dataclass whose fields are the flags and whose methods are the loop's hooks.

A script subclasses Recipe, changes defaults, overrides the hooks that differ, and calls `loop.run(parse(...))`. Fields
marked `identity=False` (where to read and write, on which device) do not change the trained network's meaning, so a run
may be resumed with others; all the rest must agree. Files that do change it are part of the identity by their content.
"""

import argparse
import math
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property

import torch.nn.functional as F

from augment import AUGMENTATIONS, MIXES, describe, mixing, pipeline
from train.engine import parallel, predict
from train.engine.command import DATA, DEVICE, Parser, UserError, integer, number, parser
from train.engine.device import device_of, precision_of


def setting(default, help, type=None, group="training", identity=True, model=False, alias=None, **options):
    """A dataclass field with all that its flag needs; identity: whether a resumed run has to agree on it.

    model: whether it is an `option`; alias: a second name of the flag; options: further keywords of add_argument.
    """
    flag = {"help": help, "type": type or str, **options}
    return field(default=default, metadata=dict(group=group, identity=identity, model=model, alias=alias, flag=flag))


def option(default, help, type=None, **flag):
    """A setting that is an option of the model's constructor."""
    return setting(default, help, type, "model", model=True, **flag)


def augmentations(text):
    """A comma list of augmentations with their strengths as a tuple; the empty text and `none` mean none at all."""
    chosen = tuple(name for name in text.split(",") if name not in ("", "none"))
    return accept(chosen, pipeline)


def mix_name(text):
    """The name of a mix with its strengths, as it came."""
    return accept(text, mixing)


def accept(value, build):
    """`value`, if `build(value)` does not raise ValueError."""
    try:
        build(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return value


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained, and where its files go.

    A subclass gives a field another default as a plain value, `epochs: int = 300`, and adds fields by `setting`.
    """

    model: str = field(default="resnet18", metadata={"identity": True, "model": False})
    data: str = setting(**DATA, group="data", identity=False)
    fold: int | None = setting(0, "hold out this fifth of the training images, 0 to 4", integer(0, 4), "data",
                               metavar="K")
    limit: int | None = setting(None, "only the N images of smallest id, for a trial", integer(1), "data", metavar="N")
    include_test: bool = setting(False, "train on the test images too (their score is then refused)", group="data")

    epochs: int = setting(200, "passes over the training images", integer(1))
    batch_size: int = setting(128, "images per step", integer(1), alias="-b")
    lr: float = setting(0.1, "peak learning rate", number(0, above=True))
    momentum: float = setting(0.9, "SGD momentum", number(0, 1))
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    weight_decay: float = setting(5e-4, "L2 penalty", number(0), alias="--wd")
    decay_all: bool = setting(True, "weight decay on normalizations and biases too")
    warmup_epochs: float = setting(5.0, "linear warm-up, at most a fifth of the run", number(0))
    warmup_lr: float = setting(0.0, "learning rate that the warm-up begins from", number(0))
    min_lr: float = setting(0.0, "learning rate at the end of the run", number(0))
    smoothing: float = setting(0.0, "label smoothing", number(0, 1))
    ema_decay: float = setting(0.0, "decay per step of the weights' moving average, 0 for none", number(0, 1))
    init: str | None = setting(None, "finished weights to begin with, of the same network (default: random)", None,
                               identity=False, metavar="WEIGHTS")
    seed: int = setting(0, "seed of the initial weights, the order and all augmentation", integer(0))

    augment: tuple = setting(("crop", "flip"), f"in this order, any of {describe(AUGMENTATIONS)}",
                             augmentations, "augmentation", metavar="NAME[:STRENGTH],...")
    mix: str = setting("none", f"how images of a batch are mixed: {describe(MIXES)}", mix_name,
                       "augmentation", metavar="NAME[:STRENGTH]")
    alternate_flip: bool = setting(False, "mirror each image in every other epoch (leave flip out)",
                                   group="augmentation")
    small: float = setting(0.0, "share of the run, from its start, at 20x20 pixels", number(0, 1), "augmentation")

    out: str | None = setting(None, "weights file to write (default: weights/<run>.pt)", group="run", identity=False,
                              metavar="FILE", alias="--output")
    device: str = setting(**DEVICE, group="run", identity=False)
    precision: str = setting("auto", "precision of training; auto: bfloat16 where that is faster", group="run",
                             choices=("auto", "float32", "bfloat16"))
    compile: bool | None = setting(None, "torch.compile the model (default: on CUDA, for long runs)", group="run",
                                   identity=False)
    fresh: bool = setting(False, "ignore a saved state and train anew; finished weights stay until then", group="run",
                          identity=False)

    def __init_subclass__(cls):
        known = {}
        for base in reversed(cls.__mro__[1:]):
            known |= getattr(base, "__dataclass_fields__", {})
        for name, value in list(vars(cls).items()):
            if name in known and not isinstance(value, Field):  # the help and the type of the flag stay
                setattr(cls, name, field(default=value, metadata=known[name].metadata))

    # ---------------------------------------------------------------- the loop's hooks

    def learning_rate(self, step, steps):
        """The learning rate of step 0 <= step < steps, a pure function.

        1. Linear warm-up from `warmup_lr`, whose last step has `lr`.
        2. min_lr + 0.5 (lr - min_lr)(1 + cos(pi t)) after that, t from 0 to 1 (Loshchilov & Hutter 2017, eq. 5).
        """
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * (step + 1) / warmup
        t = (step - warmup) / max(1, steps - warmup)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * t))

    def warmup_steps(self, steps):
        """The length of the warm-up: at most a fifth of the run, so that a short one still anneals."""
        return round(min(self.warmup_epochs, self.epochs / 5) * (steps // self.epochs))

    def parameter_groups(self, model):
        """For SGD: one group of all that is learned, or a second without decay. A group may have its own "lr_scale"."""
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.decay_all:
            return [{"params": learned}]
        return [{"params": [parameter for parameter in learned if parameter.dim() > 1]},
                {"params": [parameter for parameter in learned if parameter.dim() <= 1], "weight_decay": 0.0}]

    def prepare(self, train, model):
        """(the Dataset to train on, further float targets (N, K) of it), from the training images and a fresh model."""
        return train, ()

    def loss(self, logits, images, hard, *soft):
        """A dict of scalars, of which "loss" is minimized and all are logged.

        logits: float32 (B, K); images: the batch that gave them, normalized; hard: labels as float targets (B, K),
        mixed with the images; soft: the further targets of `prepare`, mixed likewise. With several columns, logits and
        targets have that many rows in succession for an image.
        """
        return {"loss": F.cross_entropy(logits, hard, label_smoothing=self.smoothing)}

    # ---------------------------------------------------------------- names

    @property
    def options(self):
        """The keyword options of the model's constructor, as plain values; None leaves one to the constructor."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("model")}
        return {name: value for name, value in chosen.items() if value is not None}

    def run_name(self, model_name):
        """The name of the run, and of its files: `seresnet164-fold3`, `resnet18-noval-seed1`."""
        fold = "noval" if self.fold is None else f"fold{self.fold}"
        return f"{model_name}-{fold}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def sees_test(self):
        """Whether the weights are marked: they have no test accuracy."""
        return self.include_test

    @cached_property
    def start(self):
        """The Network whose weights the run begins with, or None for random ones."""
        return None if self.init is None else predict.load([self.init])[0]

    @property
    def reads(self):
        """(flag, weights file) of all that it learns from, and so must not write."""
        return [("--init", self.init)] if self.init else []

    @property
    def identity(self):
        """What a resumed run must agree on, as plain values, without paths: the weights to begin with are a digest."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["identity"]}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        values |= {"init": self.start.fingerprint} if self.start else {}
        return values | ({"ranks": parallel.world_size()} if parallel.world_size() > 1 else {})

    def on_device(self):
        """(the torch.device that it names, the same recipe with device and precision settled)."""
        device = device_of(self.device)
        return device, replace(self, device=device.type, precision=precision_of(self.precision, device))


# ---------------------------------------------------------------- from the command line


def parse(kind, doc, argv=None, **presets):
    """The `kind` (a Recipe class) that a command line describes; exits with 2 on a wrong flag.

    doc: the script's docstring, whose first line heads the help. presets: for a field with choices, the other
    fields' defaults under each choice, as in stage={"basic": {"lr": 0.1}}.
    """
    arguments = parser(doc)
    arguments.usage = "%(prog)s [flags]"
    add_flags(arguments, kind)
    for name, choices in presets.items():
        arguments.set_defaults(**choices[peek(f"--{name}", tuple(choices), arguments.get_default(name), argv)])
    values = vars(arguments.parse_args(argv))
    if values.pop("noval"):
        if "fold" in values:
            raise UserError(f"--fold {values['fold']} and --noval contradict each other: name one of them")
        values["fold"] = None
    recipe = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    # What two flags say must fit together.
    for name in ("min_lr", "warmup_lr"):
        if (getattr(recipe, name) or 0) > recipe.lr:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(recipe, name)} is above --lr {recipe.lr}: it should be at most that")
    if recipe.nesterov and recipe.momentum == 0:
        raise UserError("--momentum 0 has no Nesterov form: add --no-nesterov")
    if recipe.alternate_flip and any(name.split(":")[0] == "flip" for name in recipe.augment):
        off = ", or add --no-alternate-flip" if kind.alternate_flip else ""
        raise UserError(f"--alternate-flip turns every image already: leave flip out of --augment{off}")
    return recipe


def peek(flag, choices, default, argv=None):
    """The value of one flag, before the others are known."""
    chooser = Parser(add_help=False)
    chooser.add_argument(flag, choices=choices, default=default, dest="value")
    return chooser.parse_known_args(argv)[0].value


def add_flags(arguments, kind):
    """One flag per field of a Recipe class, in the groups that the fields name, and --noval behind --fold."""
    groups = {}
    for f in fields(kind):
        if "flag" not in f.metadata:
            continue
        flag, title = {"default": f.default, **f.metadata["flag"]}, f.metadata["group"]
        if f.type in (bool, bool | None):
            # A switch that is off has one form, a switch that is on (or decided later) needs its negation.
            flag["action"] = "store_true" if f.default is False else argparse.BooleanOptionalAction
            del flag["type"]
        elif "choices" not in flag:
            flag.setdefault("metavar", "X" if f.type in (float, float | None) else "N")
        if f.name == "fold":  # not there until it is given: with --noval it would contradict
            flag |= {"default": argparse.SUPPRESS, "help": f"{flag['help']} [{f.default}]"}
        if title not in groups:
            groups[title] = arguments.add_argument_group(title)
        groups[title].add_argument(f"--{f.name.replace('_', '-')}", *filter(None, [f.metadata["alias"]]), **flag)
        if f.name == "fold":
            groups[title].add_argument("--noval", action="store_true", help="train on all 50,000, no validation")
