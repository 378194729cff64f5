"""Tables and pictures of everything that was scored: results, what teachers give, curves, one self-contained page.

    python train/report.py                          the results in weights/ and weights/results/, into weights/report/
    python train/report.py weights/quick            a folder, and its folders of seeds; or x.json one by one
    python train/report.py weights/results --readme weights/README.md       also put the tables into that file

It reads what `train/evaluate.py` wrote, and the logs (*.csv) of runs that have no result yet; it loads no network and
no images. It takes seconds. Data flow: files -> a list of results (`gather`) -> the table, a row for all runs that
differ by their seed only (`results.group`) -> texts, pictures and the page (`main`).
"""

import argparse
import math
import os
import re
import shutil
import sys
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

import models
from train import ROOT, UserError
from train.data import cifar10
from train.data.sources import expand
from train.engine.checkpoint import write_text
from train.engine.command import check_replaceable, check_target, command, count_of, parser, short_path, warn
from train.engine.network import total_epochs
from train.scores import plots
from train.scores.page import PAGE, PICTURES, commands, in_words, markdown, page
from train.scores.results import family, group, home, mean_of_kept, read_result, result_file, shortest_unique_names

PUBLISHED, DOCUMENTED = map(Path(plots.__file__).with_name, ("published.csv", "documented.csv"))
MEAN = ("shakeshake26-40-se", "seresnet164")  # rows of the ladder whose mean is a row too
MARKED = r"(<!-- (results|ladder) -->\r?\n).*?(<!-- /\2 -->)"  # in a README: where each table goes
LABELLED = 12  # points of a picture; of more, only those that no cheaper one beats
INTERVAL = "The interval is Wilson's for one run with that mean. "  # in the wide table only
NOTE = ("Top-1 accuracy on the {images} test images after the last epoch: the mean of n runs that differ only by their "
        f"seed, ± their sample standard deviation. {INTERVAL}PFLOP (10^15 operations) is the work of training, 6 x "
        "MACs x images x epochs. An epoch at 20x20 pixels counts in proportion to its area; the work of teachers is "
        "not included. Time is that of the fastest and of the slowest run. A run that starts from earlier weights "
        "(`--init`) includes their epochs, work and time. "
        "The budget is 5,000,000 parameters; a mean of several networks counts all of their parameters, work and time.")


def gather(paths: list[Path]) -> tuple[list[dict], dict[str, list[pd.DataFrame]]]:
    """(results, {name: [log of a run, ...]}) of x.json and of folders, whose unusable files it reports and leaves out.

    The results include means of saved logits: of a folder's teachers, and of two networks of the ladder.
    """
    results, means, csvs = {}, [], []  # results by file, for a folder may be within another
    for path in {path.resolve(): path for path in paths}.values():
        if not path.is_dir():
            results[path.resolve()] = read_result(path)
            continue
        for folder in (path / "results", path, *sorted(path.glob("seed*"))):
            csvs += sorted(folder.glob("*.csv"))
            for file in sorted(folder.glob("*.json")):
                try:
                    results[file.resolve()] = read_result(file)
                except UserError as error:
                    warn(f"left out: {error}")
        own = [result for result in results.values()
               if result["file"].parent == path and not result["tta"] and "members" not in result]
        for name, members in (("ensemble", [result for result in own if result["run"].startswith("teacher-")]),
                              ("mean", [result for result in own if result["run"] in MEAN])):
            try:
                means += [mean_of_kept(path / f"{name}.json", members)] if len(members) > 1 else []
            except UserError as error:
                warn(f"no row for the mean of {', '.join(result['run'] for result in members)}: {error}")
    # If an ensemble was also scored under another name, the table keeps the first.
    results = [*means, *results.values()]
    digests = Counter(result["test_digest"] for result in results)
    if not digests:
        raise UserError("there is no result yet: `python train/evaluate.py WEIGHTS` writes one")
    shown = cifar10.OFFICIAL["test"] if cifar10.OFFICIAL["test"] in digests else max(digests, key=digests.get)
    if foreign := digests.total() - digests[shown]:
        warn(f"{count_of(foreign, 'result')} on other test images left out")
    results = [result for result in results if result["test_digest"] == shown]
    return results, read_logs(results, csvs)


