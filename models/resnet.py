"""ResNet-18 for 32x32 images, without its fourth stage (He et al. 2016, arXiv 1512.03385).

`resnet18` has 2,777,674 parameters and 421 M multiply-accumulates per image. `resnet20x4` has three blocks a stage:
4,327,754 parameters, 648 M.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import StridedConv1x1, at_least, conv3x3, he_init, spatial_mean, stage


class BasicBlock(nn.Module):
    """relu(shortcut(x) + residual(x)), the residual being conv-BN-ReLU-conv-BN (He et al. 2016, fig. 2).

    Where the shape changes, the shortcut is a strided 1x1 convolution with BN (option B).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = StridedConv1x1(channels_in, channels_out, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(self.shortcut(x) + residual)


class ResNet18(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    A 3x3 stem at full resolution and three stages of `blocks` blocks: `width` channels at 32x32,
    2 `width` at 16x16, 4 `width` at 8x8. With `zero_init` the last normalization of each block
    starts at zero, so that every block starts as its shortcut (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, num_classes: int = 10, width: int = 64, blocks: int = 2, zero_init: bool = False):
        super().__init__()
        at_least(1, width=width, blocks=blocks)
        self.name = ("resnet18" if blocks == 2 else f"resnet{6 * blocks + 2}x4") + (f"-{width}" if width != 64 else "")
        self.options = {"num_classes": num_classes, "width": width, "blocks": blocks, "zero_init": zero_init}
        self.stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = stage(BasicBlock, blocks, width, width, stride=1)
        self.stage2 = stage(BasicBlock, blocks, width, 2 * width, stride=2)
        self.stage3 = stage(BasicBlock, blocks, 2 * width, 4 * width, stride=2)
        self.head = nn.Linear(4 * width, num_classes)
        he_init(self)
        if zero_init:
            for block in (*self.stage1, *self.stage2, *self.stage3):
                nn.init.zeros_(block.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(spatial_mean(x))
