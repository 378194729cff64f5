"""FlatSE: a pre-activation residual network with squeeze-and-excitation, designed for the budget.

The usual doubling of channels spends most parameters on the 8x8 stage. The flat widths
80-128-192 with 4-6-4 blocks spend more of them at higher resolutions: `flatse` has 4,800,974 parameters
and 1,080 M multiply-accumulates; resnet18 widened to as many parameters has 725 M.
Sources: He et al. 2016, arXiv 1603.05027 (pre-activation); Hu et al. 2018 (SE).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import SqueezeExcite, at_least, conv1x1, conv3x3, drop_path, he_init, spatial_mean, stage


class FlatBlock(nn.Module):
    """shortcut(x) + drop_path(SE(residual(x))), the residual being BN-ReLU-conv-BN-ReLU-conv.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, averaged over
    2x2 pixels if strided; elsewhere it is the identity (He et al. 2016, fig. 4e).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.drop_rate = 0.0  # the network sets it
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.se = SqueezeExcite(channels_out, reduction=16)
        self.shortcut = None
        if stride != 1 or channels_in != channels_out:
            pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv1x1(channels_in, channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return shortcut + drop_path(self.se(residual), self.drop_rate, self.training)


class FlatSE(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    Channels are `width`, 1.6 `width` and 2.4 `width`, the last two rounded up to a multiple of 8, which
    suits tensor cores. Depth is 14 n + 2 for stages of 2 n, 3 n and 2 n blocks (30 gives 4-6-4).
    `drop_path` in [0, 1) is the rate of the last block; it grows linearly from the first.
    """

    def __init__(self, num_classes: int = 10, width: int = 80, depth: int = 30, drop_path: float = 0.0):
        super().__init__()
        at_least(1, width=width)
        n, rest = divmod(depth - 2, 14)
        if n < 1 or rest:
            raise ValueError(f"the depth of a FlatSE is 14 n + 2 (16, 30, ...), not {depth}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a rate in [0, 1), not {drop_path}")
        self.name = "flatse" + (f"-{width}" if width != 80 else "") + (f"-d{depth}" if depth != 30 else "")
        self.options = {"num_classes": num_classes, "width": width, "depth": depth, "drop_path": drop_path}
        width2, width3 = (8 * math.ceil(wanted / 8) for wanted in (width * 8 / 5, width * 12 / 5))
        self.stem = conv3x3(3, width)
        self.stage1 = stage(FlatBlock, 2 * n, width, width, 1)
        self.stage2 = stage(FlatBlock, 3 * n, width, width2, 2)
        self.stage3 = stage(FlatBlock, 2 * n, width2, width3, 2)
        for k, block in enumerate((*self.stage1, *self.stage2, *self.stage3), start=1):
            block.drop_rate = drop_path * k / (7 * n)
        self.norm = nn.BatchNorm2d(width3)
        self.head = nn.Linear(width3, num_classes)
        he_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(spatial_mean(F.relu(self.norm(x))))