def read_logs(results: list[dict], files: list[Path]) -> dict[str, list[pd.DataFrame]]:
    """The logs of results, grouped by name, and of runs that have no result yet, from their CSVs."""
    logs, runs = {}, {}
    for result in results:
        if result["log"]:
            log = pd.DataFrame(result["log"])
            log["epoch"] += total_epochs(result["provenance"]["before"])
            logs[result["file"].with_name(f"{result['run']}.csv")] = log
    for file in files:
        with suppress(ValueError):  # an empty file, or one with words, which is no log
            logs.setdefault(file, pd.read_csv(file, dtype=float))
    for file, log in logs.items():
        if len(log) and {"epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"} <= set(log):
            runs.setdefault(home(file) / family(file.stem), []).append(log)
    return {name + f" ({len(logs)} runs)" * (len(logs) > 1): logs
            for name, logs in zip(shortest_unique_names(list(runs)), runs.values(), strict=True)}


# ---------------------------------------------------------------- what teachers give


def gains(table: pd.DataFrame) -> str:
    """What the student in a folder's table gains, in lines; empty without a student or anything to compare it with.

    The file names are the roles: baseline*, teacher-*, control, student, each a row of the table.
    """
    def mean(rows):
        return np.average(rows["top1"], weights=rows["n"])

    order = ["baseline", "teacher", "ensemble", "control", "student"]
    rows = table[~table["tta"]].copy()
    rows["role"] = pd.Categorical(rows["runs"].str.extract(
        r"^(baseline|teacher(?=-)|(?:ensemble|control|student)(?= |$))", expand=False), order)
    rows = rows.dropna(subset="role").sort_values(["role", "runs"])
    teachers, students = rows[rows["role"] == "teacher"], rows[rows["role"] == "student"]
    if students.empty or len(rows) == 1:
        return ""
    words = in_words(rows)[["model", "parameters", "epochs", "protocol", "test top-1 %", "n"]]
    words.insert(0, "role", list(rows["role"]))
    lines = words.to_string(index=False).splitlines()
    lines += [f"mean of the {len(teachers)} teachers: {teachers['top1'].mean():.2f} %"] if len(teachers) > 1 else []
    student = students.iloc[0]
    alike = teachers[teachers["runs"].str.startswith("teacher-all") & (teachers["model"] == student["model"])]
    compared = pd.concat([rows.query("role in ['baseline', 'control']"), alike])
    for name, others in compared.groupby("name", sort=False):
        other, points = others.iloc[0], round(mean(students) - mean(others), 9)
        told = "the same network" if other["model"] == student["model"] else "another network"
        if other["epochs"] != student["epochs"]:
            told += f"; {other['epochs']} epochs, not {student['epochs']}"
        if len(students) > 1 or len(others) > 1:
            told += "; means of runs that differ by more than their seed"
        lines.append(f"student {points:+.2f} points against {name} ({told})")
    return "\n".join(lines)


