"""Twelve common corruptions at five severities, computed on the fly.

    corrupted = corrupt(images, "fog", 3, generator)      # (N, 3, 32, 32) uint8

They approximate CIFAR-10-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations, 2019): the strengths are theirs for 32x32 images except where a comment says
otherwise, the random numbers are our own, and glass blur, frost and snow are left out. So the figures resemble
those on CIFAR-10-C and are not to be mixed with them.
"""

import math

import torch
import torch.nn.functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from augment.ops import SIZE

CHUNK = 1_000  # images at once
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images, name, severity, generator):
    """Corrupted copies of uint8 images (N, 3, 32, 32) on the CPU.

    name: a key of CORRUPTIONS; severity: 1 to 5; generator: a torch.Generator. Every image draws its own randomness.
    """
    change, strengths = CORRUPTIONS[name]
    changed = [change(chunk.float() / 255, strengths[severity - 1], generator) for chunk in images.split(CHUNK)]
    return torch.cat([(pixels * 255).round_().clamp_(0, 255).to(torch.uint8) for pixels in changed])


# Each of the functions below takes pixels (N, 3, 32, 32) in 0..1, a strength and a generator.
# ---------------------------------------------------------------- noise


def gaussian_noise(x, deviation, generator):
    return x + deviation * torch.randn(x.shape, generator=generator)


def shot_noise(x, photons, generator):
    """Each value counts the photons that arrived, of `photons` expected for white."""
    return torch.poisson(x * photons, generator=generator) / photons


def impulse_noise(x, share, generator):
    """A share of all values becomes black or white."""
    draw = torch.rand(x.shape, generator=generator)
    return torch.where(draw < share / 2, 0.0, torch.where(draw < share, 1.0, x))


# ---------------------------------------------------------------- blur


def defocus_blur(x, disk, _):
    """Convolve with a disk of a radius, itself smoothed by a Gaussian of a deviation, both in pixels."""
    radius, deviation = disk
    distance = torch.arange(-2.0, 3) ** 2
    kernel = (distance[:, None] + distance <= radius**2).float()
    edge = (-(torch.arange(-1.0, 2) ** 2) / (2 * deviation**2)).exp()
    smooth = torch.outer(edge, edge) / edge.sum() ** 2
    kernel = F.conv2d((kernel / kernel.sum())[None, None], smooth[None, None], padding=1)
    return F.conv2d(F.pad(x, [2] * 4, "reflect"), (kernel / kernel.sum()).expand(3, 1, 5, 5), groups=3)


def motion_blur(x, deviation, generator):
    """A Gaussian tail of a deviation in pixels, in one direction up to 45 degrees from the horizontal."""
    angle = (torch.rand(len(x), 1, 1, generator=generator) - 0.5) * math.pi / 2
    steps = range(math.ceil(3 * deviation) + 1)
    weights = [math.exp(-(step**2) / (2 * deviation**2)) for step in steps]
    blurred = sum(weight * resample(x, step * angle.cos(), step * angle.sin()) for step, weight in zip(steps, weights))
    return blurred / sum(weights)


def zoom_blur(x, largest, _):
    """The mean of the image and its enlargements in steps of one per cent."""
    factors = [1 + step / 100 for step in range(round(100 * (largest - 1)) + 1)]
    return (x + sum(resample(x, scale=factor) for factor in factors)) / (len(factors) + 1)


def resample(x, right=0.0, down=0.0, scale=1.0):
    """The images sampled at (column + right, row + down) / scale from the centre, reflected at the border.

    right, down: in pixels, numbers or tensors that broadcast to (N, 32, 32).
    """
    centred = torch.linspace(1 / SIZE - 1, 1 - 1 / SIZE, SIZE)
    columns, rows = (centred / scale + right * 2 / SIZE, centred[:, None] / scale + down * 2 / SIZE)
    shape = (len(x), SIZE, SIZE)
    grid = torch.stack([columns.expand(shape), rows.expand(shape)], 3)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


# ---------------------------------------------------------------- weather, light, digital


def fog(x, thickness, generator):
    """Add a cloud, 0..1 with more fine structure the smaller its decay, and dim what lies behind it."""
    amount, decay = thickness
    cloud = smooth_noise(len(x), generator, decay)
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * (cloud - low) / (high - low)) * brightest / (brightest + amount)


def smooth_noise(count, generator, decay):
    """(count, 1, 32, 32): noise on grids of 2, 4, ... 32 points, each `decay` times weaker than the one before."""
    octaves = [torch.randn(count, 1, 2**k, 2**k, generator=generator) / decay**k for k in range(1, 6)]
    return sum(F.interpolate(octave, (SIZE, SIZE), mode="bicubic", align_corners=True) for octave in octaves)


def brightness(x, more, _):
    """Raise the value of HSV, its largest channel; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x / value.clamp(min=1e-6) * raised, raised)


def contrast(x, factor, _):
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic(x, distance, generator):
    """Move every pixel by a smooth random field of a mean square `distance` in pixels (a simpler field than theirs)."""
    right, down = (smooth_noise(len(x), generator, 4)[:, 0] for _ in range(2))
    norm = (right**2 + down**2).mean((1, 2), keepdim=True).sqrt()
    return resample(x, right / norm * distance, down / norm * distance)


def pixelate(x, factor, _):
    """Shrink, and enlarge again, by the box filter."""
    there, back = box(SIZE, int(SIZE * factor)), box(int(SIZE * factor), SIZE)
    return (back @ there) @ x @ (back @ there).T


def box(old, new):
    """Resampling of a line of `old` pixels to `new` as a matrix: the mean of the pixels with centres in the new one."""
    scale = old / new
    middle = (torch.arange(new) + 0.5)[:, None] * scale
    offset = (torch.arange(old) + 0.5 - middle) / max(1, scale)
    near = ((offset > -0.5) & (offset <= 0.5)).float()
    return near / near.sum(1, keepdim=True)


def jpeg(x, quality, _):
    """A real JPEG file, written and read."""
    files = encode_jpeg(list((x * 255).round().to(torch.uint8)), quality)
    return torch.stack(decode_jpeg(files)).float() / 255


CORRUPTIONS = {  # function, strengths of severity 1 to 5
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": (motion_blur, (1, 1.3, 1.6, 2, 2.5)),  # theirs repeats 2; the radius only cuts the tail
    "zoom_blur": (zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25)),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": (contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "elastic": (elastic, (0.5, 0.75, 1.0, 1.25, 1.5)),  # our own strengths
    "pixelate": (pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}
