"""A picture of every augmentation, because people check augmentations by eye.

    python train/preview.py --out augment.png
    python train/preview.py --data synthetic --seed 1

Each row shows the same eight training images: under the fourteen operations from the weakest to the strongest
magnitude of AutoAugment's space, then under the policies and the mixes. A few seconds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import torch
import torch.nn.functional as F

from augment import AUGMENTATIONS, MIXES
from augment.ops import OPS
from augment.policies import AUTOAUGMENT_SPACE, NAMES, SIGNED
from train.engine import data
from train.engine.command import DATA, check_target, command, integer, parser
from train.engine.plots import figure

COLUMNS = 8


def operation_rows(images):
    """(label, images) for each operation, its magnitude growing from left to right."""
    for k, name in enumerate(OPS):
        bins = AUTOAUGMENT_SPACE[k]
        first = -bins[-1] if SIGNED[k] else bins[0]
        magnitude = torch.linspace(first, bins[-1], len(images))
        span = f"\n{first:.3g} to {bins[-1]:.3g}" if bins.any() else ""
        yield name + span, OPS[NAMES[k]](images, magnitude)


def random_rows(images, seed):
    """(label, images) for each augmentation and mix; the varied ones are drawn twice."""
    generator = torch.Generator().manual_seed(seed)
    for name, augment in AUGMENTATIONS.items():
        for draw in range(1 if name in ("crop", "flip", "shift", "erase", "cutout") else 2):
            yield name if draw == 0 else "", augment(images, generator)
    for name, mix in MIXES.items():
        for draw in range(0 if name == "none" else 2):
            yield name if draw == 0 else "", mix(generator, images)[0]


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("--data", **DATA)
    arguments.add_argument("--out", type=Path, default=Path("augment.png"), metavar="FILE", help="picture to write")
    arguments.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of the random rows")
    args = arguments.parse_args()
    check_target("--out", args.out, ".png")
    images = data.load(args.data).images[:COLUMNS]
    panels = [[("original", images), *operation_rows(images)], list(random_rows(images, args.seed))]
    height = max(map(len, panels))
    with figure(args.out, (7 * len(panels), 0.75 * height), height, len(panels)) as (_, axes):
        for axis in axes.flat:
            axis.axis("off")
        for column, rows in zip(axes.T, panels):
            for axis, (label, images) in zip(column, rows):
                strip = F.pad(images, (1, 1, 1, 1), value=255).permute(2, 0, 3, 1).flatten(1, 2)
                axis.imshow(strip.round().to(torch.uint8).numpy(), interpolation="nearest")  # mixup gives floats
                axis.text(-4, 17, label, ha="right", va="center")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
