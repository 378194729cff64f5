"""Train FlatSE, the pre-activation SE network that uses the whole budget.

    python train/flatse.py                                   fold 0 held out
    python train/flatse.py --noval                           on all 50,000 images
    python train/flatse.py --width 24 --depth 16 --epochs 30 --limit 5000     a trial

4,800,974 parameters, 1,080 M multiply-accumulates; AutoAugment, CutMix on half of the batches, drop path and averaged
weights. The full recipe, 300 epochs, needs a GPU and has not been run yet. After 8 epochs of the short recipe (`make
SIZE=quick ladder`), 90.52 % of the test images are right.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command
from train.engine.flags import parse
from train.engine.loop import run

RECIPE = dict(model="flatse", drop_path=0.1, epochs=300, ema_decay=0.999, augment="crop,flip,autoaugment",
              mix="cutmix:1.0:0.5")

if __name__ == "__main__":
    with command():
        run(parse(__doc__, RECIPE))
