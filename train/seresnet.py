"""Train SEResNet-164, the documented teacher and the student's architecture.

    python train/seresnet.py                 fold 0 held out
    python train/seresnet.py --noval         on all 50,000 images
    python train/seresnet.py --depth 20 --epochs 30 --limit 5000     a trial

2,488,378 parameters, 248 M multiply-accumulates; RICAP, AutoAugment and random erasing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.loop import run
from train.recipe import Recipe, command, parse, setting, whole


@dataclass(frozen=True)
class SEResNet(Recipe):
    model: str = "seresnet164"
    epochs: int = 300
    weight_decay: float = 1e-4
    augment: tuple = ("crop", "flip", "autoaugment", "erase")
    mix: str = "ricap"
    depth: int = setting(164, "layers, 9n + 2", whole(11), "model", model=True)
    width: int = setting(16, "planes of the first stage", whole(1), "model", model=True)
    reduction: int = setting(4, "of squeeze and excitation", whole(1), "model", model=True)


@command
def main():
    run(parse(SEResNet, __doc__))


if __name__ == "__main__":
    main()
