"""Train one student within the budget from its teachers' answers.

    python distill/student.py --labels distillation_labels.csv --noval       from the averaged logits
    python distill/student.py --teachers weights/seresnet164-fold?.pt --noval    from the teachers' answers on its own batch
    python distill/student.py --alpha 0 --noval                              the control: labels only

The student is SEResNet-164 unless --model names another within 5,000,000 parameters; T = 4, alpha = 0.9. With
--teachers every teacher sees the student's augmented and mixed batch (Beyer et al. 2022), which costs its
forward pass in each step.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from distill.labels import load_teachers, read_labels
from distill.loss import OBJECTIVES, criterion, soft_targets_of
from distill.unlabelled import UNLABELLED, load_images
from models import MODELS
from train import checkpoint, data
from train.loop import run
from train.recipe import Recipe, UserError, command, device_of, number, parse, setting, whole


@dataclass(frozen=True)
class Student(Recipe):
    model: str = setting("seresnet164", "architecture, within the budget", str, "model", choices=tuple(MODELS))
    width: int | None = setting(None, "its width, where the family has one", whole(1), "model", model=True)
    depth: int | None = setting(None, "its depth, where the family has one", whole(1), "model", model=True)
    epochs: int = 200
    weight_decay: float = 1e-4
    augment: tuple = ("crop", "flip", "autoaugment", "erase")
    mix: str = "ricap"
    labels: str | None = setting(
        None, "CSV that distill/labels.py wrote", group="distillation", what=False, metavar="FILE"
    )
    teachers: tuple = setting(
        (),
        "weights that answer on the student's own batch",
        group="distillation",
        what=False,
        nargs="+",
        metavar="WEIGHTS",
    )
    images: str | None = setting(
        None, "also learn on these images without labels", group="distillation", what=False, metavar="FILE"
    )
    objective: str = setting("kd", "how answers are compared", str, "distillation", choices=tuple(OBJECTIVES))
    temperature: float = setting(4.0, "softens teacher and student alike", number(0, above=True), "distillation")
    alpha: float = setting(0.9, "weight of the teachers, the labels have the rest", number(0, 1), "distillation")

    def run_name(self, model_name):
        name = "student" if self.alpha else "student-control"
        return name if self.fold is None else f"{name}-{self.split_name}"

    @cached_property
    def identity(self):
        """With the teachers by content; the CSV's content is in the digest of the targets already."""
        return super().identity | {"teachers": [mark_of(file) for file in self.teachers]}


def mark_of(file):
    """What stands for a teacher in the student's recipe: the digest of its weights."""
    return checkpoint.digest(checkpoint.load_weights(file)["state"])


def check_source(recipe):
    """UserError unless exactly one source of soft targets is named, or none for the control."""
    named = [flag for flag, given in [("--labels", recipe.labels), ("--teachers", recipe.teachers)] if given]
    if recipe.alpha == 0 and named:
        raise UserError(f"--alpha 0 learns from the labels of the data alone: leave {named[0]} out")
    if recipe.alpha > 0 and len(named) != 1:
        raise UserError(
            "name one source of soft targets, --labels FILE or --teachers WEIGHTS... (--alpha 0 needs none)"
        )
    if recipe.images and recipe.alpha < 1 and not named:
        raise UserError("--images have no labels: they need teachers")


class Ensemble:
    """Frozen teachers that answer together: normalized images (N, 3, 32, 32) to the mean of their logits (N, 10)."""

    def __init__(self, teachers):
        self.teachers = [model.eval().requires_grad_(False) for model in teachers]

    @torch.no_grad()
    def __call__(self, images):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
            return sum(model(images).float() for model in self.teachers) / len(self.teachers)


def ensemble(recipe):
    """The Ensemble that a recipe names, on its device, or None."""
    loaded = load_teachers(recipe.teachers, device_of(recipe.device), recipe.include_test)
    return Ensemble([model for _, model, _ in loaded]) if loaded else None


def prepare(recipe):
    """The function that `run` asks for the images to train on and their soft targets."""

    def with_targets(train, model):
        if recipe.images:
            images, _ = load_images(recipe.images)
            train = data.join(train, data.as_dataset(images, np.full(len(images), -1), recipe.images), UNLABELLED)
        if not recipe.labels:
            return train, ()
        only = None if recipe.include_test else np.concatenate([data.load(recipe.data).ids, train.ids])
        logits = read_labels(recipe.labels, train, only)
        return train, (soft_targets_of(logits, recipe.objective, recipe.temperature),)

    return with_targets


@command
def main():
    recipe = parse(Student, __doc__)
    check_source(recipe)
    if recipe.alpha == 0:
        run(recipe)
    else:
        loss = criterion(recipe.objective, recipe.temperature, recipe.alpha, ensemble(recipe))
        run(recipe, loss, prepare(recipe))


if __name__ == "__main__":
    main()
