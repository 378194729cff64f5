"""The everyday augmentations against slow loops and against torchvision's distributions."""

import math
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2
from toy import generator

from augment import basic

N = 64


@pytest.fixture
def images():
    return torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8, generator=generator(1))


# ---- crop ----


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [1, 4])
def test_crop_is_the_drawn_window_of_the_padded_image(images, mode, padding):
    out = basic.crop(images, generator(3), padding, mode)
    padded = v2.functional.pad(images, [padding] * 4, padding_mode=mode)
    top, left = torch.randint(2 * padding + 1, (2, N, 1, 1), generator=generator(3)).flatten(1).tolist()
    for i in range(N):
        assert torch.equal(out[i], padded[i, :, top[i] : top[i] + 32, left[i] : left[i] + 32])


# ---- flip ----


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip_mirrors_the_drawn_images_and_leaves_the_others(images, p):
    out = basic.flip(images, generator(5), p)
    drawn = torch.rand(N, generator=generator(5)) < p
    for before, after, mirrored in zip(images, out, drawn, strict=True):
        assert torch.equal(after, v2.functional.horizontal_flip(before) if mirrored else before)


# ---- erase and cutout ----


def rectangle(before, after):
    """top, left, height, width of the painted rectangle, or None; checks that it is one."""
    painted = (after == torch.tensor([125, 123, 114]).view(3, 1, 1)).all(0)
    if not painted.any():
        assert torch.equal(before, after)
        return None
    rows, columns = painted.any(1).nonzero(), painted.any(0).nonzero()
    top, left = rows[0].item(), columns[0].item()
    bottom, right = rows[-1].item() + 1, columns[-1].item() + 1
    assert painted[top:bottom, left:right].all()
    assert torch.equal(before[:, ~painted], after[:, ~painted])
    return top, left, bottom - top, right - left


def test_erase_paints_one_rectangle_of_the_mean_pixel():
    images = torch.randint(0, 100, (400, 3, 32, 32), dtype=torch.uint8, generator=generator(1))
    boxes = [rectangle(*pair) for pair in zip(images, basic.erase(images, generator(), p=0.5), strict=True)]
    found = [box for box in boxes if box]
    assert 160 < len(found) < 240
    for _, _, height, width in found:
        assert 0.3 * 0.7 < height / width < 3.3 * 1.4  # whole pixels move a small ratio
        assert 0.01 < height * width / 1024 < 0.43
        assert height < 32 and width < 32


def test_erase_has_the_distribution_of_torchvision():
    """Moments of the rectangle (none counts as zeros) over many draws of both."""
    zeros = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8)
    painted = (basic.erase(zeros, generator(), p=1.0) > 0)[:, 0]
    height, width = painted.any(2).sum(1), painted.any(1).sum(1)
    top, left = painted.any(2).int().argmax(1), painted.any(1).int().argmax(1)
    ours = torch.stack([height, width, top, left, height * width, (height - width).abs()], 1)

    torch.manual_seed(0)
    transform = v2.RandomErasing(p=1.0, scale=(0.02, 0.4), ratio=(0.3, 3.3))
    drawn = [transform.make_params([zeros[0]]) for _ in range(10_000)]
    theirs = torch.tensor([[d["h"], d["w"], d["i"], d["j"]] for d in drawn])
    theirs[[d["v"] is None for d in drawn]] = 0
    height, width = theirs[:, 0], theirs[:, 1]
    theirs = torch.cat([theirs, torch.stack([height * width, (height - width).abs()], 1)], 1)

    for power in (1, 2):
        a, b = ours.double() ** power, theirs.double() ** power
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()


def test_erase_gives_up_after_ten_tries_that_do_not_fit(images):
    assert torch.equal(basic.erase(images, generator(), p=1.0, smallest=1.0, largest=1.0), images)
    many = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8)
    changed = (basic.erase(many, generator(), 1.0, 0.9, 0.9, 0.5, 2.0) > 0).flatten(1).any(1)
    fits = (math.log(31.5**2 / (0.9 * 1024)) * 2) / math.log(4)  # chance that one try fits
    assert abs(changed.double().mean() - (1 - (1 - fits) ** 10)) < 4 * 0.5 / math.sqrt(len(many))


@pytest.mark.parametrize("size", [16, 7])
def test_cutout_clips_a_square_at_the_border(images, size):
    out = basic.cutout(images, generator(2), size)
    drawn = generator(2)
    top, left = (torch.randint(32, (N,), generator=drawn).tolist() for _ in range(2))
    for i in range(N):
        expected = images[i].clone()
        for y in range(top[i] - size // 2, top[i] - size // 2 + size):
            for x in range(left[i] - size // 2, left[i] - size // 2 + size):
                if 0 <= y < 32 and 0 <= x < 32:
                    expected[:, y, x] = torch.tensor([125, 123, 114], dtype=torch.uint8)
        assert torch.equal(out[i], expected)


# ---- normalize ----


def test_normalize_is_torchvision_s(images):
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, list(basic.MEAN), list(basic.STD))
    torch.testing.assert_close(basic.normalize(images), expected, rtol=1e-5, atol=1e-6)


def test_normalize_of_pixel_values_leaves_them_alone(images):
    floats = images.float()
    assert torch.equal(basic.normalize(floats), basic.normalize(images))
    assert torch.equal(floats, images.float())


def test_the_painted_pixel_is_zero_once_normalized():
    pixel = torch.tensor(basic.MEAN_PIXEL, dtype=torch.uint8).view(1, 3, 1, 1)
    assert basic.normalize(pixel).abs().max() < 0.5 / 255 / min(basic.STD)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_normalize_keeps_the_memory_format(images, format):
    out = basic.normalize(images.to(memory_format=format))
    assert out.is_contiguous(memory_format=format)
    assert torch.equal(out, basic.normalize(images))


# ---- no waiting ----


@pytest.mark.parametrize("augment", (basic.crop, partial(basic.crop, mode="reflect"), basic.flip, basic.erase,
                                     basic.cutout, lambda x, g: basic.normalize(x)))
def test_nothing_is_read_back_to_the_host(augment):
    """A fake tensor has no values: whatever asks for one raises."""
    basic._per_channel.cache_clear()  # real constants may not meet fake images
    try:
        with FakeTensorMode():
            images = torch.empty(8, 3, 32, 32, dtype=torch.uint8)
            assert augment(images, torch.Generator()).shape == images.shape
    finally:
        basic._per_channel.cache_clear()  # nor fake ones real images
