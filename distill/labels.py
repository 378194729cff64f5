"""Average the teachers' logits over the training images into distillation_labels.csv.

    python distill/labels.py weights/seresnet164-fold?.pt weights/shakeshake26-64-se-noval.pt
    python distill/labels.py weights/seresnet164-fold?.pt --average oof --tta

`mean` averages all teachers. `oof` (out of fold) uses for each image only the fold teachers that have not trained
on it, and no teachers without a fold. `--tta` also averages over the mirror images. The script takes one forward
pass per teacher, two with `--tta`: a few minutes each on two CPU cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import models
from distill.table import write_labels
from train import ROOT, UserError
from train.data import cifar10
from train.data.sources import expand
from train.data.unlabelled import with_unlabelled
from train.engine import metrics
from train.engine.command import Parser, add_common, check_target, command, count_of, integer, parser, warn
from train.engine.device import device_of
from train.engine.network import Network, load_all, logits, total_epochs

TEST, UNLABELLED = 5, 6  # pseudo-folds of images added to the training set
ROW = "{:32s} {:>6s} {:>12s} {:>12s} {:>13s}"


def average(teacher_logits: torch.Tensor, used: np.ndarray) -> torch.Tensor:
    """Mean logits (N, 10), from (T, N, 10), over the teachers that the mask `used`, bool (T, N), selects."""
    weights = torch.from_numpy(used).double()
    return ((weights[..., None] * teacher_logits.double()).sum(0) / weights.sum(0)[:, None]).float()


def unseen(network: Network, folds: np.ndarray) -> np.ndarray:
    """The mask (N,) of images that a fold teacher has not trained on; no image for a teacher without a fold.

    folds: of each image (N,), or TEST, or UNLABELLED; these do not count for a teacher that learned from such images.
    """
    if network.fold is None:
        return np.zeros(len(folds), dtype=bool)
    new = [network.fold]
    new += [] if network.provenance["include_test"] else [TEST]
    new += [] if any(run["unlabelled"] for run in network.history) else [UNLABELLED]
    return np.isin(folds, new)


def percent(logits: torch.Tensor, labels: torch.Tensor, mask: np.ndarray | bool = True) -> str:
    """Accuracy in percent, as text, on the images of the mask that have a label (0..9, not -1)."""
    mask = mask & (labels >= 0).numpy()
    return f"{metrics.accuracy(logits[mask], labels[mask]):.2f}" if mask.any() else "-"


def flags() -> Parser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("weights", nargs="+", type=expand, metavar="WEIGHTS", help="the teachers")
    add_common(arguments)
    add("--out", type=expand, default=ROOT / "distillation_labels.csv", metavar="FILE", help="CSV to write")
    add("--average", choices=("mean", "oof"), default="mean",
        help="mean: all teachers; oof: for each image only those that have not trained on it")
    add("--tta", action="store_true", help="average the logits of each image and its mirror image")
    add("--limit", type=integer(1), metavar="N", help="use only N training images, always the same")
    add("--images", type=expand, metavar="FILE",
        help="add these unlabelled images (pickle, npz, npy or folder of 32x32 pictures)")
    add("--include-test", action="store_true", help="label the test images too, and accept teachers trained on them; "
        "for students with --include-test only")
    return arguments


def main() -> None:
    args = flags().parse_args()
    check_target("--out", args.out, ".csv", "id,label,")
    teachers = load_all(args.weights, device_of(args.device))
    training = cifar10.load(args.data)
    for teacher in teachers:
        teacher.check_source(args.data, args.include_test)
        teacher.split(training)
    dataset = training.select(slice(args.limit))
    folds = cifar10.fold_of(training.ids, training.labels.numpy())[:args.limit]
    if args.include_test:
        dataset = cifar10.join(dataset, cifar10.load(args.data, "test"))
    folds = np.pad(folds, (0, len(dataset) - len(folds)), constant_values=TEST)
    if args.images:
        dataset = with_unlabelled(dataset, args.images, args.data, args.include_test, warn)
    folds = np.pad(folds, (0, len(dataset) - len(folds)), constant_values=UNLABELLED)

    known = dataset.labels.where(torch.from_numpy(folds != TEST), -1)  # the printed figures leave out test images
    masks = np.stack([unseen(teacher, folds) for teacher in teachers])
    used = masks | (args.average == "mean")
    alone = ~used.any(0)
    if alone.any():
        raise UserError(f"--average oof: {alone.sum():,} images are held out by no teacher (the first is "
                        f"{dataset.ids[alone.argmax()]}): give a teacher for each of the five folds, none of which "
                        f"has learned from these images in another way")
    print(f"{len(dataset):,} images, {args.average} of {count_of(len(teachers), 'teacher')}"
          f"{', with their mirror images' if args.tta else ''}\n")
    print(ROW.format("teacher", "epochs", "parameters", "held out %", "trained on %"))
    found = []
    for teacher, mask in zip(teachers, masks, strict=True):
        trained_on = np.isin(dataset.ids, teacher.split(training)[0].ids)
        found.append(logits(teacher.model, dataset.images, args.tta, label=teacher.name))
        remarks = [f"on {teacher.provenance['images']:,} images"] if teacher.config["limit"] else []
        remarks += ["over budget"] if teacher.params > models.BUDGET else []
        print(ROW.format(teacher.name, f"{total_epochs(teacher.history):,}", f"{teacher.params:,}",
                         percent(found[-1], known, mask), percent(found[-1], known, trained_on))
              + (f" ({', '.join(remarks)})" if remarks else ""), flush=True)
    found = torch.stack(found)
    if masks.any(0).all():
        print(ROW.format("ensemble, out of fold", "", "", percent(average(found, masks), known), "").rstrip())
    mean = average(found, used)
    if args.average == "mean":  # oof is in the line above
        print(ROW.format("ensemble, as written", "", "", "", percent(mean, known)))
    seen = {fold for teacher in teachers for fold in teacher.provenance["seen_folds"]}
    write_labels(args.out, dataset.ids, dataset.labels.numpy(), mean, seen)
    print(f"\n{args.out}: {len(dataset):,} rows")


if __name__ == "__main__":
    with command():
        main()
