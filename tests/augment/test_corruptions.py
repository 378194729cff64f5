"""Corruptions against slow or independent references, on smooth toy images."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from augment import corruptions
from augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt

EVERY = pytest.mark.parametrize("name", CORRUPTIONS)
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic")


@pytest.fixture(scope="module")
def images():
    """24 images whose amplitude falls with the frequency, as that of photographs does: uint8 (24, 3, 32, 32)."""
    spectrum = torch.fft.rfft2(torch.randn(24, 3, 32, 32, generator=draw()))
    frequency = (torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.rfftfreq(32) ** 2).sqrt().clamp(min=1 / 32)
    clouds = torch.fft.irfft2(spectrum / frequency)
    return (128 + 50 * clouds / clouds.std()).clamp(0, 255).byte()


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def strength(name, severity):
    return CORRUPTIONS[name][1][severity - 1]


def test_a_dozen_at_five_severities():
    assert len(CORRUPTIONS) == 12 and all(len(strengths) == 5 for _, strengths in CORRUPTIONS.values())


@EVERY
def test_shape_type_and_the_input_stays(name, images):
    before = images.clone()
    for severity in SEVERITIES:
        changed = corrupt(images, name, severity, draw())
        assert changed.shape == images.shape and changed.dtype == torch.uint8
        assert (changed != images).any((1, 2, 3)).all(), "every image is changed"
    assert torch.equal(images, before)


@EVERY
def test_severity_is_monotone_in_distance(name, images):
    corrupted = (corrupt(images, name, severity, draw()).float() for severity in SEVERITIES)
    distances = [(pixels - images.float()).square().mean().item() for pixels in corrupted]
    assert all(weaker < stronger for weaker, stronger in zip(distances, distances[1:])), distances


@EVERY
def test_the_same_every_time_whatever_the_global_generator(name, images):
    torch.manual_seed(1)
    first = corrupt(images, name, 3, draw())
    torch.manual_seed(2)
    assert torch.equal(first, corrupt(images, name, 3, draw()))


@EVERY
def test_equal_images_draw_their_own_randomness(name, images):
    changed = corrupt(images[:1].expand(8, -1, -1, -1), name, 5, draw())
    assert torch.equal(changed[0], changed[1]) == (name not in RANDOM)


def test_chunks_differ(images, monkeypatch):
    monkeypatch.setattr(corruptions, "CHUNK", 12)
    changed = corrupt(torch.cat([images[:12], images[:12]]), "gaussian_noise", 1, draw())
    assert not torch.equal(changed[:12], changed[12:])


def test_noise_has_the_moments_of_its_law():
    grey = torch.full((50, 3, 32, 32), 0.4)
    assert corruptions.gaussian_noise(grey, 0.08, draw()).std() == pytest.approx(0.08, rel=0.02)
    photons = corruptions.shot_noise(grey, 100, draw())
    assert photons.mean() == pytest.approx(0.4, rel=0.01) and photons.var() == pytest.approx(0.4 / 100, rel=0.03)
    salted = corruptions.impulse_noise(grey, 0.06, draw())
    assert (salted == 0).float().mean() == pytest.approx(0.03, rel=0.1)
    assert (salted == 1).float().mean() == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "elastic", "contrast", "pixelate"])
def test_what_has_no_structure_is_left_alone(name):
    plain = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(plain, name, 5, draw()), plain)


def test_defocus_spreads_a_point_over_its_disk():
    point = torch.zeros(1, 3, 32, 32)
    point[:, :, 10, 20] = 1
    spot = corruptions.defocus_blur(point, strength("defocus_blur", 5), None)[0, 0]
    assert spot.sum() == pytest.approx(1) and spot[9:12, 19:22] == pytest.approx(torch.full((3, 3), 1 / 9))
    plus = corruptions.defocus_blur(point, strength("defocus_blur", 4), None)[0, 0]
    assert plus[10, 20] == pytest.approx(1 / 5, rel=0.01) and plus[9, 20] == plus[10, 21] and plus[9, 19] < 0.01


def test_motion_blur_is_a_tail_in_one_direction():
    point = torch.zeros(64, 1, 32, 32)
    point[:, :, 16, 16] = 1
    spot = corruptions.motion_blur(point, 2.0, draw())
    grid = torch.arange(32.0)
    across, down = (spot * grid).sum((1, 2, 3)) - 16, (spot * grid[:, None]).sum((1, 2, 3)) - 16
    tail = torch.exp(-torch.arange(7.0) ** 2 / 8)
    expected = (tail * torch.arange(7)).sum() / tail.sum()
    assert (across**2 + down**2).sqrt() == pytest.approx(expected.expand(64), rel=0.01), "by the mean of the tail"
    assert (across.abs() >= 0.99 * down.abs()).all() and down.max() > 0.5 > -0.5 > down.min()


def test_resample_by_whole_pixels_and_scaled(images):
    pixels = images.float()
    assert torch.allclose(corruptions.resample(pixels), pixels, atol=1e-3)
    moved = corruptions.resample(pixels, 3.0, 2.0)
    assert torch.allclose(moved[:, :, :-2, :-3], pixels[:, :, 2:, 3:], atol=1e-3)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    wanted = 15.5 + (torch.arange(32.0) - 15.5) / 2
    assert corruptions.resample(ramp, scale=2.0)[0, 0, 0] == pytest.approx(wanted, abs=1e-4)


def test_fog_brightens_the_dark_and_keeps_the_range(images):
    pixels = images.float() / 255
    foggy = corruptions.fog(pixels, (1.0, 2.0), draw())
    assert foggy.min() >= 0 and (foggy.amax((1, 2, 3)) <= pixels.amax((1, 2, 3)) + 1e-6).all()
    smooth, rough = (corruptions.smooth_noise(200, draw(), decay) for decay in (3, 1.75))
    jumps = [(cloud.diff(dim=3).square().mean() / cloud.var()).item() for cloud in (smooth, rough)]
    assert jumps[0] < jumps[1], "a smaller decay has more fine structure"


def test_brightness_is_that_of_hsv(images):
    pixels = torch.cat([images[:2].float() / 255, torch.zeros(1, 3, 32, 32)])
    changed = corruptions.brightness(pixels, 0.2, None)
    for image, row, column in ((0, 3, 4), (1, 20, 9), (2, 0, 0)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[image, :, row, column].tolist())
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))
        assert changed[image, :, row, column].tolist() == pytest.approx(wanted, abs=1e-5)


def test_contrast_keeps_the_mean_and_scales_the_deviation(images):
    pixels = images.double() / 255
    changed = corruptions.contrast(pixels, 0.3, None)
    assert torch.allclose(changed.mean((2, 3)), pixels.mean((2, 3)))
    assert torch.allclose(changed.std((2, 3)), 0.3 * pixels.std((2, 3)))


def test_elastic_moves_pixels_by_its_distance():
    columns = torch.arange(32.0).expand(100, 1, 32, 32)
    across = corruptions.elastic(columns, 1.5, draw()) - columns
    down = corruptions.elastic(columns.transpose(2, 3), 1.5, draw()) - columns.transpose(2, 3)
    inner = (slice(None), slice(None), slice(6, 26), slice(6, 26))  # nothing is reflected there
    assert (across**2 + down**2)[inner].mean().sqrt() == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows(severity, images):
    size = int(32 * strength("pixelate", severity))
    ours = 255 * corruptions.pixelate(images.float() / 255, strength("pixelate", severity), None)
    for image, pixels in zip(images, ours):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.BOX)
        theirs = np.asarray(small.resize((32, 32), Image.BOX), dtype=np.float32)
        assert np.abs(pixels.permute(1, 2, 0).numpy() - theirs).max() < 1.01, "Pillow rounds after each direction"


def test_jpeg_is_a_file_of_that_quality(images):
    ours = corrupt(images, "jpeg", 5, draw()).float()
    for image, pixels in zip(images, ours):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
        assert (pixels - theirs).abs().mean() < 1.5
