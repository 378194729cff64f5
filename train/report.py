"""Tables and pictures of everything that was trained: results, curves, calibration, one self-contained page.

    python train/report.py                                        all finished weights in weights/
    python train/report.py weights/seresnet164-fold?.pt --tta
    python train/report.py --humans humans.csv                    also accuracy by what people say of the test images
    python train/report.py weights/quick --readme README.md       put the table of a folder between the markers there,
                             --picture weights/cost.png           and what accuracy costs into a picture
    python train/report.py --ensemble teachers weights/seresnet164-fold?.pt     a row for their mean
    python train/report.py --baseline A.pt --teachers B.pt C.pt --control D.pt --student E.pt    what teachers gain
    python train/report.py --compare weights/student.pt weights/seresnet164-noval.pt     two networks, or seeds:
    python train/report.py --compare "weights/student.pt weights/student-seed*.pt" "weights/student-control*.pt"
    python train/report.py --diff A.pt B.pt                       how two runs differ: recipe, data, versions, command

Every weights file is scored on the test set once: its answers are kept beside the report and its result in results/,
so a repeat takes seconds, and results whose weights are not here stay in the table. A first pass takes about a minute
per network on two CPU cores. The way of a figure: weights or kept results -> a list of results (`gather`) -> the table,
a row for all runs that differ by their seed only (`results.group`) -> texts, pictures and the page (`write_report`).
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import pandas as pd

import models
from train.engine import data, plots, predict
from train.engine.checkpoint import is_state, write, write_text
from train.engine.command import ROOT, UserError, add_common, check_target, command, count_of, parser, warn
from train.engine.compare import compare, differences, student_gains
from train.engine.device import device_of
from train.engine.page import commands, in_words, markdown, page
from train.engine.results import HUMANS, Scorer, family, full_fingerprint, group, read_result, shortest_unique_names

PUBLISHED = Path(plots.__file__).with_name("published.csv")
MARKERS = "<!-- {} -->", "<!-- /{} -->"
PIPELINE = "What teachers gain"
ROLES = {"baseline": "what the student should beat",
         "teachers": "a row `ensemble` is the mean of their logits, unless --ensemble has them under another name",
         "control": "trained as the student, from the labels alone", "student": "trained from the teachers' answers"}
NOTE = ("Top-1 on the {images} test images, of the state after the last epoch: the mean of n runs that differ by their "
        "seed only, ± their sample deviation. The interval is Wilson's for one run with that mean. PFLOP is the work "
        "of training, 6 x MACs x images x epochs, epochs at 20x20 pixels by their area, without that of teachers; time "
        "is that of the fastest and of the slowest run. Weights that a run began with count with their epochs, work "
        "and time. A teacher is above the budget; a mean of several networks counts all of their parameters, work and "
        "time.")
NOTE_HUMANS = (" Corrected is top-1 on the labels that most people of a study chose, without the images on which they "
               "did not agree; twins are test images with a near duplicate among the training images.")


def into_readme(file, text, section="results"):
    """Replace what stands between a section's markers in a Markdown file.

    text None only looks. Raises UserError unless it has both, in order.
    """
    begin, end = (marker.format(section) for marker in MARKERS)
    try:
        before, rest = file.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError):
        raise UserError(f"--readme {file}: it should hold {begin} and after it {end}, once each")
    if text is not None:
        write_text(file, f"{before}{begin}\n{text}\n{end}{after}")


def show(text):
    """Print; where the terminal knows no ± it is +-."""
    encoding = sys.stdout.encoding or "utf-8"
    text = text if "±".encode(encoding, "ignore") else text.replace("±", "+-")
    print(text.encode(encoding, "replace").decode(encoding))


# ---------------------------------------------------------------- what there is


def gather(paths, ensembles, scorer):
    """(results, {name: [DataFrame of a run's log, ...]}) of weights files and folders of them, and of `ensembles`.

    ensembles: {name: [Network, ...]}. Results and logs whose weights are not here any more are among them. What a
    folder holds and cannot be scored is left out with a sentence; UserError for a file that is named itself.
    """
    weights, csvs, kept = [], [], []
    for path in paths:
        if path.is_dir():
            weights += sorted(file for file in path.glob("*.pt") if not is_state(file))
            csvs += sorted(path.glob("*.csv"))
            kept += sorted((path / "results").glob("*.json"))
        elif is_state(path):  # `weights/*.pt` names it too
            warn(f"left out: {path} is a resume state")
        else:
            predict.load([path])[0].check_kind(scorer.path)
            weights.append(path)
            csvs.append(path.with_suffix(".csv"))

    results, logs = [], {}
    for file in weights:
        try:
            [network] = predict.load([file], scorer.device)
            network.check_kind(scorer.path)
            results.append(scorer.result([network]))
            if network.content.get("log"):
                log = pd.DataFrame(network.content["log"])
                logs[file] = log.assign(epoch=log["epoch"] + predict.total_epochs(network.history[1:]))
        except UserError as error:
            warn(f"left out: {error}")
    results += [scorer.result(networks, name) for name, networks in ensembles.items()]

    # Kept results are shown too, unless they are the same again, or weights of that name, or of a member's, were
    # trained anew since: then they are figures of the past.
    here = {(result["folder"], result["run"]): full_fingerprint(result) for result in results}
    foreign = 0
    for result in filter(None, map(read_result, kept)):
        folder, run, fingerprint = result["folder"], result["run"], full_fingerprint(result)
        past = any(here.get((folder, name), source) != source for name, source in
                   result.get("members", [[run, fingerprint]]))
        again = (folder, run) in here and result["tta"] == scorer.tta
        foreign += result["data"] != scorer.digest
        if result["data"] == scorer.digest and not past and not again:
            results.append(result)
    if foreign:
        warn(f"left out: {count_of(foreign, 'result')} on other test images")
    return results, read_logs(logs, csvs)


def read_logs(logs, files):
    """{name: [DataFrame, ...]} of training logs: those of weights files, and CSVs of runs that have none here."""
    logs, runs = dict(logs), {}
    for file in files:
        try:
            logs.setdefault(file.with_suffix(".pt"), pd.read_csv(file))
        except (OSError, ValueError):
            continue
    for file, log in logs.items():
        if len(log) and {"epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"} <= set(log):
            runs.setdefault(file.resolve().parent / family(file.stem), []).append(log)
    names = shortest_unique_names(runs)
    return {name + f" ({len(logs)} runs)" * (len(logs) > 1): logs for name, logs in zip(names, runs.values())}


def published():
    """The published figures with their sources, a DataFrame, the best first."""
    return pd.read_csv(PUBLISHED).sort_values("test_accuracy_percent", ascending=False, kind="stable")


def draw(folder, table, results, logs, official):
    """Draw all pictures; returns {file name: caption}."""
    pictures = {}
    if logs:
        plots.curves(folder / "curves.png", logs)
        pictures["curves.png"] = "Training. Folds and seeds of a model share a line style."

    # What accuracy costs, beside the best figure of each model of others on the same images.
    scored = table[~table["contaminated"]]
    names = scored["name"] + scored["protocol"].str.extract("(, TTA)$", expand=False).fillna("")
    known = published().drop_duplicates("model")[:None if official else 0]
    others = " The circles are the figures of others, each under its own protocol." if official else ""
    title = "test accuracy, with 95 % intervals" + ("; circles: as published by others" if official else "")
    for file, cost, theirs, label, unit, budget, caption in (
            ("landscape.png", "parameters", "parameters", "parameters, millions", 1e6, models.BUDGET, "parameters"),
            ("cost.png", "pflop", "training_pflop", "training, PFLOP", 1, None, "the work of training")):
        ours = scored.assign(name=names)[scored[cost] > 0][["name", cost, "top1", "low", "high"]]
        circles = known.dropna(subset=theirs)[["model", theirs, "test_accuracy_percent"]]
        if len(ours):
            points = (list(rows.itertuples(index=False)) for rows in (ours, circles))
            plots.landscape(folder / file, *points, title, label, unit, budget)
            pictures[file] = f"Accuracy against {caption}.{others}"

    # The first run of the best row of single networks, one that keeps the budget where there is any.
    single = scored[scored["networks"] == 1].sort_values("over_budget", kind="stable")
    for best in single[:1].to_dict("records"):
        run = next(run for run in results if (run["weights"], run["tta"]) == (best["weights"], best["tta"]))
        name = run["run"] + (", TTA" if run["tta"] else "")
        plots.confusion(folder / "confusion.png", run["confusion"], data.class_names("" if official else "synthetic"),
                        f"{name}: {run['top1']:.2f} % of {run['images']:,} images")
        plots.reliability(folder / "reliability.png", run["reliability"],
                          f"{name}: calibration error {100 * run['ece']:.2f} %")
        pictures["confusion.png"] = "Answers by true class; the colour marks the frequent mistakes."
        pictures["reliability.png"] = "Confidence against truth. A dot's area is its share of the images."
    return pictures


# ---------------------------------------------------------------- the command


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="*", type=Path, metavar="WEIGHTS",
                           help="weights files, or folders of them with their results/ (default: those that --ensemble "
                                "and the roles name, or the folder weights)")
    add_common(arguments)
    add = arguments.add_argument
    add("--tta", action="store_true", help="score the mean of the image and its mirror image")
    add("--humans", type=Path, metavar="CSV", help="also score against what people say, by train/humans.py; its "
        "figures stay in the results")
    add("--ensemble", nargs="+", action="append", metavar=("NAME", "WEIGHTS"),
        help="also a row for the mean of these weights' logits; may be repeated")
    group = arguments.add_argument_group("what is written")
    group.add_argument("--out", "--output", type=Path, metavar="DIR", help="folder [weights/report, or for generated "
                       "images weights/report-synthetic]; results then stand in it, not beside the weights")
    group.add_argument("--readme", type=Path, metavar="FILE", help="put the table between the markers of --section")
    group.add_argument("--picture", type=Path, metavar="FILE",
                       help="also put the picture of accuracy against the work of training there, a .png")
    group.add_argument("--section", default="results", metavar="NAME",
                       help=f"markers in the README, {' and '.join(MARKERS).format('NAME', 'NAME')}")
    group = arguments.add_argument_group("roles, whose comparison is printed last and stands in pipeline.txt")
    for role in ROLES:
        group.add_argument(f"--{role}", nargs="+", type=Path, metavar="WEIGHTS", help=ROLES[role])
    group = arguments.add_argument_group("questions, answered on the screen; a report only with WEIGHTS")
    group.add_argument("--compare", nargs=2, metavar=("A", "B"),
                       help="two weights files, or two groups of seeds: files and patterns, quoted together")
    group.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="how two runs differ")
    return arguments


def check(args):
    """UserError for whatever can be refused before the work and without reading weights."""
    if args.out.is_file() or not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: it should be a folder, in a folder that exists")
    if not os.access(args.out if args.out.exists() else args.out.parent, os.W_OK):
        raise UserError(f"--out {args.out}: it is not writable, name another folder")
    if args.readme:
        into_readme(args.readme, None, args.section)
    check_target("--picture", args.picture, ".png")
    names = [name for name, *_ in args.ensemble]
    for name, *files in args.ensemble:
        if not re.fullmatch(r"[\w.-]+", name) or name.endswith(".pt") or names.count(name) > 1 or len(files) < 2:
            raise UserError("--ensemble takes a name, each a different one, and after it two weights files or more")
        if any((Path(file).parent / f"{name}.pt").exists() for file in files):
            raise UserError(f"--ensemble {name}: there are weights of that name")


@command
def main():
    args = flags().parse_args()
    beside = args.out is None
    args.out = args.out or ROOT / "weights" / ("report-synthetic" if args.data == "synthetic" else "report")
    args.ensemble = args.ensemble or []
    already = [list(map(Path, files)) for _, *files in args.ensemble]
    if args.teachers and len(args.teachers) > 1 and args.teachers not in already:
        args.ensemble.append(["ensemble", *args.teachers])
    check(args)
    scorer = Scorer(args.data, device_of(args.device), args.tta, args.out, beside, args.humans)
    ensembles = {name: scorer.load(files, f"--ensemble {name}: ") for name, *files in args.ensemble}
    roles = {role: scorer.load(getattr(args, role), f"--{role}: ") for role in ROLES if getattr(args, role)}
    named = [network.file for networks in [*ensembles.values(), *roles.values()] for network in networks]
    further = {"Differences": differences(args.diff)} if args.diff else {}
    further |= {"Comparison": compare(args.compare, scorer)} if args.compare else {}
    if further and not args.weights + named:
        return show("\n\n".join(further.values()))

    paths = args.weights or list(dict.fromkeys(named)) or [ROOT / "weights"]
    results, logs = gather(paths, ensembles, scorer)
    if not results:
        raise UserError("no finished weights and no results: train first (`make baseline`), or name weights files")
    further |= {PIPELINE: student_gains(roles, scorer)} if roles else {}
    write_report(args, results, logs, further, scorer.digest == data.OFFICIAL["test"])


def write_report(args, results, logs, further, official):
    """Write all files of the report and print its table, and further texts {heading: text} below."""
    args.out.mkdir(exist_ok=True)
    table = group(results)
    images = next((f"{result['images']:,}" for result in results if "images" in result), "0")
    note = NOTE.format(images=images if official else f"{images} generated")
    note += NOTE_HUMANS if set(HUMANS) & set(table) else ""
    source = "the official CIFAR-10" if official else "generated"
    summary = f"{count_of(len(results), 'result')}, scored on {source} test images."
    pictures = draw(args.out, table, results, logs, official)
    text = f"{markdown(in_words(table))}\n{note}"
    write_text(args.out / "results.md", f"{text}\n\n{markdown(commands(table))}")
    write_text(args.out / "results.csv", table.to_csv(index=False))
    write_text(args.out / "report.html", page(table, note, summary, args.out, pictures, further,
                                              published() if official else None))
    if args.readme:
        into_readme(args.readme, f"{text}\n", args.section)
    if args.picture and official and "cost.png" in pictures:
        picture = (args.out / "cost.png").read_bytes()
        write(args.picture, lambda handle: handle.write(picture))
    elif args.picture:
        warn(f"--picture {args.picture}: not drawn, there is no accuracy on the official images")
    if PIPELINE in further:
        write_text(args.out / "pipeline.txt", f"{further[PIPELINE]}\n")
    show("\n\n".join([text, *further.values(), f"{args.out / 'report.html'}: {summary}"]))


if __name__ == "__main__":
    main()
