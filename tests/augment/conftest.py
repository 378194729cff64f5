"""What the augmentation tests share: a test of frequencies, and pictures worth transforming."""

import math

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The references work on single images, where a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def chi_square():
    """Asserts that counts fit probabilities: within four sigmas, and nothing impossible."""

    def check(counts, probabilities):
        assert counts.keys() <= {k for k, p in probabilities.items() if p > 0}
        assert abs(sum(probabilities.values()) - 1) < 1e-9
        total = sum(counts.values())
        expected = {k: total * p for k, p in probabilities.items() if p > 0}
        statistic = sum((counts.get(k, 0) - e) ** 2 / e for k, e in expected.items())
        freedom = len(expected) - 1
        assert min(expected.values()) > 5 and statistic <= freedom + 4 * math.sqrt(2 * freedom)

    return check


@pytest.fixture(scope="session")
def pictures():
    """(520, 3, 32, 32) uint8: noise, smooth textures, and edge cases at the end."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (100, 3, 32, 32), generator=g)
    coarse = 255 * torch.rand(400, 3, 6, 6, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bicubic")
    smooth = smooth + 4 * torch.randn(400, 3, 32, 32, generator=g)
    return torch.cat([noise, smooth.clamp(0, 255).round(), edge_cases()]).to(torch.uint8)


def edge_cases():
    """Twenty pictures with empty, full, constant, two-valued or barely varying channels."""
    flat = [torch.full((3, 32, 32), v) for v in (0, 1, 127, 128, 254, 255)]
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    masks = [x < 16, y < 16, (x + y) % 2 == 0, (x == 0) & (y == 0), (x == 31) | (y == 31)]
    binary = [255 * m.expand(3, 32, 32) for m in masks]
    faint = [100 + m.expand(3, 32, 32) for m in masks]
    ramps = [torch.stack([8 * x, 8 * y, 4 * (x + y)]), torch.stack([x, 100 + y, 0 * x])]
    one_channel = [torch.stack([0 * x, 0 * x + 255, (y * 32 + x) // 4])]
    two_peaks = [torch.where(x < 30, 0, 8 * y).expand(3, 32, 32)]
    return torch.stack([*flat, *binary, *faint, *ramps, *one_channel, *two_peaks]).long()
