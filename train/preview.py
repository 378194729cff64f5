"""A picture of the augmentations, because people check augmentations by eye.

    python train/preview.py --out augment.png                           every operation, policy and mix
    python train/preview.py --augment crop,flip,cutout:12 --mix ricap   what a training run with these flags sees
    python train/preview.py --data synthetic --seed 1

Each row shows the same eight training images: under the fourteen operations of AutoAugment, each from one end of its
range to the other, then under the policies and the mixes. With --augment or --mix it shows each of these, then all
together in four epochs. A few seconds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from augment import AUGMENTATIONS, MIXES, mixing, pipeline
from augment.ops import OPS
from augment.policies import AUTOAUGMENT_SPACE, SIGNED
from train import ROOT
from train.data import cifar10
from train.data.sources import expand
from train.engine import flags
from train.engine.command import check_target, command, integer, parser
from train.scores.plots import figure

COLUMNS = 8
EPOCHS = 4


def operation_rows(images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """(label, images) for each operation, its magnitude growing from left to right."""
    for k, (name, operation) in enumerate(OPS.items()):
        bins = AUTOAUGMENT_SPACE[k]
        first = -bins[-1] if SIGNED[k] else bins[0]
        magnitude = torch.linspace(first, bins[-1], len(images))
        span = f"\n{first:.3g} to {bins[-1]:.3g}" if bins.any() else ""
        yield name + span, operation(images, magnitude)


def random_rows(images: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """(label, images) for each augmentation and mix."""
    for name, augment in AUGMENTATIONS.items():
        yield name, augment(images, generator)
    for name, mix in MIXES.items():
        if name != "none":
            yield name, mix(generator, images)[0]


def training_rows(images: torch.Tensor, augment: tuple[str, ...], mix: str,
                  generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """(label, images) for each augmentation of a training, for its mix, and for all of them in several epochs."""
    for name in augment:
        yield name, pipeline([name])(images, generator)
    if mix != "none":
        yield mix, mixing(mix)(generator, images)[0]
    for epoch in range(1, EPOCHS + 1):
        yield f"all, epoch {epoch}", mixing(mix)(generator, pipeline(augment)(images, generator))[0]


def main() -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("--data", type=expand, default=ROOT / "data", metavar="PATH", help="folder of the images, or synthetic")
    add("--out", type=expand, default=Path("augment.png"), metavar="FILE", help="picture to write")
    add("--seed", type=integer(0), default=0, metavar="N", help="seed of the random rows")
    add("--augment", type=flags.augmentations, metavar="NAME[:STRENGTH],...", help="only these, as in training")
    add("--mix", type=flags.mix, metavar="NAME[:STRENGTH]", help="only this, as in training")
    args = arguments.parse_args()
    check_target("--out", args.out, ".png")
    images = cifar10.load(args.data).images[:COLUMNS]
    generator, original = torch.Generator().manual_seed(args.seed), ("original", images)
    if args.augment is not None or args.mix:
        panels = [[original, *training_rows(images, args.augment or (), args.mix or "none", generator)]]
    else:
        panels = [[original, *operation_rows(images)], [*random_rows(images, generator)]]

    height = max(map(len, panels))
    with figure(args.out, (7 * len(panels), 0.75 * height), height, len(panels)) as (_, axes):
        for axis in axes.flat:
            axis.axis("off")
        for column, rows in zip(axes.reshape(height, -1).T, panels, strict=True):
            for axis, (label, row) in zip(column, rows, strict=False):
                strip = F.pad(row, (1, 1, 1, 1), value=255).permute(2, 0, 3, 1).flatten(1, 2)
                axis.imshow(strip.round().to(torch.uint8).numpy(), interpolation="nearest")  # mixup returns floats
                axis.text(-4, 17, label, ha="right", va="center", fontsize=8.5)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    with command():
        main()
