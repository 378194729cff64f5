"""Tables and pictures of everything that was trained: results, curves, calibration, one self-contained page.

    python train/report.py                                        all finished weights under weights/
    python train/report.py weights/seresnet164-fold?.pt --tta
    python train/report.py --compare weights/student.pt weights/seresnet164-noval.pt
    python train/report.py --ensemble teachers weights/seresnet164-fold?.pt     a row for their mean
    python train/report.py weights/study --readme README.md --section study     put the table of a folder there

Every weights file is scored on the test set once: its answers are kept beside the report and its figures in
weights/results/, so a repeat takes seconds, and results whose weights are not here stay in the table. A first pass
takes about a minute per network on two CPU cores.
"""

import base64
import html
import io
import json
import math
import re
import shlex
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch

import models
from train import checkpoint, data, plots, predict
from train.checkpoint import write, write_text
from train.progress import duration
from train.recipe import ROOT, UserError, command, device_of, family, parser

FORMAT = "result/1"
PUBLISHED = Path(__file__).with_name("published.csv")
MARKERS = "<!-- {} -->", "<!-- /{} -->"
NOTE = ("Top-1 on the {images} test images, of the state after the last epoch: the mean of n runs that differ by their "
        "seed only, ± their sample deviation. The interval is Wilson's for one run with that mean. Time is per run. "
        "A teacher is above the budget; a mean of several networks counts all of their parameters and time.")


# ---------------------------------------------------------------- statistics


def wilson(right, total, z=1.959963984540054):
    """The 95 % interval, (low, high) in 0..1, of a share of which `right` of `total` were observed (Wilson 1927)."""
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / (1 + z * z / total)), min(1.0, (middle + half) / (1 + z * z / total))


def mcnemar(first, second):
    """The exact two-sided p of McNemar's test for two answerers of equal accuracy.

    first, second: how many images only the one and only the other answered right. Under the null hypothesis each of
    them is as likely to be of either kind, so the smaller count is binomial.
    """
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**total)


# ---------------------------------------------------------------- one test pass per weights file


class TestPass:
    """Scores weights files on one test set, each once.

    data_path: where the images are, loaded only when an answer is missing; folder: where answers are kept.
    """

    __test__ = False  # for pytest, which takes the name for its own

    def __init__(self, data_path, device, tta, folder):
        self.path, self.device, self.tta, self.folder = data_path, device, tta, folder

    @cached_property
    def dataset(self):
        return data.load(self.path, "test")

    @cached_property
    def digest(self):
        """That of the test images, which without loading them can only be the official one."""
        return self.dataset.digest if self.path == "synthetic" else data.OFFICIAL["test"]

    def logits(self, file, content):
        """The answers, float32 (N, 10), of a weights file: kept ones, or those of a pass that is then kept."""
        name = [file.stem, key(content), *(["tta"] if self.tta else []), self.digest[:8]]
        kept = self.folder / f"{'-'.join(name)}.npz"
        try:
            with np.load(io.BytesIO(kept.read_bytes()), allow_pickle=False) as arrays:
                return torch.from_numpy(arrays["logits"])
        except Exception:  # absent, or damaged in any of the ways in which a zip can be
            model = predict.restore(content).to(self.device, memory_format=torch.channels_last)
            logits = predict.logits(model, self.dataset.images, self.tta, file.stem)
        self.folder.mkdir(parents=True, exist_ok=True)
        write(kept, lambda handle: np.savez(handle, logits=logits.numpy()))
        return logits

    def result(self, file, content):
        """The summary of a weights file, a dict of plain values: the one in results/, or a new one put there."""
        kept = file.parent / "results" / f"{file.stem}{'-tta' if self.tta else ''}.json"
        result = read_result(kept)
        if result and (result["weights"], result["data"]) == (key(content), self.digest):
            return result
        result = {"format": FORMAT, "weights": key(content), "data": self.digest, "tta": self.tta, **facts(content)}
        if not result["include_test"]:
            result |= self.score(self.logits(file, content))
        keep(kept, result)
        return result

    def ensemble(self, name, files):
        """The summary of weights files that answer by the mean of their logits, put in results/ under `name`."""
        contents = list(map(checkpoint.load_weights, files))
        logits = torch.stack([self.logits(file, content) for file, content in zip(files, contents)]).mean(0)
        members = sorted([content["provenance"]["run"], key(content)] for content in contents)
        words = ["python", "train/evaluate.py", *map(nearby, files), *["--tta"] * self.tta]
        words += ["--data", "synthetic"] * (self.path == "synthetic")
        result = {"format": FORMAT, "weights": checkpoint.digest(members)[:16], "data": self.digest, "tta": self.tta,
                  "run": name, "members": members, "command": shlex.join(words),
                  **facts_of_all(list(map(facts, contents))), **self.score(logits)}
        keep(files[0].parent / "results" / f"{name}{'-tta' if self.tta else ''}.json", result)
        return result

    def score(self, logits):
        """What a summary says about one set of answers."""
        return {"images": len(self.dataset), **predict.figures(logits, self.dataset.labels),
                "reliability": predict.reliability(logits, self.dataset.labels)}


