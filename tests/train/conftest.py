"""The toy set in a folder, for the tests that train on it."""

import pytest
import toy
import torch


@pytest.fixture
def toy_set(tmp_path, monkeypatch):
    """The folder of a toy cifar10.npz that passes for the official one; one thread while the test runs."""
    toy.use(monkeypatch.setattr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield toy.write_npz(tmp_path / "data")
    torch.set_num_threads(threads)
