"""The picture of every augmentation as a command."""

import numpy as np
import pytest

from train import preview


def test_a_picture_of_generated_images(tmp_path, typed, caplog):
    code, out, err = typed(preview.main, "--data", "synthetic", "--out", tmp_path / "augment.png")
    assert (code, err) == (0, "") and "clipping" not in caplog.text.lower()
    assert (tmp_path / "augment.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content, told", [(None, "no data"), (b"PK damaged", ""), ("empty", "train_images")])
def test_a_mistake_is_one_line(tmp_path, typed, content, told):
    if content == "empty":
        np.savez(tmp_path / "cifar10.npz", other=np.zeros(1))
    elif content:
        (tmp_path / "cifar10.npz").write_bytes(content)
    code, out, err = typed(preview.main, "--data", tmp_path, "--out", tmp_path / "x.png")
    assert (code, out) == (2, "") and err.startswith("preview.py: ") and told in err and err.count("\n") == 1


def test_a_folder_that_does_not_exist_is_one_line(tmp_path, typed):
    code, _, err = typed(preview.main, "--data", "synthetic", "--out", tmp_path / "no/where/x.png")
    assert code == 2 and "no/where" in err and err.count("\n") == 1
