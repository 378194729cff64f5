"""PyramidNet with ShakeDrop (Han et al. 2017, arXiv 1610.02915; Yamada et al. 2019, arXiv 1802.02375).

A residual network that widens slightly in every block instead of doubling at each stage.
`pyramidnet` is the widest of depth 110 within 5,000,000 parameters: widening 99, 4,993,281 parameters.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import at_least, conv1x1, conv3x3, he_init, spatial_mean, swap_gradient, uniform_per_image

STEM_CHANNELS = 16
EXPANSION = 4  # a bottleneck has four times as many output channels as its 3x3 convolution


class ShakeDrop(nn.Module):
    """Scale a residual (N, C, H, W) per image: by 1 with probability `survival`, else at random.

    In training the factor is b + alpha - b alpha, with b in {0, 1} of mean `survival` and alpha
    uniform in [-1, 1), and in the backward pass b + beta - b beta with the same b and beta
    uniform in [0, 1) (Yamada et al. 2019). Here b, alpha and beta are all drawn per image. In
    evaluation the factor is its expectation, `survival`, because alpha has mean zero.
    """

    def __init__(self, survival: float):
        super().__init__()
        self.survival = survival

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.survival * residual
        survives = uniform_per_image(residual) < self.survival
        alpha = (2 * uniform_per_image(residual) - 1).masked_fill(survives, 1).to(residual.dtype)
        beta = uniform_per_image(residual).masked_fill(survives, 1).to(residual.dtype)
        return swap_gradient(alpha * residual.detach(), beta * residual)


class PyramidBlock(nn.Module):
    """shortcut(x) + ShakeDrop(residual(x)), with no ReLU before the first convolution or after the addition.

    The residual is two 3x3 convolutions or, with `bottleneck`, 1x1, 3x3 and 1x1, with BN before the first and after
    each (Han et al. 2017, fig. 6d). The shortcut has no parameters: it averages 2x2 pixels if strided, and pads the
    additional channels with zeros.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, bottleneck: bool, survival: float):
        super().__init__()
        self.channels_out, self.stride = channels_out, stride
        if bottleneck:
            planes = channels_out // EXPANSION
            convolutions = conv1x1(channels_in, planes), conv3x3(planes, planes, stride), conv1x1(planes, channels_out)
        else:
            convolutions = conv3x3(channels_in, channels_out, stride), conv3x3(channels_out, channels_out)
        layers = [nn.BatchNorm2d(channels_in)]
        for conv in convolutions:
            layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]
        self.residual = nn.Sequential(*layers[:-1])
        self.shakedrop = ShakeDrop(survival)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = F.avg_pool2d(x, 2) if self.stride == 2 else x
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.channels_out - x.shape[1]))
        return shortcut + self.shakedrop(self.residual(x))


class PyramidNet(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    Depth is 6 n + 2, or 9 n + 2 with `bottleneck`, for three stages of n blocks. Block k of N has
    16 + floor(k widening / N) planes: the integer `widening` (alpha in the paper) leads from the stem to the last
    block (Han et al. 2017, eq. 2, with the floor of the whole sum; their code rounds, which is above the budget at 99).
    `shakedrop` in [0, 1] is the probability that the last residual is kept unchanged; block k survives with
    1 - k / N (1 - shakedrop), the linear decay of Yamada et al. (2019). At 1 there is no ShakeDrop.
    """

    def __init__(self, num_classes: int = 10, depth: int = 110, widening: int = 99, bottleneck: bool = False,
                 shakedrop: float = 0.5):
        super().__init__()
        at_least(1, widening=widening)
        per_block = 9 if bottleneck else 6
        n, rest = divmod(depth - 2, per_block)
        if n < 1 or rest:
            raise ValueError(f"the depth of this PyramidNet is {per_block} n + 2, not {depth}")
        if not 0 <= shakedrop <= 1:
            raise ValueError(f"shakedrop is a probability, not {shakedrop}")
        self.name = "pyramidnet" + (f"{depth}-a{widening}" if (depth, widening) != (110, 99) or bottleneck else "")
        self.name += ("-bottleneck" if bottleneck else "") + (f"-p{shakedrop:g}" if shakedrop != 0.5 else "")
        self.options = {"num_classes": num_classes, "depth": depth, "widening": widening, "bottleneck": bottleneck,
                        "shakedrop": shakedrop}
        self.stem = nn.Sequential(conv3x3(3, STEM_CHANNELS), nn.BatchNorm2d(STEM_CHANNELS))
        blocks, channels = [], STEM_CHANNELS
        for k in range(1, 3 * n + 1):
            channels_in, planes = channels, STEM_CHANNELS + k * widening // (3 * n)
            channels = EXPANSION * planes if bottleneck else planes
            stride = 2 if k in (n + 1, 2 * n + 1) else 1
            survival = 1 - k / (3 * n) * (1 - shakedrop)
            blocks.append(PyramidBlock(channels_in, channels, stride, bottleneck, survival))
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*blocks[i : i + n]) for i in (0, n, 2 * n))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(spatial_mean(F.relu(self.norm(x))))
