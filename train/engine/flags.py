"""All training flags in one list, and how a recipe, a dict of other defaults, becomes a run's configuration.

    args = parse(__doc__, RECIPE)                       of a script, from the command line
    args = parse(__doc__, STAGES, by="stage")           where --stage decides the other defaults
    args = config(RECIPE, epochs=3, data="synthetic")   from Python, with the same checks

Both return a plain namespace, the whole configuration. A resumed run has to agree with it except for RUNTIME; files
that decide what is learned (FILES) are compared by their content, never by their path.
"""

import argparse
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping

import augment
from models import MODELS, options_of
from train import UserError
from train.data.sources import expand
from train.engine.command import Parser, add_common, integer, number, one_of, parser

RUNTIME = ("data", "out", "device", "compile", "fresh")
FILES = ("labels", "images")

# Help texts of the models' options.
OPTIONS = {
    "width": "channels of the first stage", "widths": "channels of the three stages [width, 4 width, 4 width]",
    "depth": "number of layers", "blocks": "blocks in each stage", "se": "squeeze-and-excitation on each branch",
    "shake": "mix the branches by random weights in training, not by their mean",
    "reduction": "factor by which squeeze-and-excitation narrows",
    "zero_init": "zero-initialise the last normalization of each block",
    "head_std": "standard deviation of the head's initial weights [inputs ** -0.5]",
    "widening": "channels added from the first block to the last", "bottleneck": "bottleneck in place of basic blocks",
    "shakedrop": "survival probability of the last block, 1 for no ShakeDrop",
    "drop_path": "probability that an image skips the last block; lower for earlier blocks",
    "columns": "parallel sub-networks whose logits are averaged",
    "residual": "add a third, residual convolution to each stage",
}


def add_flags(arguments: Parser) -> None:
    """Add the flags of every training script, except its model's options. Defaults are text, which argparse checks."""
    group = arguments.add_argument_group("data")
    add, held_out = group.add_argument, group.add_mutually_exclusive_group()
    held_out.add_argument("--fold", type=integer(0, 4), default="0", metavar="K",
                          help="hold out this fifth of the training images, 0 to 4")
    held_out.add_argument("--noval", dest="fold", action="store_const", const=None, default=argparse.SUPPRESS,
                          help="train on all 50,000 images, without validation")
    add("--limit", type=integer(1), metavar="N", help="use only N training images, always the same, for a trial")
    add("--include-test", action="store_true",
        help="also train on the test images; the weights are marked and cannot be scored")

    add = arguments.add_argument_group("training").add_argument
    add("--epochs", type=integer(1), default="200", metavar="N", help="passes over the training images")
    add("--batch-size", "-b", type=integer(1), default="128", metavar="N", help="images per step, of all processes")
    add("--lr", type=number(0, above=True), default="0.1", metavar="X", help="peak learning rate")
    add("--schedule", type=one_of("cosine", "triangular", "constant"), default="cosine", metavar="NAME",
        help="learning rate after the warm-up: cosine, triangular or constant")
    add("--warmup-epochs", type=number(0), default="5", metavar="X", help="linear warm-up, at most a fifth of the run")
    add("--warmup-lr", type=number(0), metavar="X",
        help="learning rate at the start of the warm-up [0, triangular: lr / 5]")
    add("--min-lr", type=number(0), default="0", metavar="X", help="learning rate at the end of the run")
    add("--momentum", type=number(0, 1), default="0.9", metavar="X", help="momentum of SGD")
    add("--nesterov", action=BooleanOptionalAction, default=True, help="Nesterov's form of momentum")
    add("--weight-decay", "--wd", type=number(0), default="5e-4", metavar="X", help="L2 penalty")
    add("--decay-all", action=BooleanOptionalAction, default=True, help="decay normalizations and biases too")
    add("--norm-bias-lr", type=number(0, above=True), default="1", metavar="X",
        help="factor on the learning rate of the normalizations' biases")
    add("--smoothing", type=number(0, 1), default="0", metavar="X", help="label smoothing")
    add("--ema-decay", type=number(0, 1), default="0", metavar="X",
        help="decay per step of the weights' moving average, 0 for none")
    add("--init", type=expand, metavar="WEIGHTS", help="begin with these finished weights of the same network")
    add("--seed", type=integer(0), default="0", metavar="N", help="seed of the weights, the order and augmentation")
    add("--allow-over-budget", action=BooleanOptionalAction, default=False, help="the network may be above the budget")

    add = arguments.add_argument_group("augmentation").add_argument
    add("--augment", type=augmentations, default="crop,flip", metavar="NAME[:STRENGTH],...",
        help=f"in this order, any of {augment.describe(augment.AUGMENTATIONS)}")
    add("--mix", type=mix, default="none", metavar="NAME[:STRENGTH]",
        help=f"how images of a batch are mixed: {augment.describe(augment.MIXES)}")
    add("--alternate-flip", action=BooleanOptionalAction, default=False,
        help="mirror each image in every other epoch (leave flip out)")
    add("--low-res", type=number(0, 1), default="0", metavar="X",
        help="share of the run, from its start, that trains at 20x20 pixels")

    run = arguments.add_argument_group("run")
    add_common(run)
    add = run.add_argument
    add("--out", type=expand, metavar="FILE", help="weights file to write (default: weights/<run>.pt)")
    add("--precision", type=one_of("auto", "float32", "bfloat16"), default="auto", metavar="NAME",
        help="auto (bfloat16 where that is faster), float32 or bfloat16")
    add("--compile", action=BooleanOptionalAction, help="compile the network with torch.compile (default: in long "
        "runs; on a CPU only if the network is deep)")
    add("--fresh", action="store_true", help="ignore a saved state; finished weights stay until new ones replace them")


