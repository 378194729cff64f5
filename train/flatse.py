"""Train FlatSE, the pre-activation SE network that spends the whole budget.

    python train/flatse.py                                   fold 0 held out
    python train/flatse.py --noval                           on all 50,000 images
    python train/flatse.py --width 24 --depth 16 --epochs 30 --limit 5000     a trial

4,800,974 parameters, 1,080 M multiply-accumulates; AutoAugment and CutMix on half of the batches, paths dropped,
weights averaged. 300 epochs, for a GPU: no score yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command, integer, number
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse


@dataclass(frozen=True)
class FlatSE(Recipe):
    model: str = "flatse"
    epochs: int = 300
    weight_decay: float = 5e-4
    ema_decay: float = 0.999
    augment: tuple = ("crop", "flip", "autoaugment")
    mix: str = "cutmix:1.0:0.5"
    width: int = option(80, "channels of the first stage", integer(1))
    depth: int = option(30, "layers, 14n + 2", integer(16))
    drop_path: float = option(0.1, "probability that an image skips the last block, less before", number(0, 1))


@command
def main():
    run(parse(FlatSE, __doc__))


if __name__ == "__main__":
    main()