def keep(file, result):
    """Write a summary where later reports find it."""
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(result) + "\n")


def key(content):
    return checkpoint.digest(content)[:16]


def nearby(file):
    """A path as a person in the repository would type it."""
    file = file.resolve()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def facts(content):
    """What a summary says about how the weights came about."""
    provenance = content["provenance"]
    kept = ("run", "params", "over_budget", "include_test", "hardware", "seconds", "date")
    return {"model": provenance["name"], **{name: provenance[name] for name in kept},
            "macs": models.macs(predict.restore(content)), "command": provenance.get("command"),
            "recipe": content["recipe"], "training_data": content["data"]}


def facts_of_all(members):
    """The `facts` of several networks that answer together: their sums, and of their recipes what they share."""
    recipes = [member["recipe"] for member in members]
    shared = {name: value for name, value in recipes[0].items()
              if all(name in recipe and recipe[name] == value for recipe in recipes)}
    models_used = Counter(member["model"] for member in members)
    total = {name: sum(member[name] for member in members) for name in ("params", "macs", "seconds")}
    return total | {
        "model": " + ".join(f"{count} {model}" for model, count in models_used.items()),
        "over_budget": total["params"] > models.BUDGET, "include_test": False,
        "hardware": ", ".join(dict.fromkeys(member["hardware"] for member in members)),
        "date": max(member["date"] for member in members),
        "recipe": shared | {"seed": 0, "limit": shared.get("limit"), "epochs": max(r["epochs"] for r in recipes)},
        "training_data": checkpoint.digest([member["training_data"] for member in members]),
    }


def read_result(file):
    """A summary that a TestPass wrote, or None where there is none or one of another version."""
    try:
        result = json.loads(file.read_text())
        return result if result["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def collect(files, test):
    """The summaries of weights files; a sentence for each file, on standard error, that has none."""
    results = []
    for file in files:
        try:
            content = checkpoint.load_weights(file)
            data.check_kind(file, content, test.path)
            results.append(test.result(file, content))
        except UserError as error:
            print(f"report.py: left out: {error}", file=sys.stderr)
    return results


# ---------------------------------------------------------------- the table


def group(results):
    """One row of plain values for all runs that differ by their seed only: a DataFrame, the best first."""
    alike, seen = {}, set()
    for result in sorted(results, key=lambda result: result["recipe"]["seed"]):
        if (result["weights"], result["tta"]) not in seen:  # the same weights under two names are one run
            seen.add((result["weights"], result["tta"]))
            same = {name: value for name, value in result["recipe"].items() if name != "seed"}
            name = json.dumps([result["model"], result["tta"], result["training_data"], same, result.get("members")],
                              sort_keys=True)
            alike.setdefault(name, []).append(result)
    table = pd.DataFrame([row_of(runs) for runs in alike.values()])
    return table.sort_values(["top1", "model"], ascending=[False, True], na_position="last", ignore_index=True)


def row_of(runs):
    """The row of runs that differ by their seed only."""
    first = runs[0]
    scores = pd.Series([run.get("top1") for run in runs], dtype=float)
    row = {
        "model": first["model"], "family": family(first["run"]), "parameters": first["params"], "macs": first["macs"],
        "over_budget": first["over_budget"], "contaminated": first["include_test"],
        "epochs": first["recipe"]["epochs"], "protocol": protocol(first), "tta": first["tta"],
        "networks": len(first.get("members", [first])),
        "top1": scores.mean(), "deviation": scores.std(), "n": len(runs), "low": None, "high": None,
        "images": first.get("images"), "hardware": ", ".join(dict.fromkeys(run["hardware"] for run in runs)),
        "seconds": sum(run["seconds"] for run in runs) / len(runs), "command": first["command"] or "",
        "runs": " ".join(run["run"] for run in runs), "weights": first["weights"],
    }
    if not first["include_test"]:
        interval = wilson(scores.mean() / 100 * first["images"], first["images"])
        row |= {"low": 100 * interval[0], "high": 100 * interval[1]}
    return row


def protocol(result):
    recipe = result["recipe"]
    if "members" in result:
        words = [f"mean of {len(result['members'])}"]
    else:
        words = ["noval" if recipe["fold"] is None else f"fold {recipe['fold']}"]
    words += [f"{recipe['limit']:,} images"] if recipe["limit"] else []
    words += ["with the test images"] if result["include_test"] else []
    return ", ".join(words + (["TTA"] if result["tta"] else []))


def worded(row):
    """A row of `group` in words, under the headings of the table."""
    deviation = f" ± {row['deviation']:.2f}" if row["n"] > 1 else ""
    remarks = [row["family"]] if row["family"] != row["model"] else []
    remarks += ["teacher"] if row["over_budget"] else []
    return {
        "model": row["model"] + (f" ({', '.join(remarks)})" if remarks else ""),
        "parameters": f"{row['parameters']:,}", "MACs": f"{row['macs'] / 1e6:,.0f} M", "epochs": f"{row['epochs']:,}",
        "protocol": row["protocol"],
        "test top-1 %": "contaminated" if row["contaminated"] else f"{row['top1']:.2f}{deviation}",
        "n": str(row["n"]), "95 % interval": "" if row["contaminated"] else f"{row['low']:.2f} to {row['high']:.2f}",
        "hardware": row["hardware"], "time": duration(row["seconds"]),
        "command": f"`{row['command']}`" if row["command"] else "",
    }


LEFT = ("model", "protocol", "hardware", "command")  # the other columns are numbers


def in_words(table):
    """The table of `group` as people read it: a DataFrame of texts."""
    return pd.DataFrame([worded(row) for row in table.to_dict("records")])


def markdown(words):
    """A DataFrame of texts as a Markdown table."""
    lines = [list(words.columns), ["---" if name in LEFT else "---:" for name in words.columns]]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in words.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def into_readme(file, text, section="results"):
    """Replace what stands between a section's markers in a Markdown file.

    text None only looks. Raises UserError unless it has both, in order.
    """
    begin, end = (marker.format(section) for marker in MARKERS)
    try:
        before, rest = file.read_text().split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError):
        raise UserError(f"--readme {file}: it should hold {begin} and after it {end}, once each")
    if text is not None:
        write_text(file, f"{before}{begin}\n{text}\n{end}{after}")


