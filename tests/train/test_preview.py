"""The pictures of the augmentations as a command."""

from itertools import combinations

import pytest
import torch

from augment import AUGMENTATIONS, MIXES
from train import preview
from train.data import cifar10


@pytest.fixture
def run(typed, tmp_path):
    """run(*words) -> (exit code, stdout, stderr) of the command on generated images."""
    return lambda *words: typed(preview.main, "--data", "synthetic", "--out", tmp_path / "augment.png", *words)


def test_a_picture_of_generated_images(tmp_path, run, caplog):
    code, out, err = run()
    assert (code, err) == (0, "") and "augment.png" in out and "clipping" not in caplog.text.lower()
    assert (tmp_path / "augment.png").read_bytes().startswith(b"\x89PNG")


def test_every_row_has_a_label_of_its_own():
    images = cifar10.load("synthetic").images[:2]
    rows = [*preview.operation_rows(images), *preview.random_rows(images, torch.Generator().manual_seed(0))]
    labels = [label for label, _ in rows]
    assert all(labels) and len(set(labels)) == len(labels)
    assert set(AUGMENTATIONS) | set(MIXES) - {"none"} <= set(labels)
    assert {"Rotate\n-30 to 30", "Posterize\n8 to 4", "Solarize\n1 to 0", "Invert"} <= set(labels)
    assert all(strip.shape == images.shape for _, strip in rows)


@pytest.mark.parametrize("words, labels", [
    (("--augment", "flip,cutout:8", "--mix", "ricap"), ["flip", "cutout:8", "ricap"]),
    (("--mix", "mixup:0.4"), ["mixup:0.4"]), (("--augment", "none"), [])])
def test_what_a_training_sees(run, tmp_path, monkeypatch, words, labels):
    rows, shown = [], preview.training_rows
    monkeypatch.setattr(preview, "training_rows", lambda *given: rows.extend(shown(*given)) or rows)
    assert run(*words)[0] == 0 and (tmp_path / "augment.png").exists()
    assert [label for label, _ in rows] == [*labels, *(f"all, epoch {k}" for k in range(1, 5))]
    images = cifar10.load("synthetic").images[:8]
    for label, strip in rows:
        assert strip.shape == images.shape and torch.equal(strip, images) == (not labels), label
    epochs = [strip for label, strip in rows if label.startswith("all")]
    assert not labels or not any(torch.equal(a, b) for a, b in combinations(epochs, 2))
    mean_pixel = torch.tensor([125, 123, 114]).view(1, 3, 1, 1)
    assert "cutout:8" not in labels or all((strip == mean_pixel).all(1).sum() > 16 for strip in epochs)


@pytest.mark.parametrize("words, told", [(("--augment", "blur"), "blur"), (("--mix", "cutout"), "cutout"),
                                         (("--out", "x.jpg"), ".png")])
def test_a_mistake_is_one_line(run, words, told):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err.startswith("preview.py: ") and told in err and err.count("\n") == 1
