"""Train Shake-Shake-26 2xNd, as a student within the budget or as the wide teacher.

    python train/shakeshake.py --augment crop,flip,autoaugment,cutout --mix none             2x32d
    python train/shakeshake.py --width 40 --augment crop,flip,autoaugment,cutout --mix none  2x40d
    python train/shakeshake.py --width 40 --se                                               2x40d, SE, RICAP
    python train/shakeshake.py --width 64 --se --noval                                       the teacher

2xNd means two branches, each with N channels in the first stage (--width). 2x32d has 2,923,162 parameters and 427 M
multiply-accumulates. 2x64d with SE has 11.7 M parameters and 1,686 M multiply-accumulates. It is above the budget, so
it can only be a teacher. The full recipe, 300 epochs, needs a GPU and has not been run yet. After the 16 epochs of the
short recipe (`make SIZE=quick ladder`), 89.55 % of the test images are right with 2x32d, 89.75 % with 2x40d, 90.45 %
with 2x40d and SE: the random weights of the branches slow learning down (train/README.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.engine.command import command
from train.engine.flags import parse
from train.engine.loop import run

RECIPE = dict(model="shakeshake26-32", epochs=300, lr=0.2, weight_decay=1e-4, augment="crop,flip,autoaugment,erase",
              mix="ricap", allow_over_budget=True)

if __name__ == "__main__":
    with command():
        run(parse(__doc__, RECIPE))
