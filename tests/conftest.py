"""What the tests share: the repository and its helpers on the path, commands as typed, toy images and pictures."""

import functools
import math
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "1"  # as in some containers; torch reads it when it is imported

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("PYTHONPATH", str(ROOT))

# tests/train would otherwise be taken for the package `train` when its first test module is imported.
import toy  # noqa: E402
import untrained  # noqa: E402

import augment  # noqa: E402, F401
import distill  # noqa: E402, F401
import models  # noqa: E402, F401
import train.engine  # noqa: E402
import train.scores  # noqa: E402, F401
from train.data import cifar10  # noqa: E402
from train.engine import progress  # noqa: E402
from train.engine.command import command  # noqa: E402

cifar10.synthetic = functools.cache(cifar10.synthetic)  # drawn once: `load` copies what it gives
torch.set_num_threads(1)  # all that is computed here is so small that a second thread costs more than it brings


@pytest.fixture
def typed(monkeypatch, capsys):
    """typed(main, words...): run a script's main in this process; returns (exit code, stdout, stderr)."""

    monkeypatch.setattr(progress, "EVERY", math.inf)  # no line that depends on how slow the machine is

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", [main.__module__.split(".")[-1] + ".py", *map(str, words)])
        code = 0
        try:
            with command():
                main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def toy_set(tmp_path, monkeypatch):
    """The folder of a toy cifar10.npz that passes for the official one."""
    toy.use(monkeypatch.setattr)
    return toy.write_npz(tmp_path / "data")


@pytest.fixture
def weights(toy_set, tmp_path):
    """The file of a small network that nobody trained, beside the toy set."""
    untrained.write_weights(tmp_path / "net.pt", toy_set)
    return tmp_path / "net.pt"


@pytest.fixture
def configure(toy_set, tmp_path):
    """configure(name, **changes): the configuration of a toy run on the toy set that writes tmp_path/name.pt."""
    return lambda name="run", **changes: toy.configure(
        **{"data": toy_set, "out": tmp_path / f"{name}.pt"} | changes)


@pytest.fixture
def offline(monkeypatch):
    """No socket can be made; the list of attempts."""
    attempts = []

    def blocked(*arguments, **_):
        attempts.append(arguments)
        raise OSError("blocked by the test")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, blocked)
    return attempts


@pytest.fixture
def handlers():
    """A run that was stopped leaves signals ignored, for its process is about to end; ours is not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
