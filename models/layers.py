"""Shared by the model families: convolutions, stages, He initialisation, pooling, squeeze-and-excitation, noise."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias that keeps the size (or halves it, with stride 2)."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(channels_in: int, channels_out: int) -> nn.Conv2d:
    """1x1 convolution without bias; its output has the size of its input."""
    return nn.Conv2d(channels_in, channels_out, 1, bias=False)


def at_least(lowest: int, **options: int) -> None:
    """Raise ValueError for a model option below `lowest`: at_least(1, width=width)."""
    for name, value in options.items():
        if value < lowest:
            raise ValueError(f"{name} should be {lowest} or more, not {value}")


class SpatialMean(torch.autograd.Function):
    """x.mean((2, 3)), (N, C) of (N, C, H, W), whose gradient stays an expanded view.

    torch's own gradient is materialized in NCHW; adding that to a channels_last gradient takes a tenth of a training
    step of a network with squeeze-and-excitation.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return (gradient / (ctx.shape[2] * ctx.shape[3]))[:, :, None, None].expand(ctx.shape)


spatial_mean = SpatialMean.apply


class StridedConv1x1(nn.Conv2d):
    """1x1 convolution without bias of every `stride`-th pixel: (N, C, H, W) to (N, C', H / stride, W / stride).

    The pixels are selected before the convolution, which gives the same result. In the backward pass, oneDNN's own
    strided 1x1 convolution writes past its workspace if there are fewer input channels than vector lanes, in
    channels_last on a CPU: wrong gradients, or a crash (oneDNN issue 6035).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__(channels_in, channels_out, 1, bias=False)
        self.every = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.avg_pool2d(x, 1, self.every))  # the gradient of a slice would be materialized in NCHW


def stage(block: type[nn.Module], count: int, channels_in: int, channels_out: int, stride: int,
          *options: object) -> nn.Sequential:
    """`count` consecutive blocks, block(channels_in, channels_out, stride, *options); the first changes the shape."""
    others = (block(channels_out, channels_out, 1, *options) for _ in range(count - 1))
    return nn.Sequential(block(channels_in, channels_out, stride, *options), *others)


def he_init(model: nn.Module) -> None:
    """Initialise every convolution and linear layer of `model` in place.

    Convolutions: normal with variance 2 / (k * k * channels_out), which keeps the variance of the
    gradient through a ReLU (He et al. 2015, eq. 14). Linear layers: normal with variance
    1 / inputs and zero bias. Normalizations keep PyTorch's scale of one and shift of zero.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)


class SqueezeExcite(nn.Module):
    """Scale each channel of (N, C, H, W) by a gate in (0, 1) computed from all channel means.

    Squeeze-and-excitation (Hu et al. 2018, eq. 2-4): mean over H and W, a bottleneck of
    C / reduction ReLU units, a sigmoid. Both linear layers have a bias.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.squeeze(spatial_mean(x)))
        return x * self.excite(hidden).sigmoid()[:, :, None, None]


def uniform_per_image(x: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) for each image of `x` (N, ...), shaped (N, 1, 1, 1), from torch's global RNG.

    Drawn on the device of `x`, so that nothing waits for the host, and always in float32:
    bfloat16 would be drawn from 256 numbers only, too few to compare with a probability.
    """
    return torch.rand(x.shape[0], 1, 1, 1, device=x.device)


def swap_gradient(value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
    """A tensor that equals `value` and whose gradient is that of `surrogate` (same shape).

    The second term is exactly zero in any precision, so the value is exact.
    """
    return value.detach() + (surrogate - surrogate.detach())


def drop_path(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Zero the whole (C, H, W) of each image with probability `rate` in [0, 1) while training.

    Survivors are divided by 1 - rate, so the expectation is `x` and evaluation is the identity.
    Stochastic depth (Huang et al. 2016), drawn per image.
    """
    if rate == 0 or not training:
        return x
    keep = uniform_per_image(x) >= rate
    return x * keep.to(x.dtype) / (1 - rate)  # in bfloat16, 1 / (1 - rate) would be up to 0.4 % off