# ---------------------------------------------------------------- pictures and the page


def draw(folder, table, results, logs, official):
    """Draw all pictures; returns {file name: caption}."""
    pictures = {}
    if logs:
        plots.curves(folder / "curves.png", logs)
        pictures["curves.png"] = "Training. Folds and seeds of a model share a colour."
    scored = table[~table["contaminated"]]
    if scored.empty:
        return pictures
    names = scored["family"] + scored["protocol"].str.extract("(, TTA)$", expand=False).fillna("")
    names = names.mask(names.duplicated(), "")  # of several folds the best is labelled
    ours = [*zip(names, scored["parameters"], scored["top1"], scored["low"], scored["high"])]
    known = list(published().itertuples(index=False)) if official else []
    title = "test accuracy, with 95 % intervals" + ("; circles: as published by others" if official else "")
    plots.landscape(folder / "landscape.png", ours, known, models.BUDGET, title)
    pictures["landscape.png"] = "Accuracy against parameters." + (
        " The circles are the figures of others, each under its own protocol." if official else "")

    # The two pictures of a single run show the best one that keeps the budget.
    single = scored[scored["networks"] == 1]
    within = single[~single["over_budget"]]
    if single.empty:
        return pictures
    best = (single if within.empty else within).iloc[0]
    run = next(run for run in results if (run["weights"], run["tta"]) == (best["weights"], best["tta"]))
    name = run["run"] + (", TTA" if run["tta"] else "")
    title = f"{name}: {run['top1']:.2f} % of {run['images']:,} images"
    plots.confusion(folder / "confusion.png", run["confusion"], title)
    title = f"{name}: calibration error {100 * run['ece']:.2f} %"
    plots.reliability(folder / "reliability.png", run["reliability"], title)
    pictures["confusion.png"] = "Answers by true class; the colour marks the frequent mistakes."
    pictures["reliability.png"] = "Confidence against truth. A dot's area is its share of the images."
    return pictures


def published():
    """The best published figure of each model: name, parameters, top1 in percent. Sources are in the file."""
    table = pd.read_csv(PUBLISHED).sort_values("test_accuracy_percent").drop_duplicates("model", keep="last")
    return table[["model", "parameters", "test_accuracy_percent"]]


