"""Every architecture of the project by name, and the parameter budget.

    model = build("resnet18", zero_init=True)
    check_budget(model)     # a ValueError above 5,000,000 parameters

Each family has its own file. A built model takes normalized float images (N, 3, 32, 32) to logits
(N, num_classes), and carries its canonical `name` and the `options` that it was built with. In training,
a network of several columns returns the logits of each, (N, columns, num_classes).
"""

import inspect
from functools import partial

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from models.fastnet import FastNet
from models.flatse import FlatSE
from models.pyramidnet import PyramidNet
from models.resnet import ResNet18
from models.seresnet import SEResNet
from models.shakeshake import ShakeShake26

BUDGET = 5_000_000

MODELS = {
    "resnet18": ResNet18,
    "resnet20x4": partial(ResNet18, blocks=3),
    "shakeshake26-32": partial(ShakeShake26, width=32),
    "shakeshake26-40": partial(ShakeShake26, width=40),
    "shakeshake26-40-se": partial(ShakeShake26, width=40, se=True),
    "shakeshake26-64-se": partial(ShakeShake26, width=64, se=True),  # a teacher, over the budget
    "seresnet164": partial(SEResNet, depth=164),
    "seresnet20": partial(SEResNet, depth=20),
    "pyramidnet": PyramidNet,
    "flatse": FlatSE,
    "fastnet": FastNet,
    "fastnet-s": partial(FastNet, columns=1),
    "fastnet-m": partial(FastNet, columns=2),
    "fastnet-l": partial(FastNet, columns=2, widths=(96, 192, 224), residual=True),
}


def build(name: str, num_classes: int = 10, **options) -> nn.Module:
    """The model called `name`, on the CPU, freshly initialised from torch's global RNG.

    `options` are keyword arguments of its constructor, such as width=16. Raises ValueError for a
    name that is not in MODELS and for an option that the model does not take.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(MODELS)}")
    known = options_of(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return MODELS[name](num_classes=num_classes, **options)


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options of the constructor of the model called `name`, with their annotations and defaults."""
    parameters = inspect.signature(MODELS[name], eval_str=True).parameters
    return {option: parameter for option, parameter in parameters.items() if option != "num_classes"}


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, including frozen ones; running statistics of normalizations are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_budget(model: nn.Module) -> None:
    """Raise ValueError for a model above BUDGET, with the number of parameters in each stage."""
    count = parameter_count(model)
    if count > BUDGET:
        stages = ", ".join(f"{stage} {parameter_count(part):,}" for stage, part in model.named_children())
        raise ValueError(f"{model.name} has {count:,} parameters, {count - BUDGET:,} above the budget of {BUDGET:,}: "
                         f"{stages}.")


@torch.no_grad()
def macs(model: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one 32x32 image in evaluation mode."""
    training, device = model.training, next(model.parameters()).device
    try:
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, 32, 32, device=device))
    finally:
        model.train(training)
    return counter.get_total_flops() // 2
