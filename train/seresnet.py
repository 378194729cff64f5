"""Train SEResNet-164, the documented teacher and the student's architecture.

    python train/seresnet.py                 fold 0 held out
    python train/seresnet.py --noval         on all 50,000 images
    python train/seresnet.py --depth 20 --epochs 30 --limit 5000     a trial

2,488,378 parameters, 248 M multiply-accumulates; RICAP, AutoAugment and random erasing, 30 epochs of warm-up. Every
residual starts at zero, because otherwise the gradients of 54 blocks explode at the start. The full recipe, 300 epochs,
needs a GPU and has not been run yet. After the 16 epochs of the short recipe (`make SIZE=quick ladder`), 92.26 % of the
test images are right.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command
from train.engine.flags import parse
from train.engine.loop import run

RECIPE = dict(model="seresnet164", epochs=300, weight_decay=1e-4, warmup_epochs=30,
              augment="crop,flip,autoaugment,erase", mix="ricap")

if __name__ == "__main__":
    with command():
        run(parse(__doc__, RECIPE))
