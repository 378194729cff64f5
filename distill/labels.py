"""Average the teachers' logits over the training images into distillation_labels.csv.

    python distill/labels.py weights/seresnet164-fold?.pt weights/shakeshake26-64-se-noval.pt
    python distill/labels.py weights/seresnet164-fold?.pt --average oof

`mean` averages all teachers. `oof` (out of fold) uses for each image only the fold teachers that have not trained
on it, and teachers without a fold not at all. One forward pass per teacher: seconds on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch

from distill.unlabelled import UNLABELLED, load_images
from train import checkpoint, data, predict
from train.recipe import ROOT, UserError, add_common, check_target, command, device_of, parser, whole

COLUMNS = ["id", "label", *data.CLASSES]


def write_labels(path, ids, labels, logits):
    """Write the CSV: `id`, `label` (empty for an image that has none, -1 in `labels`), ten logits.

    Nine digits are float32 to the last bit.
    """
    table = pd.DataFrame(np.asarray(logits, dtype=np.float32), columns=data.CLASSES)
    table.insert(0, "label", pd.array(np.asarray(labels), dtype="Int64"))
    table.loc[table["label"] < 0, "label"] = pd.NA
    table.insert(0, "id", ids)
    checkpoint.write_text(path, table.to_csv(index=False, float_format="%.9g"))


def read_labels(path, dataset, only=None):
    """Teacher logits float32 (N, 10) for the images of a Dataset, joined by id from the CSV at `path`.

    only: the ids that may stand in the file (None: any). Raises UserError for columns other than the design's, rows
    that are missing, doubled, not finite or of another label, logits that are whole numbers, and answers
    that agree with the labels no better than chance.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str})
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `make labels` writes it")
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a table of labels: {error}")
    if list(table.columns) != COLUMNS:
        raise UserError(
            f"{path}: the columns should be {','.join(COLUMNS)} and are {','.join(map(str, table.columns))}"
        )
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise UserError(f"{path}: {len(twice):,} ids occur more than once, the first is {twice.iloc[0]}")
    if only is not None and not table["id"].isin(only).all():
        strange = table["id"][~table["id"].isin(only)]
        raise UserError(f"{path}: {len(strange):,} rows are of no training image, the first is {strange.iloc[0]}")
    rows = table.set_index("id").reindex(dataset.ids)
    absent = dataset.ids[~np.isin(dataset.ids, table["id"])]
    if len(absent):
        raise UserError(
            f"{path}: {len(absent):,} of {len(dataset):,} training images have no row, the first is {absent[0]}"
        )
    check_rows(path, rows, dataset.labels.numpy())
    return torch.from_numpy(rows[list(data.CLASSES)].to_numpy(np.float32))


