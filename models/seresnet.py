"""SE-ResNet-164: bottleneck ResNet with squeeze-and-excitation (He et al. 2016; Hu et al. 2018).

`seresnet164` has 2,488,378 parameters and 248 M multiply-accumulates per image. That number of parameters
determines what the papers leave open: normalization and ReLU follow each convolution
(pre-activation would have 2,487,482), the SE layers have biases, and their reduction is 4
(16 would give 1,906,258).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import SqueezeExcite, at_least, conv1x1, conv3x3, he_init, spatial_mean, stage

EXPANSION = 4  # a bottleneck has four times as many output channels as its 3x3 convolution


class SEBottleneck(nn.Module):
    """relu(shortcut(x) + SE(residual(x))), the residual being 1x1, 3x3, 1x1 convolutions with BN.

    The 3x3 carries the stride, and SE gates the residual before the addition (Hu et al. 2018,
    fig. 3). A strided shortcut averages 2x2 pixels before its 1x1 convolution instead of
    dropping three of four (ResNet-D, He et al. 2019, fig. 2c).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, reduction: int):
        super().__init__()
        planes = channels_out // EXPANSION
        self.conv1 = conv1x1(channels_in, planes)
        self.norm1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.norm2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, channels_out)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.se = SqueezeExcite(channels_out, reduction)
        self.shortcut = nn.Identity()
        if channels_in != channels_out:
            pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv1x1(channels_in, channels_out), nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        residual = self.se(self.norm3(self.conv3(residual)))
        return F.relu(self.shortcut(x) + residual)


class SEResNet(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    Three stages of (depth - 2) / 9 bottlenecks, so depth is 9 n + 2 (164 and 20, for example);
    their 3x3 convolutions have `width`, 2 `width` and 4 `width` channels. `reduction` divides the
    channels inside SE. With `zero_init` every residual starts at zero (see ResNet18): otherwise the gradient norm
    of depth 164 is 240 instead of 1 at the start. `head_std` is the standard deviation of the head's initial
    weights, by default that of `he_init`.
    """

    def __init__(self, num_classes: int = 10, depth: int = 164, width: int = 16, reduction: int = 4,
                 zero_init: bool = True, head_std: float | None = None):
        super().__init__()
        at_least(1, width=width, reduction=reduction)
        n, rest = divmod(depth - 2, 9)
        if n < 1 or rest:
            raise ValueError(f"the depth of an SEResNet is 9 n + 2 (20, 164, ...), not {depth}")
        if head_std is not None and not head_std > 0:
            raise ValueError(f"head_std is a standard deviation above 0, not {head_std}")
        self.name = f"seresnet{depth}" + (f"-{width}" if width != 16 else "")
        self.name += f"-r{reduction}" if reduction != 4 else ""
        self.options = {"num_classes": num_classes, "depth": depth, "width": width, "reduction": reduction,
                        "zero_init": zero_init, "head_std": head_std}
        self.stem = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU())
        channels = EXPANSION * width
        self.stage1 = stage(SEBottleneck, n, width, channels, 1, reduction)
        self.stage2 = stage(SEBottleneck, n, channels, 2 * channels, 2, reduction)
        self.stage3 = stage(SEBottleneck, n, 2 * channels, 4 * channels, 2, reduction)
        self.head = nn.Linear(4 * channels, num_classes)
        he_init(self)
        if zero_init:
            for block in (*self.stage1, *self.stage2, *self.stage3):
                nn.init.zeros_(block.norm3.weight)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(spatial_mean(x))
