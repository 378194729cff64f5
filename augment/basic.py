"""The common augmentations: crop, flip, erase, cutout, and the normalization that follows them.

Each function takes a uint8 batch (N, 3, H, W) and a torch.Generator, both on the same device,
and returns a new batch; the input is never written to. Every image draws its own randomness,
and nothing is read back to the host, so a batch of 128 and a whole epoch are the same call.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

MEAN = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, in [0, 1], for each channel
STD = (0.2470, 0.2435, 0.2616)
SCALE = tuple(1 / (255 * s) for s in STD)  # a byte is normalized by byte * SCALE + SHIFT
SHIFT = tuple(-m / s for m, s in zip(MEAN, STD, strict=True))

MEAN_PIXEL = tuple(round(255 * m) for m in MEAN)  # the colour that erase and cutout paint: 0 after normalization
ERASE_TRIES = 10  # torchvision's RandomErasing gives up after so many


def crop(images: torch.Tensor, generator: torch.Generator, padding: int = 4, mode: str = "constant") -> torch.Tensor:
    """Random crop of the original size, after padding each side.

    images: (N, 3, H, W) uint8. mode: one of torch.nn.functional.pad. "constant" pads with black, as torchvision's
    RandomCrop does, and "reflect" mirrors without repeating the edge.
    """
    n, channels, height, width = images.shape
    top, left = _integers(generator, 2 * padding + 1, (2, n, 1, 1))
    pixels = images if mode == "constant" else images.float()  # torch reflects float tensors on any device
    padded = F.pad(pixels, [padding] * 4, mode).to(torch.uint8).contiguous()
    # A row of a crop is a window of the flattened padded batch: copy these windows.
    rows, columns = padded.shape[2:]
    plane = torch.arange(n * channels, device=images.device).view(n, channels, 1) * (rows * columns)
    first_pixel = plane + (top * columns + left) + torch.arange(height, device=images.device) * columns
    windows = padded.view(-1).unfold(0, width, 1)
    return windows.index_select(0, first_pixel.view(-1)).view_as(images)


def flip(images: torch.Tensor, generator: torch.Generator, p: float = 0.5) -> torch.Tensor:
    """Mirror each image left to right with probability p. images: (N, 3, H, W) uint8, W a multiple of 8."""
    return mirror(images, torch.rand(len(images), generator=generator, device=images.device) < p)


def mirror(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mirror the images where `chosen` (N,) bool is True, left to right. images: (N, 3, H, W) uint8, W as in `flip`."""
    # Eight bytes at a time: torch.where on single ones is ten times slower on a CPU.
    both = (x.contiguous().view(torch.int64) for x in (images.flip(-1), images))
    return torch.where(chosen.view(-1, 1, 1, 1), *both).view(torch.uint8)


def erase(images: torch.Tensor, generator: torch.Generator, p: float = 0.25, smallest: float = 0.02,
          largest: float = 0.4, flattest: float = 0.3, tallest: float = 3.3) -> torch.Tensor:
    """Random erasing: with probability p, paint one rectangle with the mean pixel.

    The rectangle's share of the image is uniform from `smallest` to `largest`, its height / width
    log-uniform from `flattest` to `tallest`. The first of ten rectangles that fits is painted; if none fits,
    the image stays unchanged. This is the distribution of torchvision's RandomErasing. images: (N, 3, H, W) uint8.
    Zhong et al., Random Erasing Data Augmentation, 2017.
    """
    n, _, image_height, image_width = images.shape
    chosen = torch.rand(n, generator=generator, device=images.device) < p

    # Ten rectangles for every image; the first that fits is the one at which a loop would stop.
    tries = (n, ERASE_TRIES)
    pixels = image_height * image_width * _uniform(generator, smallest, largest, tries)
    aspect = torch.exp(_uniform(generator, math.log(flattest), math.log(tallest), tries))
    height, width = (pixels * aspect).sqrt().round(), (pixels / aspect).sqrt().round()
    fits = (height < image_height) & (width < image_width)
    first = fits.int().argmax(1, keepdim=True)
    height, width = height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]
    height = height * (chosen & fits.any(1))  # the others paint an empty rectangle

    top = (_uniform(generator, 0, 1, (n,)) * (image_height - height + 1)).floor()
    left = (_uniform(generator, 0, 1, (n,)) * (image_width - width + 1)).floor()
    return _paint(images, top, left, top + height, left + width)


def cutout(images: torch.Tensor, generator: torch.Generator, size: int = 16) -> torch.Tensor:
    """Paint a size x size square with the mean pixel, its centre uniform over the image.

    A square that extends over the border is clipped there, so between a quarter of it and all of it
    is visible. images: (N, 3, H, W) uint8. DeVries and Taylor, Improved Regularization of
    Convolutional Neural Networks with Cutout, 2017.
    """
    n, _, height, width = images.shape
    top = _integers(generator, height, (n,)) - size // 2
    left = _integers(generator, width, (n,)) - size // 2
    return _paint(images, top, left, top + size, left + size)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit standard deviation per channel, over the training set.

    (N, 3, H, W) uint8, or float in 0..255 -> the same shape in float32 and in the same memory format. On a CPU,
    converting to channels_last is cheaper after this than before.
    """
    scale, shift = (_per_channel(values, torch.float32, images.device) for values in (SCALE, SHIFT))
    return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


def dirichlet(generator: torch.Generator, alpha: float, n: int, k: int) -> torch.Tensor:
    """n draws (n, k) from the Dirichlet distribution whose k parameters are `alpha`: each row sums to 1."""
    concentration = torch.full((n, k), float(alpha), device=generator.device)
    return torch._sample_dirichlet(concentration, generator)  # torch.distributions takes no generator


def _integers(generator, high, shape):
    return torch.randint(high, shape, generator=generator, device=generator.device)


def _uniform(generator, low, high, shape):
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _paint(images, top, left, bottom, right):
    """The mean pixel inside each image's rectangle; its bounds are (N,), in pixels.

    The mask is 0 or 1 in bytes, and bytes wrap around, so images + (pixel - images) * mask is
    exact, and several times faster than torch.where.
    """
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    rows = ((y >= top[:, None]) & (y < bottom[:, None])).to(torch.uint8)
    columns = ((x >= left[:, None]) & (x < right[:, None])).to(torch.uint8)
    mask = rows[:, None, :, None] * columns[:, None, None, :]
    pixel = _per_channel(MEAN_PIXEL, torch.uint8, images.device)
    return torch.addcmul(images, pixel - images, mask)


@lru_cache
def _per_channel(values, dtype, device):
    """Three constants as (3, 1, 1), cached on the device, because every copy to it would wait."""
    return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)
