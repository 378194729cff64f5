"""Weights files of small networks that nobody trained, with all that a finished run says of itself."""

from pathlib import Path

import torch
import toy

import models
from train.data import cifar10
from train.engine import checkpoint
from train.engine.flags import RUNTIME


def write_weights(file: Path, data, seed=0, width=2, name="resnet18", sharpness=8.0, source=None, kd=None,
                  **changes) -> dict:
    """The content of the weights file that it writes. data: the folder of the images; changes: flags of the run.

    sharpness scales the last layer, so that the logits differ from each other and are sure of themselves; source: in
    place of that of the data; kd: what a student's configuration has beyond the others'.
    """
    args = toy.configure(name, width=width, seed=seed, **changes)
    torch.manual_seed(seed)
    model = models.build(name, width=width)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    list(model.parameters())[-2].data.mul_(sharpness)
    train, _ = cifar10.split(cifar10.load(data), args.fold, args.limit)
    run = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(args).items()
           if key not in RUNTIME} | (kd or {})
    content = {
        "model": name, "options": model.options, "state": model.state_dict(), "ema": None, "config": run,
        "data": train.digest, "log": log(args.fold),
        "provenance": {
            "run": file.stem, "command": f"python train/baseline.py --seed {seed}", "name": model.name,
            "params": models.parameter_count(model), "over_budget": False, "include_test": args.include_test,
            "images": len(train), "unlabelled": 0, "train_digest": train.digest,
            "source": source or Path(train.source).name, "steps": 1,
            "seconds": 60.0 + seed, "hardware": "abacus", "torch": "2.11.0", "commit": "0123456789ab", "threads": "1",
            "python": "3.12.0", "precision": "float32", "date": "2026-01-01", "before": [],
            "fingerprint": checkpoint.digest(model.state_dict())[:16],
            "seen_folds": [fold for fold in range(5) if fold != args.fold],
        },
    }
    checkpoint.save(file, content)
    return content


def log(fold=0, epochs=3) -> list[dict]:
    """The rows of a run's log, without validation where no fold is held out."""
    return [{"epoch": epoch, "lr": 0.1, "train_loss": 2 / epoch, "train_accuracy": 40.0 + epoch, "seconds": 1.0,
             "val_loss": None if fold is None else 3 / epoch,
             "val_accuracy": None if fold is None else 30.0 + epoch} for epoch in range(1, epochs + 1)]
