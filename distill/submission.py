"""Answer a set of unlabelled images: a CSV of `ID,Labels`, on demand with the probability of every class.

    python distill/submission.py weights/student.pt --images cifar_test_nolabel.pkl --out submission.csv
    python distill/submission.py weights/student.pt --images folder/ --probabilities
    python distill/submission.py weights/seresnet164-fold?.pt --images folder/ --tta --compare earlier.csv

Several weights answer by the mean of their logits. The images are a pickle with b'data' (N, 32, 32, 3) and b'ids', an
npz with `data` and `ids`, or a folder of 32x32 pictures. Seconds on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import numpy as np
import pandas as pd

import models
from distill.unlabelled import load_images
from train.engine import data, predict
from train.engine.checkpoint import write_text
from train.engine.command import TTA, UserError, add_common, check_target, command, count_of, one_line, parser, warn
from train.engine.device import device_of


def read_submission(path, ids):
    """The answers of an earlier submission (ID, Labels) in the order of `ids`; UserError when it is not of the same."""
    try:
        answers = pd.read_csv(path, dtype={"ID": str}).set_index("ID")["Labels"]
        if not answers.index.is_unique:
            raise ValueError("an ID is there twice")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--compare {path} is not a submission: {one_line(error)}")
    known = pd.Index(ids).isin(answers.index)
    if not known.all():
        raise UserError(f"--compare {path} has {known.sum():,} of the {len(ids):,} ids")
    return answers.loc[ids]


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="one weights file, or several as an ensemble")
    arguments.add_argument("--images", required=True, metavar="FILE", help="pickle, npz or folder of 32x32 pictures")
    arguments.add_argument("--out", "--output", "-o", type=Path, default=Path("submission.csv"), metavar="FILE",
                           help="CSV to write")
    arguments.add_argument("--tta", **TTA)
    arguments.add_argument("--probabilities", action="store_true", help="a column of each class's probability too")
    arguments.add_argument("--compare", metavar="FILE", help="an earlier submission to compare with")
    add_common(arguments)
    args = arguments.parse_args()
    check_target("--out", args.out, ".csv")
    images, ids = load_images(args.images)
    earlier = read_submission(args.compare, ids) if args.compare else None  # or refused before the work
    # Weights trained with a public test set are welcome here: these images have a hidden one.
    networks = predict.load(args.weights, device_of(args.device))
    # What a file of images holds is not known: photographs, it is taken for granted.
    shapes = args.images == "synthetic"
    strange = [network.file.name for network in networks if network.synthetic != shapes]
    if strange:
        here, there = ("generated shapes", "photographs") if shapes else ("photographs", "generated shapes")
        warn(f"warning: {', '.join(strange)} learned from {there}, and of {here} it knows nothing")
    parameters = sum(network.params for network in networks)
    if parameters > models.BUDGET:
        warn(f"warning: these weights have {parameters:,} parameters, above the budget of {models.BUDGET:,}")
    logits = predict.answers(networks, data.channels_first(images), args.tta)
    submission = pd.DataFrame({"ID": ids, "Labels": logits.argmax(1).numpy()})
    classes = networks[0].classes
    if args.probabilities:
        submission[list(classes)] = logits.softmax(1).numpy()

    for name, count in zip(classes, np.bincount(submission["Labels"], minlength=len(classes))):
        print(f"{name:16s} {count:6,d} {'#' * round(200 * count / len(ids))}")
    if args.compare:
        same = submission["Labels"].to_numpy() == earlier.to_numpy()
        print(f"agrees with {args.compare} on {100 * same.mean():.2f} %")
    write_text(args.out, submission.to_csv(index=False, float_format="%.6f"))
    print(f"{args.out}: {count_of(len(ids), 'answer')} of {count_of(len(networks), 'network')}")


if __name__ == "__main__":
    main()
