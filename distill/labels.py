"""Average the teachers' logits over the training images into distillation_labels.csv.

    python distill/labels.py weights/seresnet164-fold?.pt weights/shakeshake26-64-se-noval.pt
    python distill/labels.py weights/seresnet164-fold?.pt --average oof
    python distill/labels.py weights/seresnet164-fold?.pt --tta

`mean` averages all teachers. `oof` (out of fold) uses for each image only the fold teachers that have not trained
on it, and teachers without a fold not at all. `--tta` asks them about the mirror image too. One forward pass per
teacher, or two: seconds on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import numpy as np
import torch

from distill.table import write_labels
from distill.unlabelled import with_unlabelled
from train.engine import data, predict
from train.engine.command import ROOT, TTA, UserError, add_common, check_target, command, count_of, integer, parser
from train.engine.device import device_of
from train.engine.progress import say

TEST, UNLABELLED = 5, 6  # what an image that is added to the training set has in place of its fold, 0 to 4
ROW = "{:32s} {:>6s} {:>12s} {:>12s} {:>13s}"


def average(answers, masks, how, ids):
    """One set of logits (N, 10) from those of several teachers, (T, N, 10).

    masks: bool (T, N), True where that teacher has not trained on the image; how: "mean" of all, or "oof", for each
    image the mean of those that have not trained on it. UserError when oof leaves an image without a teacher.
    """
    weights = torch.from_numpy(answers_used(masks, how, ids)).double()
    return ((weights[..., None] * answers.double()).sum(0) / weights.sum(0)[:, None]).float()


def answers_used(masks, how, ids):
    """Bool (T, N): whose answers about an image `average` takes; UserError where there is none."""
    taken = masks | (how == "mean")
    alone = ~taken.any(0)
    if alone.any():
        raise UserError(f"--average oof: {alone.sum():,} images are held out by no teacher (the first is "
                        f"{ids[alone.argmax()]}): give the teachers of all five folds")
    return taken


def unseen(network, folds):
    """The mask (N,) of images that a fold teacher has not trained on; of a teacher without a fold none count.

    folds: of each image (N,), or TEST, or UNLABELLED, which never counts for a teacher that learned from such images.
    """
    if network.fold is None:
        return np.zeros(len(folds), dtype=bool)
    new = [network.fold]
    new += [] if network.provenance["include_test"] else [TEST]
    new += [] if network.provenance.get("unlabelled") else [UNLABELLED]
    return np.isin(folds, new)


def accuracy(logits, labels, mask=True):
    """Accuracy in percent, as text, on the images that have a label (0..9, not -1), of those in the mask."""
    mask = mask & (labels >= 0).numpy()
    return f"{predict.accuracy(logits[mask], labels[mask]):.2f}" if mask.any() else "-"


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="the teachers")
    add_common(arguments)
    arguments.add_argument("--out", "--output", "-o", type=Path, default=ROOT / "distillation_labels.csv",
                           metavar="FILE", help="CSV to write")
    arguments.add_argument("--average", choices=("mean", "oof"), default="mean",
                           help="all teachers, or only those that have not trained on the image")
    arguments.add_argument("--tta", **TTA)
    arguments.add_argument("--limit", type=integer(1), metavar="N", help="only the N images of smallest id")
    arguments.add_argument("--images", metavar="FILE", help="also these images without labels (pickle, npz or "
                           "folder of 32x32 pictures)")
    arguments.add_argument("--include-test", action="store_true", help="admit teachers trained with the test images, "
                           "and label those too, for students that are marked likewise")
    arguments.add_argument("--admit-test-images", action="store_true", help="--images may hold test images, for a "
                           "competition whose set overlaps it: the student is marked")
    return arguments


@command
def main():
    args = flags().parse_args()
    check_target("--out", args.out, ".csv")
    teachers = predict.load(args.weights, device_of(args.device))
    training = data.load(args.data)
    for teacher in teachers:
        teacher.check_teacher(args.data, training, args.include_test)
    dataset = training.select(slice(args.limit))
    folds = data.fold_of(training.ids, training.labels.numpy())[:args.limit]
    if args.include_test:
        dataset = data.join(dataset, data.load(args.data, "test"))
    folds = np.pad(folds, (0, len(dataset) - len(folds)), constant_values=TEST)
    if args.images:
        dataset = with_unlabelled(dataset, args.images, args.data, args.admit_test_images or args.include_test)
    folds = np.pad(folds, (0, len(dataset) - len(folds)), constant_values=UNLABELLED)

    known = dataset.labels.where(torch.from_numpy(folds != TEST), -1)  # no test image counts in what is printed
    masks = np.stack([unseen(teacher, folds) for teacher in teachers])
    answers_used(masks, args.average, dataset.ids)  # or refused before the work
    print(f"{len(dataset):,} images, {args.average} of {count_of(len(teachers), 'teacher')}"
          f"{', with their mirror images' if args.tta else ''}\n")
    print(ROW.format("teacher", "epochs", "parameters", "held out %", "trained on %"))
    answers = []
    for teacher, mask in zip(teachers, masks):
        logits = predict.logits(teacher.model, dataset.images, args.tta, label=teacher.file.stem)
        answers.append(logits)
        limited = teacher.content["recipe"]["limit"]
        remarks = [f"on {teacher.provenance['images']:,} images"] if limited else []
        remarks += ["over budget"] if teacher.over_budget else []
        print(ROW.format(teacher.file.stem, f"{predict.total_epochs(teacher.history):,}", f"{teacher.params:,}",
                         accuracy(logits, known, mask), accuracy(logits, known, ~mask))
              + (f" ({', '.join(remarks)})" if remarks else ""), flush=True)
    answers = torch.stack(answers)
    logits = average(answers, masks, args.average, dataset.ids)
    if masks.any(0).all():
        outside = average(answers, masks, "oof", dataset.ids)
        print(ROW.format("ensemble, out of fold", "", "", accuracy(outside, known), "").rstrip())
    print(ROW.format("ensemble, as written", "", "", "", accuracy(logits, known)))
    write_labels(args.out, dataset.ids, dataset.labels.numpy(), logits)
    say(f"\n{args.out}: {len(dataset):,} rows")


if __name__ == "__main__":
    main()
