"""The fourteen colour and affine operations that the learned policies are made of.

    OPS["Rotate"](images, magnitude)   # (N, 3, 32, 32) uint8, (N,) float -> (N, 3, 32, 32) uint8

Names, magnitudes and results are torchvision's, bit for bit: what its v2 AutoAugment does to one
uint8 image with nearest interpolation and black fill, here for a batch in which every image has
its own magnitude. For this, three details of torch have to be reproduced: a blend is rounded only
once and then truncated, a grey level is floored, and half-pixel ties of a rotation are decided by
the float32 rounding of its sampling grid.

A magnitude tensor may stay on the CPU while the images are on a GPU. Then the affine operations,
which look up one index map per distinct magnitude, do not wait for the device.
"""

from functools import lru_cache, partial
from math import cos, radians, sin

import torch
import torch.nn.functional as F

SIZE = 32


# ---- affine: an index map gives the old pixel of every new one ----

# The matrix that takes a new position (x, y, 1), the image's centre at 0, to the old one, for a magnitude.
MATRICES = {
    # Slide each row left by m times its depth, with the top edge fixed; each column up, with the left edge fixed.
    "ShearX": lambda m: [[1, m, m * SIZE / 2], [0, 1, 0]],
    "ShearY": lambda m: [[1, 0, 0], [m, 1, m * SIZE / 2]],
    # Move right, or down, by int(m) pixels.
    "TranslateX": lambda m: [[1, 0, -int(m)], [0, 1, 0]],
    "TranslateY": lambda m: [[1, 0, 0], [0, 1, -int(m)]],
    # Turn counter-clockwise about the centre by m degrees.
    "Rotate": lambda m: [[cos(radians(m)), -sin(radians(m)), 0], [sin(radians(m)), cos(radians(m)), 0]],
}


def affine(images: torch.Tensor, magnitude: torch.Tensor, name: str) -> torch.Tensor:
    """Gather each image's pixels by the index map of its magnitude. name: a key of MATRICES."""
    values, which = magnitude.unique(return_inverse=True)
    maps = torch.stack([_index_map(name, value, images.device) for value in values.tolist()])
    which = which.to(images.device, non_blocking=True)
    index = maps.index_select(0, which).unsqueeze(1).expand(-1, 3, -1)
    black_first = torch.cat((images.new_zeros(len(images), 3, 1), images.flatten(2)), 2)
    return black_first.gather(2, index).view_as(images)


@lru_cache(maxsize=1024)
def _index_map(name, magnitude, device):
    """Number of the source pixel of each pixel, (1024,) long; 0 stands for outside.

    The map is an image of the pixels' numbers, sampled as torchvision samples an image: on the CPU,
    in float32, in the same order, so that half-pixel ties are decided in the same way on any device.
    """
    centred = torch.linspace((1 - SIZE) / 2, (SIZE - 1) / 2, SIZE)
    y, x = torch.meshgrid(centred, centred, indexing="ij")
    position = torch.stack([x, y, torch.ones_like(x)], 2).view(1, SIZE * SIZE, 3)
    scaled = torch.tensor([MATRICES[name](magnitude)], dtype=torch.float32).transpose(1, 2) / (SIZE / 2)
    grid = position.bmm(scaled).view(1, SIZE, SIZE, 2)
    numbers = torch.arange(1.0, SIZE * SIZE + 1).view(1, 1, SIZE, SIZE)
    source = F.grid_sample(numbers, grid, mode="nearest", align_corners=False)
    return source.long().view(-1).to(device)


# ---- blends: factor * image + (1 - factor) * something greyer, factor = 1 + magnitude ----


