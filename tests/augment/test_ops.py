"""Every operation, bit for bit what torchvision's AutoAugment does to one image at a time."""

import pytest
import torch
from torchvision.transforms import v2
from toy import operation

from augment.ops import OPS

SPACES = [(v2.AutoAugment, 10), (v2.TrivialAugmentWide, 31), (v2.AugMix, 10)]
LARGEST = dict.fromkeys(OPS, 0.0) | {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0}
LARGEST |= {"TranslateY": 32.0, "Rotate": 180.0, "Posterize": 8.0, "Solarize": 1.0}
LARGEST |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.99)


def assert_same(name, images, magnitude):
    before = images.clone()
    out = OPS[name](images, magnitude)
    assert out.dtype == torch.uint8 and torch.equal(images, before)
    for image, m, result in zip(images, magnitude.tolist(), out, strict=True):
        assert torch.equal(result, operation(image, name, m)), f"{name} at {m}"


def torchvision_magnitudes(name):
    """Every bin and sign of the three policies' spaces, as float32."""
    found = {0.0}
    for policy, bins in SPACES:
        magnitudes_of, signed = policy._AUGMENTATION_SPACE.get(name, (lambda *_: None, False))
        magnitudes = magnitudes_of(bins, 32, 32)
        if magnitudes is not None:
            found |= set(magnitudes.float().tolist())
            found |= set((-magnitudes.float()).tolist()) if signed else set()
    return torch.tensor(sorted(found))


def random_magnitudes(name, n, generator):
    uniform = torch.rand(n, generator=generator)
    if name == "Posterize":
        return (9 * uniform).floor()
    return uniform if name == "Solarize" else (2 * uniform - 1) * LARGEST[name]


@pytest.mark.parametrize("name", OPS)
def test_random_magnitudes_on_every_picture(name, pictures):
    """520 pictures, each at a magnitude of its own."""
    g = torch.Generator().manual_seed(len(name))
    assert_same(name, pictures, random_magnitudes(name, len(pictures), g))


@pytest.mark.parametrize("name", OPS)
def test_every_bin_and_sign_of_the_policies(name, pictures):
    magnitudes = torchvision_magnitudes(name)
    some = pictures[[0, 150, 300, *range(506, 520, 2)]]
    images = some.repeat_interleave(len(magnitudes), 0)
    assert_same(name, images, magnitudes.repeat(len(some)))


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
def test_half_pixel_ties_at_many_magnitudes(name):
    """Each pixel of the picture is unlike the others, so a single wrong index shows."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    unique = torch.stack([1 + 7 * y, 1 + 7 * x, 0 * x + 200]).to(torch.uint8)
    sixteenths = torch.arange(-16, 17) / 16 * (1 if name != "Rotate" else 180)
    fine = torch.linspace(-1, 1, 1001) * LARGEST[name]
    magnitude = torch.cat([sixteenths, fine])
    assert_same(name, unique.repeat(len(magnitude), 1, 1, 1), magnitude)


@pytest.mark.parametrize("level", range(0, 256, 16))
def test_solarize_just_under_at_and_over_each_level(level, pictures):
    levels = torch.arange(level, level + 16).repeat_interleave(3)
    magnitude = (levels + torch.tensor([-0.01, 0.0, 0.01]).repeat(16)) / 255
    assert_same("Solarize", pictures[100:148], magnitude.clamp(0, 1))


@pytest.mark.parametrize("name", ["Color", "Contrast", "Sharpness"])
def test_blends_round_once(name):
    """Random blends, where rounding the product before the sum shows in 0.3 % of the pixels."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=g)
    assert_same(name, images, (2 * torch.rand(200, generator=g) - 1) * 0.9)
