"""Shake-Shake-26 2xNd (Gastaldi 2017, arXiv 1705.07485), optionally with squeeze-and-excitation.

    shakeshake26-32        2,923,162 parameters     427 M multiply-accumulates
    shakeshake26-40        4,561,354                663 M
    shakeshake26-40-se     4,597,010                663 M
    shakeshake26-64-se    11,743,802              1,686 M, a teacher above the budget

Each block has two residual branches. Training mixes them by a random alpha in the forward pass
and by another, beta, in the backward pass ("Shake-Shake-Image": both drawn per image);
evaluation takes their mean.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import (
    SqueezeExcite,
    StridedConv1x1,
    at_least,
    conv3x3,
    he_init,
    spatial_mean,
    stage,
    swap_gradient,
    uniform_per_image,
)

STEM_CHANNELS = 16  # at any width


def shake_shake(branch1: torch.Tensor, branch2: torch.Tensor, training: bool) -> torch.Tensor:
    """alpha branch1 + (1 - alpha) branch2, for branches (N, C, H, W).

    In training alpha is uniform in [0, 1) per image, and the gradient is that of another such mix, with beta
    (Gastaldi 2017, eq. 2 and fig. 1). In evaluation alpha is 0.5, its expectation.
    """
    if not training:
        return 0.5 * (branch1 + branch2)
    alpha = uniform_per_image(branch1).to(branch1.dtype)
    beta = uniform_per_image(branch1).to(branch1.dtype)
    forward = torch.lerp(branch2.detach(), branch1.detach(), alpha)
    backward = torch.lerp(branch2, branch1, beta)
    return swap_gradient(forward, backward)


class TwoPathShortcut(nn.Module):
    """Changes the number of channels, and with stride 2 the size, using more pixels than a strided 1x1 convolution.

    After a ReLU, half of the output channels are 1x1 convolutions of every stride-th pixel, and half of
    the same pixels of the image shifted right and down by one (zeros enter at the left and the
    top); a BN follows both (Gastaldi 2017, section 2.1).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = StridedConv1x1(channels_in, channels_out // 2, stride)
        self.conv2 = StridedConv1x1(channels_in, channels_out - channels_out // 2, stride)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (1, -1, 1, -1))
        return self.norm(torch.cat((self.conv1(x), self.conv2(shifted)), dim=1))


class ShakeBlock(nn.Module):
    """shortcut(x) + shake_shake of two branches; no activation follows, the branches begin with one."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, se: bool, shake: bool):
        super().__init__()
        self.shake = shake
        self.branch1 = branch(channels_in, channels_out, stride, se)
        self.branch2 = branch(channels_in, channels_out, stride, se)
        self.shortcut = nn.Identity()
        if channels_in != channels_out or stride != 1:
            self.shortcut = TwoPathShortcut(channels_in, channels_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + shake_shake(self.branch1(x), self.branch2(x), self.shake and self.training)


def branch(channels_in: int, channels_out: int, stride: int, se: bool) -> nn.Sequential:
    """ReLU-conv-BN-ReLU-conv-BN, then SE with reduction 16 if `se`."""
    return nn.Sequential(
        nn.ReLU(),
        conv3x3(channels_in, channels_out, stride),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        conv3x3(channels_out, channels_out),
        nn.BatchNorm2d(channels_out),
        SqueezeExcite(channels_out, reduction=16) if se else nn.Identity(),
    )


class ShakeShake26(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    A stem of 16 channels (conv-BN, without ReLU, because the blocks begin with one), three stages of four blocks
    with `width`, 2 `width` and 4 `width` channels, and a last ReLU before the pooling. Without `shake` the
    branches are averaged in training too.
    """

    def __init__(self, num_classes: int = 10, width: int = 32, se: bool = False, shake: bool = True):
        super().__init__()
        at_least(2, width=width)
        self.name = f"shakeshake26-{width}" + ("-se" if se else "") + ("" if shake else "-no-shake")
        self.options = {"num_classes": num_classes, "width": width, "se": se, "shake": shake}
        self.stem = nn.Sequential(conv3x3(3, STEM_CHANNELS), nn.BatchNorm2d(STEM_CHANNELS))
        self.stage1 = stage(ShakeBlock, 4, STEM_CHANNELS, width, 1, se, shake)
        self.stage2 = stage(ShakeBlock, 4, width, 2 * width, 2, se, shake)
        self.stage3 = stage(ShakeBlock, 4, 2 * width, 4 * width, 2, se, shake)
        self.head = nn.Linear(4 * width, num_classes)
        he_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(spatial_mean(F.relu(x)))
