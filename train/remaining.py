"""How far several runs are and how long the rest of them will take; `make teachers` asks before each of its jobs.

    python train/remaining.py weights/seresnet164-fold0.pt weights/seresnet164-fold1.pt
    python train/remaining.py weights/seresnet164-fold?.pt --jobs 4       when four of them run at once

A run that has not begun will take as long as the known ones of its family, folds and seeds aside; a fold has four
fifths of the images.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import checkpoint
from train.progress import duration
from train.recipe import UserError, command, family, parser, whole


class Pace(NamedTuple):
    """What one run takes in all and what is left of it, in seconds; None where nothing is known yet."""

    total: float | None
    left: float | None


def pace(weights):
    """The Pace of a run from its finished weights or its saved state."""
    try:
        if weights.exists():
            return Pace(checkpoint.load_weights(weights)["provenance"]["seconds"], 0.0)
        state = checkpoint.load(checkpoint.Run(weights).last)
    except (FileNotFoundError, checkpoint.Damaged, UserError):  # not begun, or damaged: for the run itself to tell
        return Pace(None, None)
    if not state["rows"]:
        return Pace(None, None)
    each = sum(row["seconds"] for row in state["rows"]) / len(state["rows"])
    return Pace(each * state["recipe"]["epochs"], each * (state["recipe"]["epochs"] - len(state["rows"])))


def images(weights):
    """The share of the training images that a run of this name takes."""
    return 1.0 if "noval" in weights.stem else 0.8


def remaining(paces, jobs=1):
    """(seconds left with so many jobs at once, [families of which nothing is known]) of {weights: Pace}."""
    known = {}
    for weights, run in paces.items():
        if run.total is not None:
            known.setdefault(family(weights.stem), []).append(run.total / images(weights))
    left, strange = [], []
    for weights, run in paces.items():
        like = known.get(family(weights.stem))
        if run.left is not None:
            left.append(run.left)
        elif like:
            left.append(sum(like) / len(like) * images(weights))
        else:
            strange.append(family(weights.stem))
    return max(sum(left) / jobs, max(left, default=0.0)), list(dict.fromkeys(strange))


def told(paces, jobs=1):
    """The same in words."""
    seconds, strange = remaining(paces, jobs)
    finished = sum(run.left == 0 for run in paces.values())
    line = f"{finished} of {len(paces)} runs finished"
    if seconds:
        line += f", about {duration(seconds)} left"
    if strange:
        line += f"{' and' if seconds else ','} the time of {', '.join(strange)}, not known yet"
    return line


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS",
                           help="weights files, finished or planned")
    arguments.add_argument("--jobs", nargs="+", type=whole(1), default=[1], metavar="N",
                           help="how many train at once; of several numbers the smallest")
    args = arguments.parse_args()
    print(told({weights: pace(weights) for weights in args.weights}, min(args.jobs)))


if __name__ == "__main__":
    main()
