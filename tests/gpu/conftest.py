"""The device of these tests (a folder called cuda would hide NVIDIA's package of that name).

CUDA_TESTS_ON=cpu rehearses on the CPU what makes sense there.

    python -m pytest tests/gpu                    on a machine with a GPU; skipped on others
    CUDA_TESTS_ON=cpu python -m pytest tests/gpu  the compiler then only traces (but for two ranks')
"""

import os

import pytest
import torch

from train.engine import device as devices
from train.engine import distributed

ON = os.getenv("CUDA_TESTS_ON", "cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the deterministic mode asks for it


@pytest.fixture(scope="session")
def device():
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here; CUDA_TESTS_ON=cpu rehearses on the CPU")
    found = devices.device_of(ON)
    torch.backends.cudnn.benchmark = False  # trying algorithms for hundreds of convolutions takes minutes
    return found


@pytest.fixture
def compiler(device, monkeypatch):
    """torch.compile, which in a rehearsal traces forward and backward and generates no code."""
    torch.compiler.reset()
    original = torch.compile
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda network, mode="", **options: original(
            network, backend="aot_eager", **options))


@pytest.fixture(params=["cuda graphs", "no graphs"])
def compiled(request, device, compiler, monkeypatch):
    """compiled(network): as training compiles it on one GPU, with CUDA graphs, or on several, without."""

    if device.type == "cpu" and request.param == "no graphs":
        pytest.skip("the rehearsal of CUDA graphs is the same: it has none")

    def compile(network):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: 1 if request.param == "cuda graphs" else 2)
            return devices.compiled(network, device)

    return compile


@pytest.fixture
def deterministic():
    """The deterministic mode while the test runs."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
