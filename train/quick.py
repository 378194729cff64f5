"""The shortest way to a good network: FastNet, fourteen epochs, on two CPU cores in 16 to 99 minutes.

    python train/quick.py                     fold 0 held out
    python train/quick.py --noval             on all 50,000 images
    python train/quick.py --columns 1         one network alone: half of the time

Two columns of 64-256-256 channels, 3,945,272 parameters, 236 M multiply-accumulates; on the test set 94.16 ± 0.05 % in
bfloat16 (three seeds, all 50,000 images) and 94.11 ± 0.17 % in float32 (four), for 0.69 PFLOP: on two cores 16 minutes
with AMX (bfloat16), 45 with AVX-512 and 99 with AVX2 (float32). The first half of the run is at 20x20 pixels. Jordan
2024, arXiv 2404.00498: whitening, mirroring in every other epoch, a triangular learning rate, fast shifts of the
normalizations, label smoothing. The released network is two columns of 96-192-224 channels with `--residual`, in
several steps (README has the commands): 4,623,544 parameters, 95.55 %.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

from augment.basic import normalize
from train.engine.command import command, integer, number
from train.engine.loop import run
from train.engine.recipe import Recipe, option, parse, setting

SHIFT_LR = 64  # the normalizations' shifts learn so much faster (section 3.4)
WHITENED = 5_000  # images that the first layer is computed from


@dataclass(frozen=True)
class Quick(Recipe):
    model: str = "fastnet"
    epochs: int = 14
    batch_size: int = 512
    lr: float = 0.75
    momentum: float = 0.85
    weight_decay: float = 1.3e-3
    warmup_epochs: float = 2.0
    warmup_lr: float | None = setting(None, "learning rate that the warm-up begins from [lr / 5]", number(0))
    smoothing: float = 0.2
    augment: tuple = ("shift",)
    alternate_flip: bool = True
    small: float = 0.5
    columns: int = option(2, "networks side by side whose logits are averaged", integer(1))
    width: int = option(64, "channels of the first stage", integer(1))
    middle: int | None = option(None, "channels of the second stage [4 x the first]", integer(1))
    top: int | None = option(None, "channels of the third stage [as the second]", integer(1))
    residual: bool = option(False, "a third convolution a stage, with a shortcut")

    @property
    def identity(self):
        """Without the columns where there is one, as what was trained before there were several."""
        values = super().identity
        return {name: value for name, value in values.items() if name != "columns" or value > 1}

    def learning_rate(self, step, steps):
        """Straight up during the warm-up, from a fifth of the peak, and straight down after it."""
        warmup = self.warmup_steps(steps)
        first = 0.2 if self.warmup_lr is None else self.warmup_lr / self.lr  # the share of the peak it begins from
        if step < warmup:
            return self.lr * (first + (1 - first) * step / warmup)
        return self.min_lr + (self.lr - self.min_lr) * (steps - step) / max(1, steps - warmup)

    def parameter_groups(self, model):
        """The normalizations' shifts learn faster; as SGD multiplies the decay by the learning rate, it is divided."""
        shifts = dict.fromkeys(
            p for name, p in model.named_parameters() if name.startswith("stage") and name.endswith("bias"))
        others = [group | {"params": [p for p in group["params"] if p not in shifts]}
                  for group in super().parameter_groups(model)]
        return [*others, {"params": list(shifts), "lr_scale": SHIFT_LR,
                          "weight_decay": self.weight_decay / SHIFT_LR if self.decay_all else 0.0}]

    def prepare(self, train, model):
        """Compute the first layer from the first training images."""
        model.whiten(normalize(train.images[:WHITENED]))
        return super().prepare(train, model)


@command
def main():
    run(parse(Quick, __doc__))


if __name__ == "__main__":
    main()
