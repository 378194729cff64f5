"""Train a PyramidNet with ShakeDrop, sized to the budget of 5,000,000 parameters.

    python train/pyramidnet.py               fold 0 held out
    python train/pyramidnet.py --noval       on all 50,000 images

4,993,281 parameters, 949 M multiply-accumulates; basic blocks at depth 110, or --bottleneck; AutoAugment, random
erasing and RICAP. 300 epochs, for a GPU: no score yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command, integer, number
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse


@dataclass(frozen=True)
class PyramidNet(Recipe):
    model: str = "pyramidnet"
    epochs: int = 300
    weight_decay: float = 1e-4
    augment: tuple = ("crop", "flip", "autoaugment", "erase")
    mix: str = "ricap"
    depth: int = option(110, "layers, 6n + 2 (with --bottleneck 9n + 2)", integer(8))
    widening: int = option(99, "channels added from the first block to the last", integer(1))
    bottleneck: bool = option(False, "bottleneck instead of basic blocks")
    shakedrop: float = option(0.5, "survival probability of the last block, 1 for no ShakeDrop", number(0, 1))


@command
def main():
    run(parse(PyramidNet, __doc__))


if __name__ == "__main__":
    main()
