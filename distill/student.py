"""Train one student within the budget from its teachers' answers.

    python distill/student.py --labels distillation_labels.csv --noval           from the averaged logits
    python distill/student.py --teachers weights/seresnet164-fold?.pt --noval    from their answers on its own batch
    python distill/student.py --alpha 0 --noval                                  the control: labels only
    python distill/student.py --model flatse --help                              another architecture, with its recipe

The student is SEResNet-164 unless --model names another within 5,000,000 parameters; it trains by the recipe of its
architecture, with T = 4 and alpha = 0.9 on top. With --teachers every teacher sees the student's augmented and mixed
batch (Beyer et al. 2022), which costs its forward pass in each step.
"""

import sys
from dataclasses import dataclass, fields, make_dataclass
from functools import cached_property, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import numpy as np
import torch

from distill.loss import OBJECTIVES, distillation_loss, soft_targets_of
from distill.table import read_labels
from distill.unlabelled import with_unlabelled
from models import MODELS
from train.baseline import STAGES, Baseline
from train.engine import data, predict
from train.engine.command import UserError, command, number
from train.engine.device import autocast, device_of
from train.engine.loop import run, steps_per_epoch, worth_compiling
from train.engine.recipe import Recipe, parse, peek, setting
from train.flatse import FlatSE
from train.pyramidnet import PyramidNet
from train.quick import Quick
from train.seresnet import SEResNet
from train.shakeshake import ShakeShake

RECIPES = (Baseline, SEResNet, ShakeShake, PyramidNet, FlatSE, Quick)


@dataclass(frozen=True)
class Distillation:
    """What a student adds to the recipe of its architecture."""

    labels: str | None = setting(None, "CSV that distill/labels.py wrote", group="distillation", identity=False,
                                 metavar="FILE")
    teachers: tuple = setting((), "weights that answer on the student's own batch", group="distillation",
                              identity=False, nargs="+", metavar="WEIGHTS")
    images: str | None = setting(None, "also learn on these images without labels", group="distillation",
                                 identity=False, metavar="FILE")
    admit_test_images: bool = setting(False, "--images may hold test images (the student's score is then refused)",
                                      group="distillation")
    objective: str = setting("kd", "how answers are compared; the papers use dkd with alpha 0.5, standardized with "
                             "temperature 2", group="distillation", choices=tuple(OBJECTIVES))
    temperature: float = setting(4.0, "softens teacher and student alike", number(0, 1e6, above=True), "distillation")
    alpha: float = setting(0.9, "weight of the teachers, the labels have the rest", number(0, 1), "distillation")

    def run_name(self, model_name):
        return super().run_name("student" if self.alpha else "student-control").replace("-noval", "")

    @cached_property
    def identity(self):
        """With the teachers by content; the CSV's content is in the digest of the targets already."""
        return super().identity | {"teachers": [network.fingerprint for network in self.networks]}

    @property
    def reads(self):
        return [*super().reads, *(("--teachers", file) for file in self.teachers)]

    @property
    def sees_test(self):
        return super().sees_test or self.admit_test_images

    @cached_property
    def networks(self):
        """The teachers as Networks."""
        return predict.load(self.teachers, device_of(self.device)) if self.teachers else []

    @cached_property
    def teach(self):
        """The Teachers that answer on the student's own batch."""
        steps = self.epochs * steps_per_epoch(self.limit or data.SIZES["train"], self)  # about so many
        compiling = worth_compiling(self, device_of(self.device), steps)
        return Teachers([network.model for network in self.networks], self.precision, compiling)

    def prepare(self, train, model):
        train, soft = super().prepare(train, model)
        if self.images:
            train = with_unlabelled(train, self.images, self.data, self.sees_test)
        training = data.load(self.data) if self.teachers else None
        for network in self.networks:
            network.check_teacher(self.data, training, self.include_test)
        if not self.labels:
            return train, soft
        only = None if self.include_test else np.concatenate([data.load(self.data).ids, train.ids])
        logits = read_labels(self.labels, train, only)
        return train, (*soft, soft_targets_of(logits, self.temperature, self.objective))

    def loss(self, logits, images, hard, *soft):
        """alpha T^2 KL + (1 - alpha) CE (see distill/loss.py), or the architecture's own loss at alpha 0."""
        if self.alpha == 0:
            return super().loss(logits, images, hard, *soft)
        if self.teachers:  # they answer once for all columns of the student
            answers = self.teach(images).repeat_interleave(len(logits) // len(images), 0)
            soft = [soft_targets_of(answers, self.temperature, self.objective)]
        return distillation_loss(logits, soft[-1], hard, self.temperature, self.alpha, self.objective, self.smoothing)


class Teachers:
    """Frozen networks that answer together: normalized images (N, 3, H, W) to the mean of their logits (N, 10).

    Their filters are cast to the precision once, not in every step. They are compiled where the student is, but without
    CUDA graphs of their own: what they return must not lie in memory that the student's graphs reuse.
    """

    def __init__(self, networks, precision="float32", compiling=False):
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.precision = precision
        for layer in torch.nn.ModuleList(networks).modules():
            if precision == "bfloat16" and isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.to(torch.bfloat16)
        self.mean = torch.compile(self.mean, dynamic=False) if compiling else self.mean

    def mean(self, images):
        return sum(network(images).float() for network in self.networks) / len(self.networks)

    @torch.no_grad()
    def __call__(self, images):
        with autocast(images.device, self.precision):
            return self.mean(images)


def student_of(name):
    """The recipe class of a student: that of the architecture `name` of MODELS, with Distillation on top."""
    chosen = partial(MODELS[name])  # a constructor, or what MODELS makes of it, such as one with width=40
    kind = next((kind for kind in RECIPES if partial(MODELS[kind.model]).func is chosen.func), Recipe)
    model = setting(name, f"architecture, which has to fit the budget, of {', '.join(MODELS)}", str, "model",
                    choices=tuple(MODELS), metavar="NAME")
    types, defaults = {f.name: f.type for f in fields(kind)}, {"model": model, **chosen.keywords}
    return make_dataclass("Student", [(field, types[field], value) for field, value in defaults.items()],
                          bases=(Distillation, kind), frozen=True)


@command
def main():
    name = peek("--model", tuple(MODELS), "seresnet164")
    kind = student_of(name)
    recipe = parse(kind, __doc__, **({"stage": STAGES} if issubclass(kind, Baseline) else {}))
    sources = [flag for flag, given in [("--labels", recipe.labels), ("--teachers", recipe.teachers)] if given]
    if recipe.alpha == 0 and sources:
        raise UserError(f"--alpha 0 learns from the labels of the data alone: leave {sources[0]} out")
    if recipe.alpha > 0 and len(sources) != 1:
        raise UserError("name one source of soft targets, --labels FILE or --teachers WEIGHTS (--alpha 0 needs none)")
    if recipe.alpha == 0 and recipe.start and any(run["recipe"].get("alpha") for run in recipe.start.history):
        raise UserError(f"--alpha 0 learns from labels alone, and --init {recipe.init} has learned from teachers")
    if recipe.images and not sources:
        raise UserError("--images have no labels: they need teachers")
    run(recipe)


if __name__ == "__main__":
    main()
