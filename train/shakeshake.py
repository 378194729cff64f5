"""Train Shake-Shake-26 2xNd, as a student within the budget or as the wide teacher.

    python train/shakeshake.py --augment crop,flip,autoaugment,cutout --mix none             2x32d
    python train/shakeshake.py --width 40 --augment crop,flip,autoaugment,cutout --mix none  2x40d
    python train/shakeshake.py --width 40 --se                                               2x40d, SE, RICAP
    python train/shakeshake.py --width 64 --se --noval                                       the teacher

2,923,162 parameters and 427 M multiply-accumulates at width 32; 2x64d with SE has 11.7 M and 1,686 M: above the
budget, it is marked as a teacher. 300 epochs, for a GPU: no score yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command, integer
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse


@dataclass(frozen=True)
class ShakeShake(Recipe):
    model: str = "shakeshake26-32"
    epochs: int = 300
    lr: float = 0.2
    weight_decay: float = 1e-4
    augment: tuple = ("crop", "flip", "autoaugment", "erase")
    mix: str = "ricap"
    width: int = option(32, "channels of each branch in the first stage", integer(2))
    se: bool = option(False, "squeeze and excitation on each branch")


@command
def main():
    run(parse(ShakeShake, __doc__), teacher=True)


if __name__ == "__main__":
    main()
