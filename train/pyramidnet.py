"""Train a PyramidNet with ShakeDrop, sized to the budget of 5,000,000 parameters.

    python train/pyramidnet.py               fold 0 held out
    python train/pyramidnet.py --noval       on all 50,000 images

4,993,281 parameters, 949 M multiply-accumulates; basic blocks at depth 110, or --bottleneck; AutoAugment, random
erasing and RICAP. The full recipe, 300 epochs, needs a GPU and has not been run yet. After 8 epochs of the short recipe
(`make SIZE=quick ladder`), 84.27 % of the test images are right; ShakeDrop slows learning down (train/README.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command
from train.engine.flags import parse
from train.engine.loop import run

RECIPE = dict(model="pyramidnet", epochs=300, weight_decay=1e-4, augment="crop,flip,autoaugment,erase", mix="ricap")

if __name__ == "__main__":
    with command():
        run(parse(__doc__, RECIPE))
