"""A picture of every augmentation, because people check augmentations by eye.

    python -m augment.preview --data data --out augment.png
    python augment/preview.py --data synthetic --seed 1

Each row shows the same eight training images: under the fourteen operations from the weakest to
the strongest magnitude of AutoAugment's space, then under the policies and the mixes. It reads
PATH/cifar10.npz or PATH/cifar-10-batches-py, or draws pictures itself. A few seconds.
"""

import argparse
import sys
from pathlib import Path
from zipfile import BadZipFile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from augment import AUGMENTATIONS, MIXES
from augment.ops import OPS
from augment.policies import AUTOAUGMENT_SPACE, NAMES, SIGNED

COLUMNS = 8


def load(data, n):
    """n images (n, 3, 32, 32) uint8 from a data folder or "synthetic"; FileNotFoundError."""
    folder = Path(data)
    if data == "synthetic":
        return synthetic(n)
    if (folder / "cifar10.npz").exists():
        with np.load(folder / "cifar10.npz", allow_pickle=False) as archive:
            pictures = archive["train_images"]
    elif (folder / "cifar-10-batches-py").exists():
        from torchvision.datasets import CIFAR10

        pictures = CIFAR10(folder, download=False).data
    else:
        raise FileNotFoundError(
            f"no cifar10.npz and no cifar-10-batches-py in {data}; --data synthetic needs neither"
        )
    spread = pictures[:: len(pictures) // n][:n]  # a file may be sorted by class
    return torch.from_numpy(spread.copy()).permute(0, 3, 1, 2).contiguous()


def synthetic(n):
    """Smooth coloured backgrounds with a bright disc that tells up from down."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    pictures = F.interpolate(coarse, 32, mode="bicubic", align_corners=True) * 200
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (y - 10) ** 2 + (x - 12) ** 2 < 36
    pictures[:, :, disc] = 255 - pictures[:, :, disc] / 3
    return pictures.clamp(0, 255).to(torch.uint8)


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
        for draw in range(1 if name in ("crop", "flip", "erase", "cutout") else 2):
            yield name if draw == 0 else "", augment(images, generator)
    for name, mix in MIXES.items():
        for draw in range(0 if name == "none" else 2):
            yield name if draw == 0 else "", mix(generator, images)[0]


def draw(panels, out):
    """Write the panels, each a list of (label, (COLUMNS, 3, 32, 32) images), side by side."""
    height = max(len(rows) for rows in panels)
    figure, axes = plt.subplots(height, len(panels), figsize=(7 * len(panels), 0.75 * height))
    for axis in axes.flat:
        axis.axis("off")
    for column, rows in zip(axes.T, panels):
        for axis, (label, images) in zip(column, rows):
            strip = F.pad(images, (1, 1, 1, 1), value=255).permute(2, 0, 3, 1).flatten(1, 2)
            axis.imshow(strip.round().to(torch.uint8).numpy(), interpolation="nearest")  # mixup gives floats
            axis.text(-4, 17, label, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left=0.09, right=0.99, top=0.99, bottom=0.01, hspace=0.05, wspace=0.2)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder, or synthetic (default: data)")
    parser.add_argument("--out", default="augment.png", help="picture to write (augment.png)")
    parser.add_argument("--seed", type=int, default=0, help="of the random rows (0)")
    args = parser.parse_args()
    try:
        images = load(args.data, COLUMNS)
        operations = [("original", images), *operation_rows(images)]
        draw([operations, list(random_rows(images, args.seed))], args.out)
    except (OSError, ValueError, KeyError, RuntimeError, BadZipFile) as error:  # no data, damaged data, no such folder
        parser.exit(2, f"preview: {' '.join(str(error).split())}\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