def ladder(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the documented ladder in words, with their results in a folder's table; empty if it has none of them.

    Rows that are neither documented nor trained are left out.
    """
    rows = pd.read_csv(DOCUMENTED, index_col="run", dtype=str, keep_default_na=False)
    ours = table[~table["tta"]]
    ours = ours.set_index(ours["runs"].str.split().str[0])
    ours = ours[ours.index.isin(rows.index)]
    if not ours.index.isin(rows.index.drop("mean")).any():
        return rows[:0]
    words = in_words(ours).set_index(ours.index).assign(augmentation=ours["augmentation"])
    words = words.rename(columns={"test top-1 %": "ours %"})[["ours %", "epochs", "augmentation", "time"]]
    rows = rows[(rows["documented %"] != "") | rows.index.isin(ours.index)]
    return rows.join(words).fillna({"ours %": "not trained"}).fillna("")


# ---------------------------------------------------------------- pictures


def published() -> pd.DataFrame:
    """Published figures of others with their sources, best first."""
    return pd.read_csv(PUBLISHED).sort_values("test_accuracy_percent", ascending=False, kind="stable")


def points_of(table: pd.DataFrame, others: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points of a picture, all of a single view: label, cost, top1, low, high, hollow (a student), theirs.

    If there are many, only those that no cheaper one beats have labels: among ours, ours without teachers, theirs.
    """
    fold = (", " + table["protocol"].str.extract("^(fold .)", expand=False)).fillna("")
    ours = table.assign(label=table["name"] + fold, hollow=table["taught"], theirs=False)[~table["tta"]]
    theirs = others[others["views"] == 1].drop_duplicates("model").assign(hollow=False, theirs=True).rename(
        columns={"model": "label", "test_accuracy_percent": "top1", "training_pflop": "pflop"})
    columns = ["label", "epochs", cost, "top1", "low", "high", "hollow", "theirs"]
    points = pd.concat([part.reindex(columns=columns) for part in (ours, theirs) if len(part)], ignore_index=True)
    points = points.rename(columns={cost: "cost"}).dropna(subset="cost").sort_values(["cost", "top1"],
                                                                                     ascending=[True, False])
    if len(points) > LABELLED:
        best = set()
        for part in (points.query("~theirs"), points.query("~theirs and ~hollow"), points.query("theirs")):
            best |= set(part.index[part["top1"] > part["top1"].cummax().shift(fill_value=0)])
        points.loc[~points.index.isin(best), "label"] = ""
    again = points["label"].duplicated(keep=False) & (points["label"] != "")
    points.loc[again, "label"] += points["epochs"][again].map(", {:.0f} epochs".format)
    return points


def draw(folder: Path, table: pd.DataFrame, results: list[dict], logs: dict, official: bool,
         generated: bool) -> dict[str, str]:
    """Draw all pictures into a folder: {file name: caption}."""
    pictures = {}
    if logs:
        plots.curves(folder / "curves.png", logs)
        pictures["curves.png"] = "Training. Folds and seeds of a model share a line style."

    kinds = (("landscape.png", "parameters", 1e6, models.BUDGET, "million parameters"),
             ("cost.png", "pflop", 1, None, "quadrillion operations of training"))
    for file, cost, unit, budget, what in () if table["tta"].all() else kinds:
        points = points_of(table, published()[:None if official else 0], cost)
        ours = points[~points["theirs"] & ~(points["cost"] > (budget or math.inf))].sort_values("top1")
        if len(ours):  # the title is the finding: the cost of the best, and what a tenth of that cost gives
            cheap = ours[ours["cost"] <= ours["cost"].iloc[-1] / 10][-1:]
            title = ", ".join(f"{row.top1:.2f} % for {row.cost / unit:.2g}"
                              for row in pd.concat([cheap, ours[-1:]]).itertuples()) + f" {what}"
            legend = "; grey: published by others" * bool(points["theirs"].any())
            legend += "; hollow: a student, without what its teachers took" * bool(ours["hollow"].any())
            plots.landscape(folder / file, points, title, what + legend, unit, budget)
            pictures[file] = f"Accuracy of a single view, with 95 % intervals, against {what}{legend}."

    # The predictions of the student with the smallest seed, or of the best network within the budget.
    if singles := [run for run in results if "members" not in run]:
        def rank(run):
            student = run["run"] == "student"
            last = run["config"]["seed"] if student else -run["metrics"]["top1"]
            return not student, run["tta"], run["params"] > models.BUDGET, last

        run = min(singles, key=rank)
        name, scores = run["run"] + ", TTA" * run["tta"], run["metrics"]
        classes = cifar10.class_names("synthetic" if generated else "")
        plots.confusion(folder / "confusion.png", scores["confusion"], classes,
                        f"{name}: {scores['top1']:.2f} % of {run['images']:,} images")
        plots.reliability(folder / "reliability.png", scores["reliability"],
                          f"{name}: calibration error {100 * scores['ece']:.2f} %")
        pictures["confusion.png"] = "Predictions by true class; the colour marks the frequent mistakes."
        pictures["reliability.png"] = "Confidence against accuracy. A dot's area is its share of the images."
    return pictures


# ---------------------------------------------------------------- the command


def flags() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("results", nargs="*", type=result_file, metavar="FOLDER|JSON",
        help="results, or folders of them (default: the folder weights)")
    add("--out", type=expand, metavar="DIR",
        help="folder to write (default: report/ in the first folder, or in weights)")
    add("--readme", type=expand, metavar="FILE",
        help="also put the tables there, between <!-- results --> and <!-- /results -->, or <!-- ladder --> ...")
    add("--picture", type=expand, metavar="PNG", help="also put the picture of accuracy against work there")
    return arguments


def main() -> None:
    args = flags().parse_args()
    paths = args.results or [ROOT / "weights"]
    out = args.out or (paths[0] if paths[0].is_dir() else ROOT / "weights") / "report"
    if out.is_file() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out}: it should be a writable folder, in a folder that exists")
    for name, beginning in (("results.csv", "model,name,parameters,"), ("results.md", "| model | parameters |"),
                            ("report.html", PAGE[:60])):
        check_replaceable("--out", out / name, beginning)
    try:
        readme = args.readme.read_bytes().decode() if args.readme else ""  # with its line ends
    except UnicodeDecodeError:
        raise UserError(f"--readme {args.readme}: it should be text in UTF-8") from None
    if args.readme and not re.search(MARKED, readme, re.DOTALL):
        raise UserError(f"--readme {args.readme}: it should hold <!-- results --> and after it <!-- /results -->, or "
                        f"the same with ladder")
    check_target("--picture", args.picture, ".png")

    results, logs = gather(paths)
    official, table = results[0]["test_digest"] == cifar10.OFFICIAL["test"], group(results)
    generated = not official and results[0]["provenance"]["source"].startswith("synthetic")
    by_folder = {}
    for result in results:
        by_folder.setdefault(home(result["file"]), []).append(result)
    sections, ladders = {}, []  # {heading: text} of what comes with the table
    for name, own in zip(shortest_unique_names(list(by_folder)), map(group, by_folder.values()), strict=True):
        where = f": {name}" if len(by_folder) > 1 else ""
        if len(rows := ladder(own)):
            ladders.append(markdown(rows))
            sections[f"The documented ladder{where}"] = rows.to_string(index=False)
        if lines := gains(own):
            sections[f"What teachers give{where}"] = lines
    note = NOTE.format(images=f"{results[0]['images']:,}" + " generated" * generated)
    kind = "the official CIFAR-10" if official else "generated" if generated else "a part of the"
    summary = f"{count_of(len(results), 'result')} on {kind} test images."
    out.mkdir(exist_ok=True)
    pictures = draw(out, table, results, logs, official, generated)
    if (out / "report.html").exists():  # an older report, whose pictures may be of other runs
        for old in set(chain(*PICTURES.values())) - set(pictures):
            (out / old).unlink(missing_ok=True)
    text = f"{markdown(in_words(table))}\n{note}"
    narrow = markdown(in_words(table).drop(columns=["MACs", "95 % interval"]))
    tables = {"results": f"{narrow}\n{note.replace(INTERVAL, '')}\n\n"}
    if ladders:
        tables["ladder"] = "\n".join(ladders)
    write_text(out / "results.md", f"{text}\n\n{markdown(commands(table))}")
    write_text(out / "results.csv", table.assign(folder=table["folder"].map(short_path)).to_csv(index=False))
    others = published() if official else None
    write_text(out / "report.html", page(table, note, summary, out, pictures, sections, others))
    if args.readme:
        if unfilled := {name for _, name, _ in re.findall(MARKED, readme, re.DOTALL)} - set(tables):
            warn(f"--readme {args.readme}: its {unfilled.pop()} is as it was, for there is no such result")

        def filled(found):
            ends = "\r\n" if "\r\n" in found[1] else "\n"
            return f"{found[1]}{tables[found[2]].replace(chr(10), ends)}{found[3]}" if found[2] in tables else found[0]

        write_text(args.readme, re.sub(MARKED, filled, readme, flags=re.DOTALL))
    if args.picture and "cost.png" in pictures:
        shutil.copyfile(out / "cost.png", args.picture)
    elif args.picture:
        warn(f"--picture {args.picture}: not drawn, all results are with --tta")
    shown = "\n\n".join([text, *sections.values(), f"{out / 'report.html'}: {summary}"])
    print(shown)


if __name__ == "__main__":
    with command():
        main()
