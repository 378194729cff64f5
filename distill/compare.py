"""One table of test accuracy: baseline, each teacher, their ensemble, the control and the student.

    python distill/compare.py --baseline weights/resnet18-fold0.pt --teachers weights/seresnet164-fold?.pt \
        --control weights/student-control.pt --student weights/student.pt

Each role takes one or several weights; with several controls or students (of other seeds) the row is their mean.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.labels import load_teachers
from train import data, predict
from train.recipe import add_common, command, device_of, parser

ROLES = ("baseline", "teachers", "control", "student")


def scores(files, dataset, device):
    """([(name, parameters, accuracy in percent), ...], mean logits) of weights files on a Dataset."""
    rows, total = [], 0
    for file, model, content in load_teachers(files, device):
        data.check_kind(file, content, dataset.source)
        logits = predict.logits(model, dataset.images, label=file.stem)
        rows.append((file.stem, content["provenance"]["params"], predict.accuracy(logits, dataset.labels)))
        total = total + logits / len(files)
    return rows, total


def line(role, name, params, accuracy):
    print(f"{role:10s} {name:34s} {params:>12s} {accuracy:8.2f}")


@command
def main():
    arguments = parser(__doc__)
    for role in ROLES:
        arguments.add_argument(f"--{role}", nargs="+", required=role != "control", default=[], metavar="WEIGHTS")
    add_common(arguments)
    args = arguments.parse_args()
    dataset, device = data.load(args.data, "test"), device_of(args.device)
    print(f"{'role':10s} {'run':34s} {'parameters':>12s} {'test %':>8s}")
    mean = {}
    for role in filter(lambda role: getattr(args, role), ROLES):
        rows, total = scores(getattr(args, role), dataset, device)
        for name, params, accuracy in rows:
            line(role.removesuffix("s"), name, f"{params:,}", accuracy)
        mean[role] = sum(accuracy for *_, accuracy in rows) / len(rows)
        if role == "teachers":
            line("teachers", f"mean of the {len(rows)}", "", mean[role])
            line(
                "ensemble",
                "mean of their logits",
                f"{sum(params for _, params, _ in rows):,}",
                predict.accuracy(total, dataset.labels),
            )
    print(f"\nstudent {mean['student'] - mean['baseline']:+.2f} points against the baseline")
    if args.control:
        ahead = mean["student"] - mean["control"]
        verdict = "distillation is ahead" if ahead > 0 else "the control is ahead" if ahead < 0 else "a tie"
        print(
            f"student {ahead:+.2f} points against the control, the same network and epochs without teachers: {verdict}"
        )


if __name__ == "__main__":
    main()
