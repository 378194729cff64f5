"""Classify unlabelled images and write `ID,Labels` (and, if asked, probabilities) to a CSV.

    python distill/submission.py --images cifar_test_nolabel.pkl                    by the released network
    python distill/submission.py weights/student.pt --images images.npy --names     Kaggle's form: id,label by name
    python distill/submission.py weights/student.pt --images folder/ --out submission.csv --probabilities
    python distill/submission.py weights/seresnet164-fold?.pt --images folder/ --tta --compare earlier.csv

With several weights, their mean logits are used. distill/README.md, section Submission, says what the images may be. A
file at --out is replaced only when it is a submission itself. On two CPU cores the released network takes a minute for
10,000 images.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

import models
from train import UserError, reason_of
from train.data.cifar10 import channels_first
from train.data.sources import expand
from train.data.unlabelled import load_images, refuse
from train.engine.checkpoint import write_text
from train.engine.command import add_device, check_target, command, count_of, parser, short_path, warn
from train.engine.device import device_of
from train.engine.network import load_all, probabilities

FORMS = ["ID", "Labels"], ["id", "label"]  # with numbers, and Kaggle's with names
BAR = 40  # characters for the most frequent class


def read_submission(path: Path, ids: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The predictions, int64 (N,), of an earlier submission in the order of `ids`; labels are numbers or class names.

    UserError for a file that is not a submission, has other labels, or lacks some of the ids.
    """
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig",
                                compression=None)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = reason_of(error)
        raise UserError(f"--compare {path} is not a submission: {reason}") from None
    form = next((form for form in FORMS if set(form) <= set(table)), None)
    if form is None:
        raise UserError(f"--compare {path} is not a submission: its columns should be ID,Labels or id,label and are "
                        f"{','.join(table)[:60]}")
    numbers = {text: k for k, name in enumerate(classes) for text in (str(k), name)}
    names, labels = (table[column] for column in form)
    refuse(f"--compare {path}", labels[~labels.isin(numbers)].map(repr),
           f"labels are neither 0 to {len(classes) - 1} nor one of {', '.join(classes)}")
    refuse(f"--compare {path}", names[names.duplicated()].unique(), "ids occur more than once")
    answers = labels.map(numbers).set_axis(names)
    known = answers.index.intersection(ids)
    if len(known) < len(ids):
        raise UserError(f"--compare {path} has {len(known):,} of the {len(ids):,} ids")
    if len(answers) > len(ids):
        warn(f"--compare {path} has {len(answers) - len(ids):,} ids that are not in the images: they are left out")
    return answers.loc[ids].to_numpy()


def main() -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("weights", nargs="*", metavar="WEIGHTS",
        help="one weights file, or several as an ensemble (default: the released network)")
    add("--images", required=True, metavar="FILE", help="pickle, npz, npy or folder of 32x32 pictures")
    add("--out", type=expand, default=Path("submission.csv"), metavar="FILE", help="CSV to write")
    add("--tta", action="store_true", help="average the logits of each image and its mirror image")
    form = arguments.add_mutually_exclusive_group()
    form.add_argument("--names", action="store_true", help="Kaggle's form: columns id,label with the class's name")
    form.add_argument("--probabilities", action="store_true", help="also write a probability column for each class")
    add("--compare", type=expand, metavar="FILE", help="an earlier submission to compare with, in either form")
    add_device(arguments)
    args = arguments.parse_args()

    check_target("--out", args.out, ".csv", "ID,Labels\n", "ID,Labels,", "id,label\n")  # id,label,airplane: soft labels
    images, ids = load_images(args.images, warn)
    # Weights trained with the public test images are admitted here: these images are a hidden test set.
    networks = load_all(args.weights, device_of(args.device))
    classes = networks[0].classes
    earlier = read_submission(args.compare, ids, classes) if args.compare else None  # or refused before the work
    shapes = args.images == "synthetic"  # the images of a file are assumed to be photographs
    strange = [network.file.name for network in networks if network.synthetic != shapes]
    if strange:
        warn(f"warning: {', '.join(strange)} learned from {'photographs' if shapes else 'generated shapes'}, but these "
             f"images are not")
    parameters = sum(network.params for network in networks)
    if parameters > models.BUDGET:
        warn(f"warning: these weights have {parameters:,} parameters, above the budget of {models.BUDGET:,}")

    chances = probabilities(networks, channels_first(images), args.tta).numpy()
    answers = chances.argmax(1)
    columns = [ids, np.array(classes)[answers] if args.names else answers]
    table = pd.DataFrame(dict(zip(FORMS[args.names], columns, strict=True)))
    if args.probabilities:
        table[list(classes)] = chances
    counts = np.bincount(answers, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        print(f"{name:16s} {count:6,d} {'#' * round(BAR * count / counts.max())}".rstrip())
    if earlier is not None:
        print(f"agrees with {args.compare} on {100 * (answers == earlier).mean():.2f} %")
    write_text(args.out, table.to_csv(index=False, float_format="%.6f"))
    names = ", ".join(short_path(network.file) for network in networks)
    print(f"{args.out}: {count_of(len(ids), 'prediction')} by {names}")


if __name__ == "__main__":
    with command():
        main()
