"""Human labels of the test images: build a CSV from four public files, and score saved logits against it.

    python train/humans.py build FOLDER --out humans.csv            FOLDER holds the four files under the names below
    python train/humans.py score humans.csv weights/x.logits.npz    which train/evaluate.py wrote

1. cifar10h-counts.npy (github.com/jcpeterson/cifar-10h, data/; CC BY-NC-SA 4.0): CIFAR-10H, Peterson et al. 2019,
   (10000, 10) votes, about fifty an image.
2. cifar10_mturk.json (github.com/cleanlab/label-errors, mturk/; Apache 2.0): the label-errors study, Northcutt et al.
   2021, 275 dicts with id (the position in the archive), given_original_label, our_guessed_label and mturk {given,
   guessed, neither, both}, the votes of five workers. An image gets the label that more than half of them chose, and
   -1 if there is none.
3. cifar10_test_set_original_labels.npy (the same, original_test_labels/): (10000,), which show that its ids are
   positions in the official archive.
4. duplicates_cifar10.csv (github.com/cvjena/cifair, meta/; no licence is stated): ciFAIR, Barz and Denzler 2020,
   TestID, TrainID, Distance, Judgment (0 exact, 1 the same shot, 2 very similar) of 286 test images that have a near
   duplicate among the training images.

All four number the images in the order of the official archive, so --data has to hold the archive, not an npz. The CSV
names images by id: id, official_index, label (0-9), corrected (the majority's label or -1), duplicate (the strongest
judgment, empty for none), h0..h9 (votes). It is derived from the four files, so their licences keep it out of this
repository. Both commands take seconds.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from torchvision.datasets import CIFAR10

from train import ROOT, UserError, one_line
from train.data import cifar10, sources
from train.engine import metrics
from train.engine.checkpoint import write_text
from train.engine.command import check_target, command, parser
from train.scores.results import read_logits

COUNTS, STUDY = "cifar10h-counts.npy", "cifar10_mturk.json"
ORIGINAL, DUPLICATES = "cifar10_test_set_original_labels.npy", "duplicates_cifar10.csv"
READERS = {COUNTS: np.load, STUDY: lambda file: json.loads(file.read_text()), ORIGINAL: np.load,
           DUPLICATES: pd.read_csv}
CLASSES = len(cifar10.CLASSES)
VOTES = [f"h{k}" for k in range(CLASSES)]
COLUMNS = ["id", "official_index", "label", "corrected", "duplicate", *VOTES]


def check(holds: bool, file: Path, what: str) -> None:
    """Raise UserError, saying what the file should hold, unless `holds`."""
    if not holds:
        raise UserError(f"{file} should hold {what}")


def correct(labels: np.ndarray, study: list[dict], file: Path) -> np.ndarray:
    """Corrected labels (N,): the majority's for images of the study, or -1 without one; else the official ones."""
    corrected = labels.copy()
    for item in study:
        place, given, votes = item["id"], item["given_original_label"], item["mturk"]
        check(given == labels[place], file, f"the official label, {labels[place]}, of test image {place}")
        half = sum(votes[name] for name in ("given", "guessed", "neither", "both")) / 2
        guessed = item["our_guessed_label"] if votes["guessed"] > half else -1
        corrected[place] = given if votes["given"] > half else guessed
    return corrected


def build(folder: Path, data: Path, out: Path) -> str:
    """Write the CSV of the four files in a folder; returns what it holds, in words."""
    if missing := [name for name in READERS if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}: the top of train/humans.py says where to get them")
    votes, study, original, duplicates = (read(folder / name) for name, read in READERS.items())
    if not (data / CIFAR10.base_folder).is_dir() and (data / "cifar10.npz").exists():
        raise UserError(f"--data {data} holds an npz, whose images may be in any order: the published files need "
                        f"the order of {CIFAR10.base_folder}; `make data DATA=another` fetches it")
    images, labels, _ = sources.read(data, "test")
    ids = cifar10.image_ids(images)
    check(np.array_equal(original, labels), folder / ORIGINAL, "the test labels in the archive's order")
    check(votes.shape == (len(ids), CLASSES), folder / COUNTS, f"counts of votes {len(ids), CLASSES}")

    table = pd.DataFrame(votes.astype(np.int64), columns=VOTES)
    table["id"], table["official_index"], table["label"] = ids, np.arange(len(ids)), labels
    table["corrected"] = corrected = correct(labels, study, folder / STUDY)
    table["duplicate"] = duplicates.groupby("TestID")["Judgment"].min().astype("Int64")  # strongest; <NA> for none
    write_text(out, table[COLUMNS].to_csv(index=False))
    changed = (corrected != labels) & (corrected >= 0)
    return (f"{out}: {len(ids):,} test images; {changed.sum():,} labels corrected, {(corrected < 0).sum():,} with no "
            f"majority, {table['duplicate'].notna().sum():,} with a near duplicate")


