"""Average the teachers' logits over the training images into distillation_labels.csv.

    python distill/labels.py weights/seresnet164-fold?.pt weights/shakeshake26-64-se-noval.pt
    python distill/labels.py weights/seresnet164-fold?.pt --average oof

`mean` averages all teachers. `oof` (out of fold) uses for each image only the fold teachers that have not trained
on it, and teachers without a fold not at all. One forward pass per teacher: seconds on a GPU.
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
from train.engine.command import (
    ROOT, UserError, add_common, check_target, command, count_of, device_of, integer, parser,
)


def average(answers, masks, how, ids):
    """One set of logits (N, 10) from several.

    answers: list of (N, 10); masks: list of (N,) bool, True where that teacher has not trained on the image;
    how: "mean" of all, or "oof", for each image the mean of those that have not seen it. UserError when oof leaves
    an image without a teacher.
    """
    stack, weights = torch.stack(answers).double(), torch.from_numpy(np.stack(masks)).double()
    if how == "mean":
        weights = torch.ones_like(weights)
    counts = weights.sum(0)
    if (counts == 0).any():
        raise UserError(
            f"--average oof: {int((counts == 0).sum()):,} images have no teacher that has not trained on them "
            f"(the first is {ids[int((counts == 0).int().argmax())]}): give the teachers of all five folds"
        )
    return ((weights[..., None] * stack).sum(0) / counts[:, None]).float()


def unseen(network, dataset, added):
    """The mask (N,) of images that a teacher has not trained on.

    dataset: the whole training set, of which the teacher's fold and limit are a part (UserError when it was trained on
    other images); added: (M,) bool for what was added behind it, True for the test images. Those are new to a teacher
    unless it was trained with them, images without labels are new to all. Only fold teachers take part in oof.
    """
    network.split(dataset)
    if network.fold is None:
        return np.zeros(len(dataset) + len(added), dtype=bool)
    folds = data.fold_of(dataset.ids, dataset.labels.numpy())
    return np.concatenate([folds == network.fold, ~added if network.provenance["include_test"] else added | True])


def accuracy(logits, labels, mask):
    """Accuracy on the masked images in percent, as text."""
    return f"{predict.accuracy(logits[mask], labels[mask]):6.2f}" if mask.any() else "     -"


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="the teachers")
    add_common(arguments)
    arguments.add_argument("--out", "--output", "-o", type=Path, default=ROOT / "distillation_labels.csv",
                           metavar="FILE", help="CSV to write")
    arguments.add_argument("--average", choices=("mean", "oof"), default="mean",
                           help="all teachers, or only those that have not trained on the image")
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
    for teacher in teachers:
        teacher.check_kind(args.data)
        teacher.check_teacher(args.include_test)
    whole = data.load(args.data)
    dataset = whole.select(slice(args.limit))
    known = len(dataset)
    if args.include_test:
        dataset = data.join(dataset, data.load(args.data, "test"))
    tested = len(dataset) - known
    if args.images:
        dataset = with_unlabelled(dataset, args.images, args.data, args.admit_test_images or args.include_test)
    added = np.arange(len(dataset) - known) < tested
    rows = np.r_[:known, len(whole):len(whole) + len(added)]  # of the masks, which begin with the whole set
    masks = [unseen(teacher, whole, added)[rows] for teacher in teachers]
    labelled = (dataset.labels >= 0).numpy()

    print(f"{len(dataset):,} images, {args.average} of {count_of(len(teachers), 'teacher')}\n")
    print(f"{'teacher':32s} {'epochs':>6s} {'parameters':>12s} {'held out %':>12s} {'trained on %':>13s}")
    answers = []
    for teacher, mask in zip(teachers, masks):
        answers.append(predict.logits(teacher.model, dataset.images, label=teacher.file.stem))
        recipe, provenance = teacher.content["recipe"], teacher.provenance
        remarks = [f"on {provenance['images']:,} images"] if recipe["limit"] else []
        remarks += ["over budget"] if provenance["over_budget"] else []
        print(f"{teacher.file.stem:32s} {recipe['epochs']:6,d} {provenance['params']:12,d} "
              f"{accuracy(answers[-1], dataset.labels, mask & labelled):>12s} "
              f"{accuracy(answers[-1], dataset.labels, ~mask & labelled):>13s}"
              + (f" ({', '.join(remarks)})" if remarks else ""), flush=True)
    logits = average(answers, masks, args.average, dataset.ids)
    inside = [(answer[labelled], mask[labelled]) for answer, mask in zip(answers, masks)]
    if np.any([mask for _, mask in inside], axis=0).all():
        outside = average(*zip(*inside), "oof", dataset.ids[labelled])
        print(f"{'ensemble, out of fold':52s} {predict.accuracy(outside, dataset.labels[labelled]):12.2f}")
    print(f"{'ensemble, as written':65s} {predict.accuracy(logits[labelled], dataset.labels[labelled]):13.2f}")
    write_labels(args.out, dataset.ids, dataset.labels.numpy(), logits)
    print(f"\n{args.out}: {len(dataset):,} rows")


if __name__ == "__main__":
    main()
