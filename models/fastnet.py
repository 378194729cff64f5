"""FastNet: a small VGG-like network made to be trained in a few epochs, for `make quick`.

A frozen whitening convolution, then three stages of two 3x3 convolutions, each stage halving the image; normalizations
that learn a shift only; GELU; identity initialisation; logits scaled down. 1,972,792 parameters and 118 M
multiply-accumulates at the default widths. Options are other widths, and a third convolution per stage with a shortcut
around it: `fastnet-128-256-352-res` has 4,846,648 parameters. Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on
a single GPU", arXiv 2404.00498, sections 3.1 to 3.3. Unlike in his code, the whitening's bias is trained to the end,
and the shortcut is around the third convolution alone; his larger networks have it around the last two.

Several parallel columns form one network, whose logits are the mean of the columns' logits. They share the whitening
and train its bias together; otherwise each column learns independently (Zhao et al. 2022, "Towards Better
Accuracy-efficiency Trade-offs: Divide and Co-training", arXiv 2011.14660). `fastnet-m`, two columns of the default
widths, has 3,945,272 parameters, `fastnet-l` 4,623,544.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.layers import at_least, conv3x3

PATCH = 2  # side of the whitened patches
WHITE = 2 * 3 * PATCH * PATCH  # every principal direction, and its negative
EPS = 5e-4  # added to the variances, so that the weakest directions are not amplified too much

# Other networks are named by their shape.
SHORT_NAMES = {"fastnet-64": "fastnet-s", "fastnet-2x64": "fastnet-m", "fastnet-2x96-192-224-res": "fastnet-l"}


class Shift(nn.BatchNorm2d):
    """Batch normalization with a learned shift and no learned scale; its statistics follow the last few batches."""

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


class Residual(nn.Sequential):
    """x + GELU(norm(conv(x))) for x (N, C, H, W)."""

    def __init__(self, channels: int, groups: int):
        super().__init__(conv3x3(channels, channels, groups=groups), Shift(channels), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def stage(channels_in: int, channels_out: int, residual: bool, groups_in: int, groups: int) -> nn.Sequential:
    """(N, C, H, W) to (N, C', H // 2, W // 2), in separate groups of channels."""
    return nn.Sequential(
        conv3x3(channels_in, channels_out, groups=groups_in), nn.MaxPool2d(2), Shift(channels_out), nn.GELU(),
        conv3x3(channels_out, channels_out, groups=groups), Shift(channels_out), nn.GELU(),
        *([Residual(channels_out, groups)] if residual else []),
    )


class FastNet(nn.Module):
    """Images (N, 3, 32, 32), normalized, to logits (N, num_classes).

    The stages have `widths` channels, by default `width`, 4 `width` and 4 `width`, and with `residual` a third
    convolution each. `columns` such networks share one whitening layer and run in parallel, as groups of each
    convolution. The logits are their mean. In training, several columns return separate logits, (N, columns,
    num_classes), so that each has its own loss. Call `whiten` with training images before training.
    """

    def __init__(self, num_classes: int = 10, columns: int = 1, width: int = 64,
                 widths: tuple[int, int, int] | None = None, residual: bool = False):
        super().__init__()
        if widths is None:
            widths = width, 4 * width, 4 * width
        elif width not in (64, widths[0]):
            raise ValueError(f"width {width} contradicts widths {','.join(map(str, widths))}: name one of them")
        width, middle, top = widths
        at_least(1, columns=columns, widths=min(widths))
        # Named by its shape: fastnet-96, fastnet-128-256-352-res, fastnet-2x32 (two columns).
        shape = str(width) if middle == top == 4 * width else f"{width}-{middle}-{top}"
        name = "fastnet-" + (f"{columns}x" if columns > 1 else "") + shape + ("-res" if residual else "")
        self.name = SHORT_NAMES.get(name, name)
        self.options = {"num_classes": num_classes, "columns": columns, "width": width, "widths": list(widths),
                        "residual": residual}
        self.columns = columns
        self.whitening = nn.Conv2d(3, WHITE, PATCH)
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)
        self.stage1 = stage(WHITE, columns * width, residual, 1, columns)  # every column sees the whole image
        self.stage2 = stage(columns * width, columns * middle, residual, columns, columns)
        self.stage3 = stage(columns * middle, columns * top, residual, columns, columns)
        self.head = nn.Linear(top, columns * num_classes, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                # A column's first filters are the identity; the others keep torch's random values (section 3.3).
                for filters in layer.weight.data.chunk(columns):
                    nn.init.dirac_(filters[: filters.shape[1]])

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Make the first convolution whiten 2x2 patches like those of `images`, normalized (N, 3, H, W).

        Its filters are the eigenvectors of the patches' covariance, divided by the square roots of their eigenvalues,
        and their negatives, so that GELU loses no information (section 3.2).
        """
        patches = F.unfold(images.float(), PATCH).transpose(1, 2).flatten(0, 1).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + EPS).sqrt()).T.view(-1, 3, PATCH, PATCH)
        self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.whitening(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        if self.columns == 1:
            return self.head(x.amax((2, 3))) / 9
        features = x.amax((2, 3)).unflatten(1, (self.columns, -1))
        logits = torch.einsum("ncf,ckf->nck", features, self.head.weight.unflatten(0, (self.columns, -1))) / 9
        return logits if self.training else logits.mean(1)
