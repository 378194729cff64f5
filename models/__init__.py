"""Every architecture of the project by name, and the budget it is held to.

    model = build("resnet18", zero_init=True)
    check_budget(model)     # 2777674, or a BudgetError above 5,000,000

Each family has a file. A built model takes normalized float images (N, 3, 32, 32) to logits
(N, num_classes), and carries its canonical `name` and the `options` that it was built with. One of
several columns returns each one's logits in training, (N, columns, num_classes).
"""

import inspect
from functools import partial

import torch
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
    "shakeshake26-32": partial(ShakeShake26, width=32),
    "shakeshake26-40": partial(ShakeShake26, width=40),
    "shakeshake26-40-se": partial(ShakeShake26, width=40, se=True),
    "shakeshake26-64-se": partial(ShakeShake26, width=64, se=True),  # a teacher, over the budget
    "seresnet164": partial(SEResNet, depth=164),
    "seresnet20": partial(SEResNet, depth=20),
    "pyramidnet": PyramidNet,
    "flatse": FlatSE,
    "fastnet": FastNet,
}


class BudgetError(ValueError):
    """A model has more parameters than BUDGET."""


def build(name, num_classes=10, **options):
    """The model called `name`, on the CPU, freshly initialised from torch's global RNG.

    `options` are keyword arguments of its constructor, such as width=16. Raises ValueError for a
    name that is not in MODELS and for an option that the model does not take.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(MODELS)}")
    known = [option for option in inspect.signature(MODELS[name]).parameters if option != "num_classes"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return MODELS[name](num_classes=num_classes, **options)


def parameter_count(model):
    """Number of parameters, frozen ones too; the running statistics of normalizations are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_budget(model):
    """The parameter count of `model`; raises BudgetError above BUDGET, saying where the parameters are."""
    count = parameter_count(model)
    if count <= BUDGET:
        return count
    name = getattr(model, "name", type(model).__name__)
    stages = ", ".join(f"{stage} {parameter_count(part):,}" for stage, part in model.named_children())
    raise BudgetError(f"{name} has {count:,} parameters, {count - BUDGET:,} above the budget of {BUDGET:,}: {stages}.")


@torch.no_grad()
def macs(model):
    """Multiply-accumulates of convolutions and linear layers for one 32x32 image in evaluation mode."""
    training = model.training
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 32, 32, device=device))
    model.train(training)
    return counter.get_total_flops() // 2
