"""Train the baseline, a ResNet-18 without its fourth stage, at one of its documented stages.

    python train/baseline.py                        augmented, fold 0 held out
    python train/baseline.py --stage optimized      without AutoAugment, erasing and Cutout
    python train/baseline.py --stage basic --noval  a constant learning rate, no augmentation; on all 50,000 images

2,777,674 parameters, 421 M multiply-accumulates. 200 epochs, for a GPU: no score yet. On two CPU cores an epoch takes
about 20 minutes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command, integer
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse, setting

OPTIMIZED = dict(lr=0.2, weight_decay=5e-4, warmup_epochs=5.0, augment=("crop", "flip"))
STAGES = {
    # A constant learning rate is a cosine whose end is its peak.
    "basic": dict(lr=0.1, min_lr=0.1, warmup_epochs=0.0, nesterov=False, weight_decay=0.0, zero_init=False,
                  augment=()),
    "optimized": OPTIMIZED,
    "augmented": OPTIMIZED | dict(augment=("crop", "flip", "autoaugment", "erase", "cutout")),
}


@dataclass(frozen=True)
class Baseline(Recipe):
    lr: float = 0.2
    augment: tuple = ("crop", "flip", "autoaugment", "erase", "cutout")
    stage: str = setting("augmented", "documented stage, which sets the other defaults", str, choices=tuple(STAGES))
    width: int = option(64, "channels of the first stage", integer(1))
    zero_init: bool = option(True, "zero-initialise the last normalization of each block")

    def run_name(self, model_name):
        return super().run_name(model_name if self.stage == "augmented" else f"{model_name}-{self.stage}")


@command
def main():
    run(parse(Baseline, __doc__, stage=STAGES))


if __name__ == "__main__":
    main()
