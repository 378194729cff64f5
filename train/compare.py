"""Is the difference real? McNemar's test of two networks, Welch's interval of two groups of seeds, how two runs differ.

    python train/compare.py weights/student.json weights/student-control.json
    python train/compare.py "weights/quick/student.pt weights/quick/seed*/student.pt" "weights/quick/seed*/control.pt"
    python train/compare.py weights/a.pt weights/b.pt --diff

A result is the x.json (with --tta x.tta.json) that `train/evaluate.py` wrote; x.pt stands for the x.json beside it. A
group is several results, or a pattern, in quotes. No network is loaded; it takes seconds.
"""

import glob
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from train import UserError
from train.engine.command import command, count_of, parser
from train.scores.results import kept_logits, key_without_seed, read_result, result_file, shortest_unique_names
from train.scores.statistics import mcnemar, paired, welch

# Parts of the provenance that --diff shows, besides the config.
SECTIONS = {"data": ("source", "images", "unlabelled", "include_test", "train_digest", "seen_folds"),
            "versions": ("commit", "torch", "python", "threads", "hardware", "precision"), "command": ("command",)}


def read_group(text: str) -> list[dict]:
    """The results of file names or patterns; UserError if there are none, or they do not belong together."""
    files = []
    for word in map(os.path.expanduser, [text] if os.path.isfile(text) or glob.glob(text) else text.split()):
        files += sorted(glob.glob(word)) or [word]
    results = [read_result(result_file(file)) for file in files if not file.endswith(".last.pt")]
    if not results:
        raise UserError(f"{text!r} names no result")
    if len({(result["tta"], result["test_digest"]) for result in results}) > 1:
        raise UserError(f"{text} mixes different test sets, or results with and without --tta")
    if len({result["fingerprint"] for result in results}) < len(results):
        raise UserError(f"{text} names the same weights twice")
    return results


def compare_networks(names: list[str], a: dict, b: dict) -> str:
    """McNemar's test and the difference of two results by their kept logits, in sentences."""
    (ids_a, logits_a, labels), (ids_b, logits_b, labels_b) = kept_logits(a), kept_logits(b)
    if not (np.array_equal(ids_a, ids_b) and labels.equal(labels_b)):
        raise UserError(f"the logits of {names[0]} and {names[1]} are of different images: evaluate them again")
    right_a, right_b = logits_a.argmax(1) == labels, logits_b.argmax(1) == labels
    only_a, only_b = (right_a & ~right_b).sum().item(), (right_b & ~right_a).sum().item()
    difference, low, high = paired(right_a, right_b)
    return (f"{names[0]} is right on {right_a.sum():,} and {names[1]} on {right_b.sum():,} of {len(labels):,} test "
            f"images: {only_a:,} only {names[0]}, {only_b:,} only {names[1]}; McNemar's exact test p = "
            f"{mcnemar(only_a, only_b):.3g}; a difference of {difference:+.2f} points, 95 % interval {low:+.2f} to "
            f"{high:+.2f}. This compares two networks and says nothing of seeds: for that, name groups of them.")


def compare_groups(names: list[str], *groups: list[dict]) -> str:
    """Welch's interval of the difference of two groups of seeds, in sentences."""
    scores = [[result["metrics"]["top1"] for result in group] for group in groups]
    difference, low, high = welch(*scores)
    text = ", ".join(f"{name} has {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} % "
                     f"({count_of(len(values), 'seed')})" for name, values in zip(names, scores, strict=True))
    text += (f": a difference of {difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Welch), "
             f"{'more than chance' if low > 0 or high < 0 else 'which may be chance'}.")
    for name, group in zip(names, groups, strict=True):
        if len({key_without_seed(result) for result in group}) > 1:
            text += f" The runs of {name} differ by more than their seed."
        elif len({result["config"]["seed"] for result in group}) < len(group):
            text += f" Of the runs of {name} some have the same seed."
    return text


def differences(*results: dict) -> str:
    """The differences between the runs of two results, in lines: config, data, versions, command."""
    told = []
    for result in results:
        about = result["provenance"]
        sections = {title: {name: about.get(name) for name in names} for title, names in SECTIONS.items()}
        sections["data"]["images and targets"] = result["data"]
        sections["command"]["before"] = [run["command"] for run in about["before"]]
        config = result["config"] | (result["options"] or {}) | {"model": result["model"]}
        told.append({"config": config} | sections | {"weights": {"fingerprint": result["fingerprint"]}})
    lines = [f"{sign} {result['file']}" for sign, result in zip("-+", results, strict=True)]
    for title in told[0]:
        first, second = (sections[title] for sections in told)
        names = [name for name in first | second if first.get(name) != second.get(name)]
        lines.append(f"{title}: {'different' if names else 'the same'}")
        for name in names:
            lines += [f"  - {name}: {first.get(name)}", f"  + {name}: {second.get(name)}"]
    return "\n".join(lines)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("sides", nargs=2, metavar="RESULT", help="x.json, x.pt, or a quoted group of them")
    arguments.add_argument("--diff", action="store_true", help="say how the two runs differ")
    args = arguments.parse_args()
    a, b = (read_group(side) for side in args.sides)
    words = [side if os.path.exists(side) else side.split()[0] for side in args.sides]
    names = shortest_unique_names([Path(word.removesuffix(".pt").removesuffix(".json")).absolute() for word in words])
    if args.diff:
        if len(a) + len(b) > 2:
            raise UserError("--diff takes two results, not groups of them")
        print(differences(*a, *b))
    elif a[0]["test_digest"] != b[0]["test_digest"]:
        raise UserError(f"{names[0]} and {names[1]} were scored on different test images")
    elif len(a) == len(b) == 1:
        print(compare_networks(names, *a, *b))
    elif 1 in (len(a), len(b)):
        raise UserError("one result against several: a group has two seeds or more")
    elif {result["fingerprint"] for result in a} & {result["fingerprint"] for result in b}:
        raise UserError(f"{names[0]} and {names[1]}: a network is in both groups, which should be independent")
    else:
        print(compare_groups(names, a, b))


if __name__ == "__main__":
    with command():
        main()
