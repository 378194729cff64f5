"""Train the baseline, a ResNet-18 without its fourth stage, by one of four recipes (--stage).

    python train/baseline.py                        augmented, fold 0 held out
    python train/baseline.py --stage optimized      without AutoAugment, erasing and Cutout
    python train/baseline.py --stage basic --noval  a constant learning rate, no augmentation; on all 50,000 images
    python train/baseline.py --stage tuned --noval  not documented: three blocks per stage, 4,327,754 parameters

2,777,674 parameters, 421 M multiply-accumulates (tuned: 648 M). The full recipe, 200 epochs (tuned: 139), is meant for
a GPU and has not been run yet. After the 16 epochs of the short recipe (`make SIZE=quick ladder`), 83.02 % of the test
images are right with `basic`, 92.79 % with `optimized`, 92.51 % with `augmented`, 92.90 % with the network of `tuned`.
The released network continued from the last of these, by the recipe of `tuned`, to 96.10 % (weights/README.md). On two
CPU cores an epoch takes 2 to 20 minutes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command
from train.engine.flags import parse
from train.engine.loop import run

OPTIMIZED = dict(model="resnet18", stage="optimized", lr=0.2, zero_init=True)
STAGES = {
    "augmented": OPTIMIZED | dict(stage="augmented", augment="crop,flip,autoaugment,erase,cutout"),
    "optimized": OPTIMIZED,
    "basic": dict(model="resnet18", stage="basic", lr=0.1, schedule="constant", warmup_epochs=0, nesterov=False,
                  weight_decay=0, augment="none"),
    # Not documented: for a network of three blocks per stage, near the budget.
    "tuned": dict(model="resnet20x4", stage="tuned", epochs=139, lr=0.2, weight_decay=1e-4, zero_init=True,
                  smoothing=0.1, augment="crop,flip,trivial:0.5,cutout", low_res=0.5),
}

if __name__ == "__main__":
    with command():
        run(parse(__doc__, STAGES, by="stage"))
