"""The shortest way to a good network: FastNet, a few large-batch epochs, in minutes on a CPU and seconds on a GPU.

    python train/quick.py                     fold 0 held out
    python train/quick.py --noval             on all 50,000 images
    python train/quick.py --noval --width 96 --epochs 40 --mix cutmix     longer and better

1,972,792 parameters, 118 M multiply-accumulates; 93.02 % on the test set (seed 0, all 50,000 images), in 22 minutes on
two CPU cores. Jordan 2024, arXiv 2404.00498: whitening, mirroring in every other epoch, a triangular learning rate,
fast shifts of the normalizations, label smoothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.nn.functional as F

from augment.basic import normalize
from train.loop import run
from train.recipe import Recipe, command, number, parse, setting, whole

SHIFT_LR = 64  # the normalizations' shifts learn so much faster (section 3.4)
WHITENED = 5_000  # images that the first layer is computed from


@dataclass(frozen=True)
class Quick(Recipe):
    model: str = "fastnet"
    epochs: int = 10
    batch_size: int = 1024
    lr: float = 1.5
    momentum: float = 0.85
    weight_decay: float = 1.3e-3
    warmup_epochs: float = 2.0
    augment: tuple = ("shift",)
    alternate_flip: bool = True
    smoothing: float = setting(0.2, "of the labels", number(0, 1))
    width: int = setting(64, "channels of the first stage, the second has four times as many", whole(1), "model",
                         model=True)
    top: int | None = setting(None, "channels of the third stage [as the second]", whole(1), "model", model=True)


def triangle(step, steps, warmup, peak, floor):
    """The learning rate: straight up from a fifth of the peak during the warm-up, and straight down after it."""
    if step < warmup:
        return peak * (0.2 + 0.8 * step / warmup)
    return floor + (peak - floor) * (steps - step) / max(1, steps - warmup)


def groups(recipe):
    """The normalizations' shifts learn faster, with the same decay per step: it counts times the learning rate."""

    def of(model):
        learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        shifts = [p for name, p in learned if name.startswith("stage") and name.endswith("bias")]
        others = [p for _, p in learned if all(p is not shift for shift in shifts)]
        decay = recipe.weight_decay / SHIFT_LR
        return [{"params": others}, {"params": shifts, "lr_scale": SHIFT_LR, "weight_decay": decay}]

    return of


def whiten(train, model):
    """Compute the first layer from the first training images."""
    model.whiten(normalize(train.images[:WHITENED]))
    return train, ()


@command
def main():
    recipe = parse(Quick, __doc__)

    def smoothed(logits, images, targets):
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=recipe.smoothing)}

    run(recipe, smoothed, whiten, lr_at=triangle, groups=groups(recipe))


if __name__ == "__main__":
    main()
