"""Train SEResNet-164, the documented teacher and the student's architecture.

    python train/seresnet.py                 fold 0 held out
    python train/seresnet.py --noval         on all 50,000 images
    python train/seresnet.py --depth 20 --epochs 30 --limit 5000     a trial

2,488,378 parameters, 248 M multiply-accumulates; RICAP, AutoAugment and random erasing. Every residual starts at zero,
and the warm-up takes 30 epochs: without them the gradients of 54 blocks explode at the start. 300 epochs, for a GPU: no
score yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command, integer, number
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse


@dataclass(frozen=True)
class SEResNet(Recipe):
    model: str = "seresnet164"
    epochs: int = 300
    weight_decay: float = 1e-4
    warmup_epochs: float = 30.0
    augment: tuple = ("crop", "flip", "autoaugment", "erase")
    mix: str = "ricap"
    depth: int = option(164, "layers, 9n + 2", integer(11))
    width: int = option(16, "planes of the first stage", integer(1))
    reduction: int = option(4, "factor by which squeeze and excitation narrows", integer(1))
    zero_init: bool = option(True, "zero-initialise the last normalization of each block")
    head_std: float | None = option(None, "deviation of the head's first weights [inputs ** -0.5]",
                                    number(0, above=True))


@command
def main():
    run(parse(SEResNet, __doc__))


if __name__ == "__main__":
    main()