def check_rows(path, rows, labels):
    """UserError unless the rows, in the order of `labels` (N,) with -1 for none, are plausible teacher logits."""
    try:
        logits = rows[list(data.CLASSES)].to_numpy(np.float64)
        stated = pd.to_numeric(rows["label"]).fillna(-1).to_numpy(np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: a logit or label is not a number: {error}")
    for wrong, what in [
        (~(np.abs(logits) <= np.finfo(np.float32).max).all(1), "hold a logit that is not finite"),
        (stated != labels, "state another label than the image has"),
    ]:
        if wrong.any():
            raise UserError(f"{path}: {wrong.sum():,} rows {what}, the first is {rows.index[wrong][0]}")
    if (logits == np.round(logits)).all():
        raise UserError(f"{path}: all logits are whole numbers: these look like hard labels, not a teacher's answers")
    known = labels >= 0
    right, count = (logits.argmax(1) == labels)[known].sum(), known.sum()
    # Three deviations of guessing among ten classes.
    if count and right <= count / 10 + 3 * np.sqrt(count * 0.09):
        raise UserError(
            f"{path}: the largest logit is the label for {right:,} of {count:,} images, no better than chance"
        )


# ---------------------------------------------------------------- teachers


def load_teachers(files, device, include_test=False):
    """[(file, network, content)] of weights files.

    UserError names one that is not ours, has other classes, repeats, or was trained with the test images.
    """
    teachers, seen = [], {}
    for file in files:
        model, content = predict.load_model(file, device)
        if content["options"].get("num_classes", 10) != len(data.CLASSES):
            raise UserError(f"{file} answers with {content['options']['num_classes']} classes, not {len(data.CLASSES)}")
        mark = checkpoint.digest(content["ema"] or content["state"])
        if mark in seen:
            raise UserError(f"{file} repeats {seen[mark]}: a teacher counts once")
        if content["provenance"]["include_test"] and not include_test:
            raise UserError(f"{file} was trained with the test images: its answers would leak them")
        seen[mark] = file
        teachers.append((Path(file), model, content))
    return teachers


def unseen(dataset, content, file):
    """The mask (N,) of a whole training set's images that a teacher has not trained on.

    UserError when the teacher was trained on other images than its recipe's fold says.
    """
    recipe = content["recipe"]
    trained, _ = data.split(dataset, recipe["fold"], recipe["limit"])
    if trained.digest != content["provenance"]["train_digest"]:
        raise UserError(f"{file} was trained on other images than fold {recipe['fold']} of these")
    folds = data.fold_of(dataset.ids, dataset.labels.numpy())
    return folds == recipe["fold"] if recipe["fold"] is not None else np.zeros(len(dataset), dtype=bool)


def unseen_too(mask, tested, content):
    """The mask of `unseen` continued over what was added after the training images.

    tested: (N,) bool, the added test images, which are new to a teacher unless it was trained with them. Images without
    labels are new to all. Only fold teachers take part in oof.
    """
    longer = np.full(len(tested), content["recipe"]["fold"] is not None)
    if content["provenance"]["include_test"]:
        longer &= ~tested
    longer[: len(mask)] = mask
    return longer


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


def share(logits, labels, mask):
    """Accuracy on the masked images in percent, as text."""
    return f"{predict.accuracy(logits[mask], labels[mask]):6.2f}" if mask.any() else "     -"


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="the teachers")
    arguments.add_argument(
        "--out",
        "--output",
        "-o",
        type=Path,
        default=ROOT / "distillation_labels.csv",
        metavar="FILE",
        help="CSV to write",
    )
    arguments.add_argument(
        "--average",
        choices=("mean", "oof"),
        default="mean",
        help="all teachers, or only those that have not trained on the image",
    )
    add_common(arguments)
    arguments.add_argument("--limit", type=whole(1), metavar="N", help="only the N images of smallest id")
    arguments.add_argument(
        "--images", metavar="FILE", help="also these images without labels (pickle, npz or PNG folder)"
    )
    arguments.add_argument(
        "--include-test",
        action="store_true",
        help="admit teachers trained with the test images, and label those too, for students that are marked likewise",
    )
    args = arguments.parse_args()
    check_target("--out", args.out, ".csv")
    teachers = load_teachers(args.weights, device_of(args.device), args.include_test)
    whole_set = data.load(args.data)
    masks = [unseen(whole_set, content, file)[: args.limit] for file, _, content in teachers]
    dataset, tested = extended(whole_set.select(slice(args.limit)), args)
    masks = [unseen_too(mask, tested, content) for mask, (_, _, content) in zip(masks, teachers)]
    known = (dataset.labels >= 0).numpy()

    print(f"{len(dataset):,} images, {args.average} of {len(teachers)} teachers\n")
    print(f"{'teacher':32s} {'parameters':>12s} {'held out %':>12s} {'trained on %':>13s}")
    answers = []
    for (file, model, content), mask in zip(teachers, masks):
        answers.append(predict.logits(model, dataset.images, label=file.stem))
        over = " (over budget)" if content["provenance"]["over_budget"] else ""
        print(
            f"{file.stem:32s} {content['provenance']['params']:12,d} "
            f"{share(answers[-1], dataset.labels, mask & known):>12s} "
            f"{share(answers[-1], dataset.labels, ~mask & known):>13s}{over}",
            flush=True,
        )
    logits = average(answers, masks, args.average, dataset.ids)
    inside = [(answer[known], mask[known]) for answer, mask in zip(answers, masks)]
    if np.any([mask for _, mask in inside], axis=0).all():
        outside = average(*zip(*inside), "oof", dataset.ids[known])
        print(f"{'ensemble, out of fold':45s} {predict.accuracy(outside, dataset.labels[known]):12.2f}")
    print(f"{'ensemble, as written':58s} {predict.accuracy(logits[known], dataset.labels[known]):13.2f}")
    write_labels(args.out, dataset.ids, dataset.labels.numpy(), logits)
    print(f"\n{args.out}: {len(dataset):,} rows")


def extended(dataset, args):
    """(the images with those that --include-test and --images add, the mask of the test images among them).

    A label that is not known is -1.
    """
    tested = np.zeros(len(dataset), dtype=bool)
    if args.include_test:
        dataset = data.join(dataset, data.load(args.data, "test"))
        tested = np.pad(tested, (0, len(dataset) - len(tested)), constant_values=True)
    if args.images:
        images, _ = load_images(args.images)
        dataset = data.join(dataset, data.as_dataset(images, np.full(len(images), -1), args.images), UNLABELLED)
        tested = np.pad(tested, (0, len(dataset) - len(tested)))
    if len(set(dataset.ids)) != len(dataset):
        raise UserError(f"--images {args.images}: {len(dataset) - len(set(dataset.ids)):,} of them are training images")
    return dataset, tested


if __name__ == "__main__":
    main()
