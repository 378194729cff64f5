"""Train one student within the budget from its teachers' logits.

    python distill/student.py --labels distillation_labels.csv --noval           from the averaged logits
    python distill/student.py --teachers weights/seresnet164-fold?.pt --noval    from their logits for its own batches
    python distill/student.py --alpha 0 --noval                                  the control: labels only
    python distill/student.py --model flatse --help                              another architecture, with its recipe

The student is SEResNet-164 unless --model names another within 5,000,000 parameters; it trains by the recipe of its
architecture, with T = 4 and alpha = 0.9. With --teachers, every teacher sees the student's augmented and mixed batch
(Beyer et al. 2022), always at 32x32 pixels, which costs a forward pass of each teacher in every step.
"""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from distill.loss import OBJECTIVES, distillation_loss, soft_targets_of
from distill.table import read_labels, seen_folds
from models import MODELS
from train import ROOT, UserError, baseline, flatse, pyramidnet, quick, seresnet, shakeshake
from train.data import cifar10
from train.data.sources import expand
from train.data.unlabelled import with_unlabelled
from train.engine.command import Parser, command, number, one_of, warn
from train.engine.flags import parse
from train.engine.loop import run
from train.engine.network import load, load_all

FAMILIES = {"resnet": baseline.STAGES["augmented"], "shakeshake": shakeshake.RECIPE, "seresnet": seresnet.RECIPE,
            "pyramidnet": pyramidnet.RECIPE, "flatse": flatse.RECIPE, "fastnet": quick.RECIPE}


def configuration(argv: list[str] | None = None) -> Namespace:
    """The student's configuration: its architecture's recipe, the command line, and the folds that its teachers saw."""
    recipes = {name: recipe_of(name) for name in ["seresnet164", *MODELS] if name.startswith(tuple(FAMILIES))}

    def add_flags(arguments: Parser) -> None:
        add = arguments.add_argument_group("distillation").add_argument
        add("--labels", type=expand, metavar="FILE", help="CSV that distill/labels.py wrote")
        add("--teachers", type=expand, nargs="+", default=(), metavar="WEIGHTS",
            help="weights of teachers, which see the student's own batches")
        add("--images", type=expand, metavar="FILE", help="add these unlabelled images")
        add("--objective", type=one_of(*OBJECTIVES), default="kd", metavar="NAME",
            help="how logits are compared: kd, dkd (with --alpha 0.5) or standardized (with --temperature 2)")
        add("--temperature", type=number(0, 1e6, above=True), default="4", metavar="X",
            help="softens teachers and student")
        add("--alpha", type=number(0, 1), default="0.9", metavar="X",
            help="weight of the teachers; the labels have 1 - alpha")

    args = parse(__doc__, recipes, by="model", argv=argv, add=add_flags)
    given = [flag for flag, value in (("--labels", args.labels), ("--teachers", args.teachers)) if value]
    if args.alpha == 0 and given:
        raise UserError(f"--alpha 0 learns from the labels of the data alone: leave {given[0]} out")
    if args.alpha > 0 and len(given) != 1:
        raise UserError("give either --labels FILE or --teachers WEIGHTS, or --alpha 0 for the control")
    if args.images and not given:
        raise UserError("--images have no labels: they need teachers, so leave out --alpha 0")
    if args.out is None:
        name = "student" if args.alpha else "student-control"
        fold, seed = "" if args.fold is None else f"-fold{args.fold}", f"-seed{args.seed}" if args.seed else ""
        args.out = ROOT / "weights" / f"{name}{fold}{seed}.pt"
    args.seen_folds = seen_folds(args.labels) if args.labels else ()
    return args


def recipe_of(model: str) -> dict:
    """The recipe of the architecture `model`, a name of MODELS, for a student within the budget."""
    recipe = FAMILIES[max((family for family in FAMILIES if model.startswith(family)), key=len)]
    fixed = getattr(MODELS[model], "keywords", {})  # set by the name: fastnet-s has one column, in any recipe
    return recipe | fixed | {"model": model, "allow_over_budget": False}


def targets(args: Namespace, train: cifar10.Dataset) -> tuple[cifar10.Dataset, tuple[torch.Tensor, ...]]:
    """(the training Dataset with the unlabelled images, the soft targets of the CSV), for `run`."""
    if args.images:
        train = with_unlabelled(train, args.images, args.data, args.include_test, warn)
    if not args.labels:
        return train, ()
    logits = read_labels(args.labels, train, known={*cifar10.ids_of(args.data), *train.ids})
    return train, (soft_targets_of(logits, args.temperature, args.objective),)


def loss(args: Namespace, logits: torch.Tensor, hard: torch.Tensor, soft: torch.Tensor) -> dict[str, torch.Tensor]:
    """alpha T^2 KL + (1 - alpha) CE (see distill/loss.py), for `run`. soft: soft targets, or the teachers' logits."""
    if args.teachers:
        soft = soft_targets_of(soft, args.temperature, args.objective)
    return distillation_loss(logits, soft, hard, args.temperature, args.alpha, args.objective, args.smoothing)


def main() -> None:
    args = configuration()
    if args.alpha == 0 and args.init and any(run["config"].get("alpha") for run in load(args.init).history):
        raise UserError(f"--alpha 0 learns from labels alone, and --init {args.init} has learned from teachers")
    teachers = load_all(args.teachers) if args.teachers else []  # `run` has copies on the device
    run(args, partial(targets, args), partial(loss, args) if args.alpha else None, teachers)


if __name__ == "__main__":
    with command():
        main()
