"""Weights files of small networks that nobody trained, with all that a finished run says of itself."""

import torch

import models
import toy
from train.engine import checkpoint, data


def write_weights(file, images, seed=0, width=2, name="resnet18", sharpness=8.0, over_budget=False, **changes):
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
        "recipe": recipe.identity, "log": [],
        "provenance": {
            "run": file.stem, "command": f"python train/baseline.py --seed {seed}", "name": model.name,
            "params": models.parameter_count(model), "over_budget": over_budget, "include_test": recipe.sees_test,
            "images": len(train), "unlabelled": 0, "train_digest": train.digest, "source": "cifar10.npz", "steps": 1,
            "seconds": 60.0 + seed, "hardware": "abacus", "threads": 1, "torch": "2", "python": "3", "commit": "0" * 12,
            "date": "2026-01-01",
        },
    }
    checkpoint.save(file, content)
    return content