def score(csv: Path, npz: Path) -> dict[str, float]:
    """Saved logits compared with people's labels: accuracies and shares in percent, cross-entropies in nats, counts.

    corrected: on the labels of the majority, without the `undecided`; apart: without the `duplicates`; votes: against
    people's votes; agreement, label_agreement: how many people would give the network's class, and the label.
    """
    ids, logits, labels = read_logits(npz)
    table = pd.read_csv(csv, dtype={"id": str})
    check(set(COLUMNS) <= set(table), csv, f"the columns {', '.join(COLUMNS)}")
    check(table["id"].is_unique and set(ids) <= set(table["id"]), csv, f"each of the {len(ids):,} images of {npz} once")
    table = table.set_index("id").loc[ids]
    check(np.array_equal(table["label"], labels), csv, f"the labels of {npz}")
    votes = torch.tensor(table[VOTES].to_numpy(np.float64))
    check(table["corrected"].isin(range(-1, CLASSES)).all() and bool((votes >= 0).all() and votes.sum(1).all()), csv,
          "corrected labels -1 to 9, and counts of votes, one an image or more")
    corrected, apart = (torch.tensor(table[name].to_numpy()) for name in ("corrected", "duplicate"))
    decided, apart, votes = corrected >= 0, apart.isnan(), votes / votes.sum(1, keepdim=True)
    return {
        "images": len(ids), "top1": metrics.accuracy(logits, labels),
        "corrected": metrics.accuracy(logits[decided], corrected[decided]), "undecided": int((~decided).sum()),
        "apart": metrics.accuracy(logits[apart], labels[apart]), "duplicates": int((~apart).sum()),
        "nll": metrics.nll(logits, labels), "votes": metrics.nll(logits, votes),
        "agreement": 100 * votes.gather(1, logits.argmax(1, keepdim=True)).mean().item(),
        "label_agreement": 100 * votes.gather(1, labels[:, None]).mean().item()}


SAID = """top-1 {top1:.2f} % of {images:,} images
top-1 {corrected:.2f} % on corrected labels, without {undecided:,} images that have no majority
top-1 {apart:.2f} % without {duplicates:,} images that have a near duplicate among the training images
cross-entropy {votes:.4f} against people's votes, {nll:.4f} against the labels
{agreement:.2f} % of the people would give its classes, {label_agreement:.2f} % the labels"""


def main() -> None:
    arguments = parser(__doc__)
    ways = arguments.add_subparsers(dest="way", required=True, metavar="build|score")
    way = ways.add_parser("build", help="make the CSV from the four public files")
    way.add_argument("folder", type=sources.expand, metavar="FOLDER", help=f"folder that holds {', '.join(READERS)}")
    way.add_argument("--data", type=sources.expand, default=ROOT / "data", metavar="PATH",
                     help="folder of the official archive")
    way.add_argument("--out", type=sources.expand, default=Path("humans.csv"), metavar="FILE", help="CSV to write")
    way = ways.add_parser("score", help="score saved logits against the CSV")
    way.add_argument("csv", type=sources.expand, metavar="CSV", help="what `build` wrote")
    way.add_argument("logits", type=sources.expand, metavar="NPZ", help="x.logits.npz, as train/evaluate.py writes it")
    args = arguments.parse_args()
    file = args.folder if args.way == "build" else args.csv
    try:
        if args.way == "build":
            check_target("--out", args.out, ".csv", ",".join(COLUMNS[:3]))
            print(build(args.folder, args.data, args.out))
        else:
            print(SAID.format(**score(args.csv, args.logits)))
    except (UserError, OSError):
        raise
    except Exception as error:  # json, numpy and pandas each fail in their own way
        raise UserError(f"{file} is not what --help names ({type(error).__name__}: {one_line(error)[:100]})") from None


if __name__ == "__main__":
    with command():
        main()
