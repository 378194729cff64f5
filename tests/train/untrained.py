"""Weights files of small networks that nobody trained, with all that a finished run says of itself."""

import pytest
import torch

import models
import toy
from train import report
from train.engine import checkpoint, command, data, plots, predict


def write_weights(file, images, seed=0, width=2, name="resnet18", sharpness=8.0, source="cifar10.npz", **changes):
    """The content of the weights file it writes. images: --data of the run; changes: fields of the recipe.

    sharpness scales the last layer, so that the answers differ from each other and are sure of themselves.
    """
    recipe = toy.Toy(seed=seed, **changes)
    torch.manual_seed(seed)
    model = models.build(name, width=width)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    list(model.parameters())[-2].data.mul_(sharpness)
    train, _ = data.split(data.load(images), recipe.fold, recipe.limit)
    content = {
        "model": name, "options": model.options, "state": model.state_dict(), "ema": None, "data": train.digest,
        "recipe": recipe.identity, "log": log(recipe),
        "provenance": {
            "run": file.stem, "name": model.name, "params": models.parameter_count(model), "over_budget": False,
            "include_test": recipe.sees_test, "images": len(train), "train_digest": train.digest,
            "source": source, "steps": 1, "seconds": 60.0 + seed, "hardware": "abacus", "date": "2026-01-01",
            "command": f"python train/baseline.py --seed {seed}", "unlabelled": 0, "threads": 1, "torch": "2.11.0",
            "python": "3.12.0", "commit": "0123456789ab",
        },
    }
    checkpoint.save(file, content)
    return content


@pytest.fixture
def weights(toy_set, tmp_path):
    """The file of such a network, beside the toy set."""
    write_weights(tmp_path / "net.pt", toy_set)
    return tmp_path / "net.pt"


def log(recipe, epochs=3):
    """The rows of a run's log, without validation where the recipe holds nothing out."""
    return [{"epoch": epoch, "lr": 0.1, "train_loss": 2 / epoch, "train_accuracy": 40.0 + epoch, "seconds": 1.0,
             "val_loss": None if recipe.fold is None else 3 / epoch,
             "val_accuracy": None if recipe.fold is None else 30.0 + epoch} for epoch in range(1, epochs + 1)]


# ---------------------------------------------------------------- for the tests of the report


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository's root with the toy set in data/ and a folder weights/."""
    toy.use(monkeypatch.setattr)
    toy.write_npz(tmp_path / "data")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def blank(monkeypatch):
    """Pictures are files of one byte: drawing them is slow, and tested once."""
    for name in ("curves", "landscape", "confusion", "reliability"):
        monkeypatch.setattr(plots, name, lambda file, *_: file.write_bytes(b"x"))


@pytest.fixture
def no_pass(monkeypatch):
    """no_pass(): from here on a test pass fails the test, and with images=True the loading of images too."""

    def forbid(images=False):
        monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("a test pass"))
        if images:
            monkeypatch.setattr(data, "load", lambda *_: pytest.fail("the images were loaded"))

    return forbid


@pytest.fixture
def run(folder, typed):
    """run(*words) -> (exit code, stdout, stderr) of the report on the toy set."""
    return lambda *words: typed(report.main, *words, "--device", "cpu", "--data", folder / "data")


def add(folder, name, **changes):
    """A weights file in weights/ of such a repository."""
    file = folder / "weights" / f"{name}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_weights(file, folder / "data", **changes)
    return file


def logits_of(file, folder, tta=False):
    return predict.answers(predict.load([file]), data.load(folder / "data", "test").images, tta, bars=False)


def accuracy_of(file, folder):
    return predict.accuracy(logits_of(file, folder), data.load(folder / "data", "test").labels)