def add_options(arguments: Parser, model: str) -> None:
    """Add a flag for each option of the constructor of `model`, a name of MODELS, by its annotated signature."""
    add = arguments.add_argument_group("model").add_argument
    for option in options_of(model).values():
        kind = option.annotation
        flag = {"help": OPTIONS.get(option.name, "option of the model"), "default": option.default}
        if kind is bool:
            flag["action"] = BooleanOptionalAction
        else:
            flag["type"], flag["metavar"] = TYPES[kind]
        add(f"--{option.name.replace('_', '-')}", **flag)


def parse(doc: str, recipe: Mapping, by: str | None = None, argv: list[str] | None = None,
          add: Callable[[Parser], None] | None = None) -> Namespace:
    """The configuration that a command line describes; UserError for a wrong flag.

    doc: the script's docstring; recipe: other defaults, or with `by` {choice: recipe} for the flag --BY, of which the
    first is the default; argv: in place of sys.argv; add: a function that adds the script's own flags.
    """
    arguments = parser(doc)
    arguments.usage = "%(prog)s [flags]"
    if by:
        choosing = Parser(add_help=False)  # reads this flag before the others are defined
        choosing.add_argument(f"--{by}", type=one_of(*recipe), default=next(iter(recipe)), dest="choice")
        choice = choosing.parse_known_args(argv)[0].choice
        arguments.add_argument(f"--{by}", type=one_of(*recipe), default=choice, metavar="NAME",
                               help=f"sets the other defaults: {', '.join(recipe)}")
        recipe = recipe[choice]
    model = recipe.get("model", "resnet18")
    if str(model) not in MODELS:
        raise UserError(f"unknown model {model!r}: known are {', '.join(MODELS)}")
    add_options(arguments, model)
    if add:
        add(arguments)
    add_flags(arguments)
    arguments.set_defaults(**{"model": model, "seen_folds": ()} | as_text(arguments, recipe))
    return check(arguments.parse_args(argv))


def config(recipe: Mapping, **changes) -> Namespace:
    """The configuration of a recipe with changes, from Python; UserError for what the command line refuses."""
    return parse("", {**recipe, **changes}, argv=[])


def as_text(arguments: Parser, recipe: Mapping) -> dict:
    """The values of a recipe as argparse's defaults; those that are text are checked as if they had been typed."""
    flags, values = {action.dest: action for action in reversed(arguments._actions)}, {}
    for name, value in recipe.items():
        if name not in {*flags, "model", "stage"}:
            raise UserError(f"there is no setting {name}")
        if value is None and name != "fold" and name in flags and flags[name].default is not None:
            raise UserError(f"{name} should have a value, not None")
        switch = isinstance(flags.get(name), argparse._StoreTrueAction | BooleanOptionalAction)
        if switch and value not in (True, False, None):
            raise UserError(f"{name}={value!r} should be True or False")
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        values[name] = value if value is None or switch else str(value)
    return values


def check(args: Namespace) -> Namespace:
    """The same namespace; UserError if two flags contradict each other."""
    for name in ("min_lr", "warmup_lr"):
        if (getattr(args, name) or 0) > args.lr:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(args, name)} is above --lr {args.lr}: it should be at most that")
    if args.schedule == "constant" and args.min_lr:
        raise UserError("--schedule constant stays at --lr: leave --min-lr out")
    if args.nesterov and args.momentum == 0:
        raise UserError("--momentum 0 has no Nesterov form: add --no-nesterov")
    if args.alternate_flip and any(name.split(":")[0] == "flip" for name in args.augment):
        raise UserError("--alternate-flip mirrors every image already: leave flip out of --augment, "
                        "or add --no-alternate-flip")
    return args


# ---------------------------------------------------------------- types of flags


def whole_numbers(text: str) -> tuple[int, ...]:
    """`96,192,224` as a tuple of three."""
    numbers = tuple(map(integer(1), text.split(",")))
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} should be three whole numbers, such as 96,192,224")
    return numbers


def augmentations(text: str) -> tuple[str, ...]:
    """A comma-separated list of augmentations with their strengths; an empty text and `none` mean none."""
    return accept(tuple(name for name in text.split(",") if name not in ("", "none")), augment.pipeline)


def mix(text: str) -> str:
    """The name of a mix with its strengths, unchanged."""
    return accept(text, augment.mixing)


def accept(value: str | tuple[str, ...], build: Callable) -> str | tuple[str, ...]:
    """`value`, unless `build(value)` raises ValueError."""
    try:
        build(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


# {annotation of a constructor's parameter: (argparse's type, metavar)}
TYPES = {int: (int, "N"), float: (float, "X"), float | None: (float, "X"),
         tuple[int, int, int] | None: (whole_numbers, "N,N,N")}