def brightness(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Blend with black: magnitude -1 is black, 0 the image, 1 twice as bright."""
    factor = _per_image(1 + magnitude.double(), images).float()
    return _to_bytes(images.float().mul_(factor))


def color(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image: magnitude -1 is grey, 0 the image, above it more saturated."""
    pixels = images.float()
    return _blend(pixels, _grey(pixels), magnitude)


def contrast(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Blend with the mean grey level: magnitude -1 is flat, 0 the image."""
    levels = torch.arange(256.0, device=images.device)
    table = _blend(levels, _grey(images.float()).mean((1, 2, 3), keepdim=True), magnitude)
    return _look_up(table.view(-1, 1, 256).expand(-1, 3, -1), images.flatten(2).long())


def sharpness(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image: magnitude -1 is smooth, 0 the image. The border is unchanged."""
    # Except at the border, the neighbours of a pixel are 1 and SIZE places away in the flattened batch.
    pixels = images.reshape(-1).short()
    rows = pixels[: -2 * SIZE] + pixels[2 * SIZE :]
    rows += pixels[SIZE:-SIZE]
    nine = rows[:-2] + rows[2:]
    nine += rows[1:-1]
    # The centre weighs 5 of 13, so there are no ties: smooth - centre = round((nine + 4 centre) / 13) - centre.
    nine.sub_(pixels[SIZE + 1 : -SIZE - 1], alpha=9)
    change = F.pad(nine, (SIZE + 1, SIZE + 1)).view_as(images).float().mul_(1 / 13).round_()

    # images + rest * change rounded once, without float64: a sum of multiples of 2**-14 is exact, and so is the product
    # with what that leaves of rest, unless the magnitude is below 2**-7: then its error is below 2**-31.
    rest = _per_image(-magnitude.float(), images) * F.pad(change.new_ones(SIZE - 2, SIZE - 2), (1, 1, 1, 1))
    coarse = rest.mul(2**14).round_().mul_(2**-14)
    return _to_bytes(images.float().addcmul_(change, coarse).addcmul_(change, rest.sub_(coarse)))


def _blend(pixels, other, magnitude):
    """(1 + magnitude) * pixels - magnitude * other, as bytes. pixels, other: float32.

    torch's add with a factor rounds once: in float64 the product of two float32 numbers is exact, and so is this sum.
    """
    factor = _per_image(1 + magnitude.double(), pixels)
    rest = other.double().mul_((1 - factor).float())
    return _to_bytes((pixels * factor.float()).double().add_(rest).float())


def _grey(images):
    """Luma, floored to an integer: (N, 1, 32, 32) float32."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


# ---- tones: a new value for each old one ----


def posterize(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Keep the int(magnitude) highest bits of each value; 8 leaves the image unchanged."""
    dropped = 8 - magnitude.long()
    return images & _per_image((255 >> dropped) << dropped, images).to(torch.uint8)


def solarize(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Invert the values from 255 * magnitude upwards; magnitude in [0, 1]."""
    level = _per_image((255 * magnitude.double()).float().ceil(), images).to(torch.uint8)
    return images ^ (images >= level).to(torch.uint8).mul_(255)


def autocontrast(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255; a channel of a single value is unchanged. The magnitude is unused."""
    low, high = images.amin((2, 3)), images.amax((2, 3))
    flat = low == high
    low, high = low.float().masked_fill_(flat, 0), high.float().masked_fill_(flat, 255)
    scale = (high - low) * (1 / 255)
    return _to_bytes(images.float().sub_(low[..., None, None]).div_(scale[..., None, None]))


def equalize(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Spread each channel's values evenly by rank, as PIL does. The magnitude is unused."""
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, values, counts.new_ones(1).expand_as(values))
    below = counts.cumsum(2, dtype=torch.int32) - counts

    # The brightest value does not count for the step between two levels; a step of 0 changes nothing.
    brightest = images.amax((2, 3)).long()[..., None]
    step = below.gather(2, brightest) // 255
    table = (below + step // 2) / step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256.0, device=images.device))
    return _look_up(_to_bytes(table), values)


def invert(images: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """255 - value. The magnitude is unused."""
    return images.bitwise_not()


def _per_image(values, images):
    """(N,) numbers as (N, 1, 1, 1) on the images' device."""
    return values.view(-1, 1, 1, 1).to(images.device, non_blocking=True)


def _look_up(table, values):
    """table[n, c, values[n, c]] as images; table: (N, 3, 256) uint8, values: (N, 3, 1024) long."""
    return table.gather(2, values).view(-1, 3, SIZE, SIZE)


def _to_bytes(pixels):
    """Clamped and truncated, by way of int16: torch has no fast loop from float to bytes directly."""
    return pixels.clamp_(0, 255).to(torch.int16).to(torch.uint8)


OPS = {
    **{name: partial(affine, name=name) for name in MATRICES},
    "Brightness": brightness, "Color": color, "Contrast": contrast, "Sharpness": sharpness,
    "Posterize": posterize, "Solarize": solarize, "AutoContrast": autocontrast, "Equalize": equalize, "Invert": invert,
}
