"""Make the CSV of what people say of the test images, for `evaluate --humans`, from four public files.

    python train/humans.py FOLDER --out humans.csv              FOLDER holds the four files under the names below

| file | from | licence |
|---|---|---|
| cifar10h-counts.npy | github.com/jcpeterson/cifar-10h, data/ | CC BY-NC-SA 4.0 (LICENSE.txt) |
| cifar10_mturk.json | github.com/cleanlab/label-errors, mturk/ | GPL 3 or later (README) |
| cifar10_test_set_original_labels.npy | the same, original_test_labels/ | the same; labels are CIFAR-10's |
| duplicates_cifar10.csv | github.com/cvjena/cifair, meta/ | none is stated |

1. CIFAR-10H (Peterson et al. 2019): (10000, 10) votes, about fifty an image, in the archive's order.
2. The label-errors study (Northcutt et al. 2021): a list of 275 dicts, of which id (the place in the archive),
   given_original_label, our_guessed_label and mturk {given, guessed, neither, both}, five workers' votes, are used. An
   image gets the label that more than half of them chose, and -1 where neither label has that.
3. Its original labels, (10000,): they tell that its ids are places in the official archive.
4. ciFAIR (Barz & Denzler 2020): TestID, TrainID, Distance, Judgment (0 exact, 1 the same shot, 2 very similar): 286
   test images with a near twin among the training images. Those with one among the test images alone do not count.

All four count the images in the order of the official archive, so --data has to hold that, not an npz; the CSV names
them by id and fits either. It is derived from these files: their licences keep it out of this repository. Seconds.

Names and forms are those of the published files (of the study's list the first half was compared with what this makes
of it); the shapes and types of the two arrays are as their pages state them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import numpy as np
import pandas as pd
from torchvision.datasets import CIFAR10

from train.engine import data, sources
from train.engine.checkpoint import write_text
from train.engine.command import ROOT, UserError, check_target, command, one_line, parser
from train.engine.people import COLUMNS, VOTES

COUNTS, STUDY = "cifar10h-counts.npy", "cifar10_mturk.json"
ORIGINAL, TWINS = "cifar10_test_set_original_labels.npy", "duplicates_cifar10.csv"
READERS = {COUNTS: np.load, STUDY: lambda file: json.loads(file.read_text()), ORIGINAL: np.load, TWINS: pd.read_csv}
CLASSES = len(data.CLASSES)


def check(holds, file, what):
    """UserError, saying what the file should hold, unless it `holds`."""
    if not holds:
        raise UserError(f"{file} should hold {what}: is it the file that `--help` and this script's docstring name?")


def read_public(folder):
    """What each of the four files holds, in the order of READERS; UserError when one is missing or unreadable."""
    if missing := [name for name in READERS if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}: train/humans.py says where they are found")
    found = []
    for name, read in READERS.items():
        try:
            found.append(read(folder / name))
        except Exception as error:  # json, numpy and pandas fail each in their own way
            raise UserError(f"{folder / name} cannot be read ({one_line(error)[:100]})")
    return found


def read_archive(path):
    """(ids, labels) of the test images in the order of the official archive."""
    if not (path / CIFAR10.base_folder).is_dir() and (path / "cifar10.npz").exists():
        raise UserError(f"--data {path} holds an npz, whose order may be any: the published files need that of "
                        f"{CIFAR10.base_folder}; `make data DATA=another` fetches it")
    images, labels, _ = sources.read(path, "test")
    return data.image_ids(images), labels


def correct(labels, study, file):
    """Corrected labels (N,): the majority's where the study asked, -1 where there was none, else the official ones."""
    corrected, seen = labels.copy(), set()
    try:
        for item in study:
            place, given, guessed, votes = (
                item[name] for name in ("id", "given_original_label", "our_guessed_label", "mturk"))
            check(place in range(len(labels)) and place not in seen and guessed in range(CLASSES), file,
                  f"every id once, 0 to {len(labels) - 1}, and labels 0 to {CLASSES - 1}")
            check(given == labels[place], file, f"the official label, {labels[place]}, of test image {place}")
            half = sum(votes[name] for name in ("given", "guessed", "neither", "both")) / 2
            corrected[place] = given if votes["given"] > half else guessed if votes["guessed"] > half else -1
            seen.add(place)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not the study's list of suspicious labels ({type(error).__name__}: {error})")
    return corrected


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, metavar="FOLDER", help=f"with {', '.join(READERS)}")
    arguments.add_argument("--data", type=Path, default=ROOT / "data", metavar="PATH", help="folder of the archive")
    arguments.add_argument("--out", type=Path, default=Path("humans.csv"), metavar="FILE", help="CSV to write")
    args = arguments.parse_args()
    check_target("--out", args.out, ".csv")
    votes, study, original, twins = read_public(args.folder)
    ids, labels = read_archive(args.data)
    file = args.folder / ORIGINAL
    check(np.array_equal(original, labels), file, "the test labels in the archive's order")

    file, shape = args.folder / COUNTS, (len(ids), CLASSES)
    check(votes.shape == shape and votes.dtype.kind in "iuf", file, f"counts of votes {shape}")
    check((votes >= 0).all() and (votes % 1 == 0).all() and votes.sum(1).all(), file, "counts, a vote an image or more")
    table = pd.DataFrame(votes.astype(np.int64), columns=VOTES)
    table["id"], table["official_index"], table["label"] = ids, np.arange(len(ids)), labels
    table["corrected"] = corrected = correct(labels, study, args.folder / STUDY)

    file, wanted = args.folder / TWINS, ["TestID", "TrainID", "Distance", "Judgment"]
    check(list(twins) == wanted, file, f"the columns {', '.join(wanted)}")
    check(twins["TestID"].isin(table["official_index"]).all() and twins["Judgment"].isin((0, 1, 2)).all(), file,
          "places of test images and judgements 0 to 2")
    table["duplicate"] = twins.groupby("TestID")["Judgment"].min().astype("Int64")  # the strongest; <NA> for none

    write_text(args.out, table[COLUMNS].to_csv(index=False))
    changed = (corrected != labels) & (corrected >= 0)
    print(f"{args.out}: {len(ids):,} test images; {changed.sum():,} labels corrected, "
          f"{(corrected < 0).sum():,} with no majority, {table['duplicate'].notna().sum():,} with a near twin")


if __name__ == "__main__":
    main()