def read_logs(files):
    """{family: [DataFrame]} of training logs."""
    logs = {}
    for file in files:
        try:
            log = pd.read_csv(file)
            if log.empty or not {"epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"} <= set(log):
                continue
        except (OSError, ValueError):
            continue
        logs.setdefault(family(file.stem), []).append(log)
    return {name if len(runs) == 1 else f"{name} ({len(runs)} runs)": runs for name, runs in logs.items()}


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CIFAR-10 under 5,000,000 parameters</title>
<style>
body {{ font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; color: #22303c;
  max-width: 1240px; margin: 40px auto; padding: 0 24px }}
h1 {{ font-size: 25px; font-weight: 600; margin: 0 0 4px }}
h2 {{ font-size: 17px; font-weight: 600; margin: 40px 0 8px }}
p {{ max-width: 780px }}
.note, figcaption {{ color: #5b6b79; font-size: 13.5px }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
th {{ font-weight: 600; border-bottom: 1px solid #7d8b99; vertical-align: bottom; text-align: left }}
th, td {{ padding: 5px 14px 5px 0; white-space: nowrap }}
td {{ border-bottom: 1px solid #e6eaee; vertical-align: top }}
.number {{ text-align: right }}
td code {{ font-size: 12px; white-space: normal; display: block; min-width: 400px }}
figure {{ margin: 0 }}
img {{ max-width: 100%; height: auto; display: block }}
.pair {{ display: flex; flex-wrap: wrap; gap: 24px }}
.pair figure {{ flex: 1 1 440px }}
</style></head><body>
<h1>CIFAR-10 under 5,000,000 parameters</h1>
<p class="note">{summary}</p>
<h2>Results</h2>
<div class="wide">{table}</div>
<p class="note">{note}</p>
{sections}
</body></html>
"""


def page(words, note, summary, folder, pictures, compared, official):
    """The report as one HTML text with everything in it."""

    def figure(name):
        image = base64.b64encode((folder / name).read_bytes()).decode()
        caption = html.escape(pictures[name])
        source = f"data:image/png;base64,{image}"
        return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'

    sections = [f"<h2>Comparison</h2><p>{html.escape(compared)}</p>"] if compared else []
    for title, names in (("Accuracy and size", ["landscape.png"]), ("Training", ["curves.png"]),
                         ("The best run within the budget", ["confusion.png", "reliability.png"])):
        if names[0] in pictures:
            sections.append(f'<h2>{title}</h2><div class="pair">{"".join(map(figure, names))}</div>')
    if official:
        known = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
        known["parameters"] = known["parameters"].map(lambda count: f"{int(count):,}")
        known.columns = [name.replace("_", " ").replace(" percent", " %") for name in known.columns]
        known = html_table(known, left=("model", "notes", "source"))
        sections.append(f'<h2>Published by others</h2><div class="wide">{known}</div>')
    return PAGE.format(summary=html.escape(summary), table=html_table(words), note=html.escape(note),
                       sections="\n".join(sections))


def html_table(words, left=LEFT):
    """A DataFrame of texts as an HTML table; what stands in backquotes becomes code."""

    def line(tag, cells):
        marked = (re.sub("^`(.*)`$", r"<code>\1</code>", html.escape(str(cell))) for cell in cells)
        kinds = ("" if name in left else ' class="number"' for name in words.columns)
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, marked)) + "</tr>"

    body = "".join(line("td", row) for row in words.itertuples(index=False))
    return f"<table><thead>{line('th', words.columns)}</thead><tbody>{body}</tbody></table>"


def compare(files, test):
    """McNemar's test between two weights files, as a sentence."""
    right = [test.logits(file, checkpoint.load_weights(file)).argmax(1) == test.dataset.labels for file in files]
    first, second = (right[0] & ~right[1]).sum().item(), (right[1] & ~right[0]).sum().item()
    a, b = (file.stem for file in files)
    return (f"{a} is right on {right[0].sum():,} and {b} on {right[1].sum():,} of {len(right[0]):,} test images: "
            f"{first:,} only {a}, {second:,} only {b}; McNemar's exact test p = {mcnemar(first, second):.3g}")


# ---------------------------------------------------------------- the command


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="*", type=Path, metavar="WEIGHTS",
                           help="weights files, or folders of them with their results/ (default: weights)")
    group = arguments.add_argument_group("data")
    group.add_argument("--data", default=str(ROOT / "data"), metavar="PATH", help="folder of the images, or synthetic")
    group.add_argument("--tta", action="store_true", help="score the mean of the image and its mirror image")
    group.add_argument("--ensemble", nargs="+", action="append", default=[], metavar=("NAME", "WEIGHTS"),
                       help="also a row for the mean of these weights' logits; may be repeated")
    group = arguments.add_argument_group("what is written")
    group.add_argument("--out", "--output", type=Path, default=ROOT / "weights/report", metavar="DIR", help="folder")
    group.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="McNemar's exact test of two weights")
    group.add_argument("--readme", type=Path, metavar="FILE", help="put the table between the markers of --section")
    group.add_argument("--section", default="results", metavar="NAME",
                       help=f"markers in the README, {' and '.join(MARKERS).format('NAME', 'NAME')}")
    group = arguments.add_argument_group("run")
    group.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    return arguments


def everything(folder):
    """(finished weights files, logs, summaries) of a folder of runs."""
    weights = sorted(file for file in folder.glob("*.pt") if not file.name.endswith(".last.pt"))
    return weights, sorted(folder.glob("*.csv")), sorted((folder / "results").glob("*.json"))


def gathered(paths):
    """(weights files, logs, summaries) of files and folders. What is named itself is never left out silently."""
    weights, logs, summaries = [], [], []
    for path in paths:
        if path.is_dir():
            found = everything(path)
        else:
            checkpoint.load_weights(path)
            found = [path], [path.with_suffix(".csv")], []
        weights, logs, summaries = weights + found[0], logs + found[1], summaries + found[2]
    return weights, logs, summaries


def check(args, test):
    """UserError for whatever can be refused before the work."""
    if args.out.is_file() or not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: it should be a folder, in a folder that exists")
    if args.readme:
        into_readme(args.readme, None, args.section)
    names = [name for name, *_ in args.ensemble]
    for name, *files in args.ensemble:
        if not re.fullmatch(r"[\w.-]+", name) or name.endswith(".pt") or names.count(name) > 1 or len(files) < 2:
            raise UserError("--ensemble takes a name, each a different one, and after it two weights files or more")
        if any((Path(file).parent / f"{name}.pt").exists() for file in files):
            raise UserError(f"--ensemble {name}: there are weights of that name")
    for flag, files in [*((f"--ensemble {name}", files) for name, *files in args.ensemble),
                        ("--compare", args.compare or [])]:
        seen = set()
        for file in files:
            content = checkpoint.load_weights(file)
            if content["provenance"]["include_test"]:
                raise UserError(f"{flag}: {file} was trained with the test images; it has no test accuracy")
            if key(content) in seen and flag != "--compare":
                raise UserError(f"{flag}: {file} is there twice")
            data.check_kind(file, content, test.path)
            seen.add(key(content))


@command
def main():
    args = flags().parse_args()
    test = TestPass(args.data, device_of(args.device), args.tta, args.out / "answers")
    check(args, test)
    weights, logs, summaries = gathered(args.weights or [ROOT / "weights"])

    results = collect(weights, test)
    results += [test.ensemble(name, list(map(Path, files))) for name, *files in args.ensemble]
    here = {result["run"]: result["weights"] for result in results}
    shown = {(result["run"], result["tta"]) for result in results}
    for result in filter(None, map(read_result, summaries)):
        # Weights of that name, or of a member's, that were trained anew since make it a figure of the past.
        sources = result.get("members", [[result["run"], result["weights"]]])
        past = any(here.get(run, mark) != mark for run, mark in sources)
        if result["data"] == test.digest and not past and (result["run"], result["tta"]) not in shown:
            results.append(result)
    if not results:
        raise UserError("no finished weights and no results: train first (`make baseline`), or name weights files")

    args.out.mkdir(exist_ok=True)
    official = test.digest == data.OFFICIAL["test"]
    table = group(results)
    words = in_words(table)
    note = NOTE.format(images=f"{next((result['images'] for result in results if 'images' in result), 0):,}")
    compared = compare(args.compare, test) if args.compare else None
    pictures = draw(args.out, table, results, read_logs(logs), official)
    source = "the official CIFAR-10" if official else "the synthetic"
    summary = f"{len(results)} run{'s' * (len(results) > 1)}, scored on {source} test images."
    text = f"{markdown(words)}\n{note}\n"
    write_text(args.out / "results.md", text)
    write_text(args.out / "results.csv", table.to_csv(index=False))
    write_text(args.out / "report.html", page(words, note, summary, args.out, pictures, compared, official))
    if args.readme:
        into_readme(args.readme, text, args.section)
    print(text)
    if compared:
        print(f"{compared}\n")
    print(f"{args.out / 'report.html'}: {summary}")


if __name__ == "__main__":
    main()
