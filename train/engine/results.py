"""From weights to the table of results, in three steps:

    scorer = Scorer("data", device, tta=False, out=Path("weights/report"), beside=True)
    results = [scorer.result([network]) for network in predict.load(files)]     # a dict of plain values for each
    table = group(results)                  # a DataFrame: a row for all runs that differ by their seed only

A result says how weights came about and what they score. It is kept as JSON in results/, so that it outlives the
weights: `read_result` gives it back. Texts and the page are made of the table by `page`, pictures by `plots`.
"""

import json
import math
import os
import re
import shlex
from collections import Counter
from functools import cached_property

import pandas as pd
import torch

import models
from train.engine import checkpoint, data, people, predict
from train.engine.command import UserError, count_of, short_path, warn
from train.engine.loop import SPARED
from train.engine.predict import ENVIRONMENT, join_distinct, total_epochs

FORMAT = "result/1"
# What a result takes over from the provenance, None where older weights do not know it; and what it says of answers.
ORIGIN = ("run", "params", "over_budget", "include_test", "hardware", "seconds", "date", "command", "make", "torch",
          "commit", "threads", "unlabelled")
# What a result is of no use without.
NEEDED = {"weights", "data", "tta", "model", "recipe", "macs", "training_data", *ORIGIN[:6]}
SCORES = ("images", "top1", "nll", "ece", "per_class", "confusion", "reliability", "humans")
HUMANS = ("top1_corrected", "top1_apart")  # of `people.figures`, what the table shows
# Of the table; seconds are the mean over the runs, between the fastest and the slowest.
COLUMNS = ("model", "name", "parameters", "macs", "over_budget", "contaminated", "epochs", "protocol", "tta",
           "networks", "top1", "deviation", "n", "low", "high", *HUMANS, "images", "pflop", "seconds", "fastest",
           "slowest", "precision", *ENVIRONMENT, "unlabelled", "make", "command", "runs", "folder", "weights")


class Scorer:
    """Scores Networks on one test set, each once.

    path: --data, read only when an answer is missing; out: the folder of the report, where answers are kept; beside:
    whether a result stands in results/ beside its weights, or else in the report; humans: the CSV of `people`, read
    at once. UserError where that does not fit.
    """

    def __init__(self, path, device, tta, out, beside, humans=None):
        self.path, self.device, self.tta, self.out, self.beside = path, device, tta, out, beside
        self.suffix = "-tta" if tta else ""
        self.people = people.read(humans, self.dataset) if humans else None

    @cached_property
    def dataset(self):
        return data.load(self.path, "test")

    @cached_property
    def digest(self):
        """That of the test images, which without loading them can only be the official one."""
        return self.dataset.digest if self.path == "synthetic" else data.OFFICIAL["test"]

    def load(self, files, where):
        """The Networks of files that may be scored here; UserError, or Contaminated, for any other."""
        networks = predict.load(files, self.device)
        for network in networks:
            network.check_clean(where)
            network.check_kind(self.path)
        return networks

    def answers(self, networks):
        """Logits float32 (N, 10), the mean over the networks: of each the kept ones, or those of a pass, then kept."""
        logits = []
        for network in networks:
            name = f"{network.file.stem}-{network.fingerprint}{self.suffix}-{self.digest[:8]}.pt"
            kept = self.out / "answers" / name
            try:
                logits.append(checkpoint.load(kept)["logits"])
            except (FileNotFoundError, checkpoint.Damaged, UserError, KeyError):
                logits.append(predict.answers([network], self.dataset.images, self.tta))
                kept.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.save(kept, {"logits": logits[-1]})
        return torch.stack(logits).mean(0)

    def accuracy(self, networks):
        return predict.accuracy(self.answers(networks), self.dataset.labels)

    def result(self, networks, name=None):
        """The result of one network, or of several that answer by the mean of their logits under a `name`; it is kept.

        Scores are taken over from what was kept of the same weights: images are answered where nothing was.
        """
        file, fingerprint, about = networks[0].file, networks[0].fingerprint, describe(networks[0])
        if name:
            words = ["python", "train/evaluate.py", *(short_path(network.file) for network in networks)]
            words += ["--tta"] * self.tta + ["--data", "synthetic"] * (self.path == "synthetic")
            members = sorted([network.provenance["run"], network.full_fingerprint] for network in networks)
            file, fingerprint = file.with_name(f"{name}.pt"), checkpoint.digest(members)[:16]
            about = {"run": name, "members": members, "command": shlex.join(words)}
            about |= combine([describe(network) for network in networks])

        beside = file.parent / "results" / f"{file.stem}{self.suffix}.json"
        ours = self.out / "results" / f"{file.stem}-{fingerprint[:8]}{self.suffix}.json"
        # A report beside its weights is at home. Scores of generated images would stand among those of real ones.
        home = self.beside or self.out.resolve() == file.resolve().parent / "report"
        writable = all(os.access(folder, os.W_OK) for folder in (file.parent, beside.parent) if folder.exists())
        kept = beside if home and writable and self.path != "synthetic" else ours
        if name and (other := read_result(kept)) and runs_in(other) != runs_in(about):
            raise UserError(f"{short_path(kept)} is the result of other weights, which would be lost: name this "
                            f"ensemble by --ensemble, or move that file away")

        result = {"format": FORMAT, "weights": fingerprint, "data": self.digest, "tta": self.tta, **about}
        if not about["include_test"]:
            for old in filter(None, map(read_result, (ours, beside))):
                if all(old[name] == result[name] for name in ("weights", "data", "tta")):
                    result |= {name: old[name] for name in SCORES if name in old}
            if self.people or "top1" not in result:
                logits, labels = self.answers(networks), self.dataset.labels
                result |= {"images": len(labels), **predict.figures(logits, labels),
                           "reliability": predict.reliability(logits, labels)}
                result |= {"humans": people.figures(logits, labels, self.people)} if self.people else {}

        before = read_result(kept)
        if before and full_fingerprint(before) != full_fingerprint(result):
            warn(f"{short_path(kept)} was the result of other weights of that name, and is replaced")
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(kept, json.dumps(result) + "\n")
        return result | {"folder": file.resolve().parent}


def read_result(file):
    """A result that a Scorer kept, with the folder of its weights; None where there is none, or another version's."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        usable = result["format"] == FORMAT and result.keys() >= NEEDED
        return result | {"folder": file.resolve().parents[1]} if usable else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def runs_in(result):
    """The names of the runs that a result is of, one or the members of an ensemble."""
    return sorted(run for run, _ in result.get("members", [[result["run"], ""]]))


# ---------------------------------------------------------------- how weights came about


def describe(network):
    """What a result says about how the weights came about."""
    about = network.provenance
    return {"model": about["name"], **{name: about.get(name) for name in ORIGIN}, "trained_on": about["images"],
            "params": network.params, "over_budget": network.over_budget,
            "macs": models.macs(network.model), "recipe": network.content["recipe"], "weights": network.fingerprint,
            "whole": network.full_fingerprint, "before": network.before, "training_data": network.content["data"]}


def combine(members):
    """The description of several networks that answer together: their sums, and of their recipes what they share."""
    recipes = [member["recipe"] for member in members]
    shared = dict(item for item in recipes[0].items() if all(item in recipe.items() for recipe in recipes))
    total = {name: sum(member[name] for member in members) for name in ("params", "macs")}
    # Two members may have begun with the same weights, whose work was done once.
    once = {full_fingerprint(run): (run, member["macs"]) for member in members for run in runs_of(member)}
    runs = [run for run, _ in once.values()]
    return total | {name: join_distinct(run.get(name) for run in runs) for name in ENVIRONMENT} | {
        "model": " + ".join(f"{count} {model}" for model, count in Counter(m["model"] for m in members).items()),
        "include_test": False, "over_budget": total["params"] > models.BUDGET,
        "pflop": sum(work(*run) for run in once.values()), "seconds": sum(run["seconds"] for run in runs),
        "unlabelled": max(run.get("unlabelled") or 0 for run in runs), "date": max(m["date"] for m in members),
        "recipe": shared | {"seed": 0, "limit": shared.get("limit"),
                            "epochs": max(total_epochs(runs_of(member)) for member in members)},
        "training_data": checkpoint.digest([member["training_data"] for member in members])}


def full_fingerprint(run):
    """That of a result's weights, or of a run's, as they were trained: a copy in half precision has the same."""
    return run.get("whole", run["weights"])


def runs_of(result):
    """The run of a result, and those whose weights it began with: all that it took."""
    return [result, *result.get("before", [])]


def pflop(result):
    """The work of training in 1e15 floating-point operations, or None for older results of several networks.

    What teachers had to do is not in it.
    """
    if "members" in result:
        return result.get("pflop")
    return sum(work(run, result["macs"]) for run in runs_of(result))


def work(run, macs):
    """That of one run in 1e15: a multiply-accumulate is two operations, a step three times the work of an answer."""
    recipe = run["recipe"]
    held_out = 0 if recipe["fold"] is None else 1 / data.FOLDS
    images = run.get("trained_on") or (recipe["limit"] or data.SIZES["train"]) * (1 - held_out)
    area = 1 - recipe.get("small", 0) * SPARED  # a part of the run is at fewer pixels
    return 2 * 3 * macs * images * recipe["epochs"] * area / 1e15


# ---------------------------------------------------------------- the table


def family(run):
    """The name of a run without its fold and seed, as in seresnet164-fold3 or student-seed1."""
    return re.sub(r"-(fold\d|noval|s(eed)?-?\d+)(?=-|$)", "", run)


def group(results):
    """The table, a DataFrame of plain values: a row for all runs of a folder that differ by their seed only.

    The best comes first. The same weights under two names are one run, and so is a copy in half precision beside the
    whole; figures that not all runs have are missing.
    """
    def seed_and_form(result):
        return result["recipe"]["seed"], result["weights"] != full_fingerprint(result)

    rows = []
    for result in sorted(results, key=seed_and_form):
        recipe, runs = result["recipe"], runs_of(result)
        limits, unlabelled = [run["recipe"]["limit"] for run in runs], max(run.get("unlabelled") or 0 for run in runs)
        protocol = [f"mean of {len(result['members'])}" if "members" in result else
                    "noval" if recipe["fold"] is None else f"fold {recipe['fold']}"]
        protocol += [f"{max(limits):,} images"] if None not in limits else []
        protocol += [f"{unlabelled:,} unlabelled images"] if unlabelled else []
        protocol += ["with the test images"] if result["include_test"] else []
        protocol += [f"from weights of {count_of(total_epochs(runs[1:]), 'epoch')}"] if runs[1:] else []
        protocol += ["TTA"] if result["tta"] else []
        places = {name: join_distinct(run.get(name) for run in runs) for name in ENVIRONMENT}
        places["precision"] = join_distinct(run["recipe"].get("precision") for run in runs)
        seconds = sum(run["seconds"] for run in runs)
        rows.append(result.get("humans", {}) | result | places | {
            "name": family(result["run"]), "seed": recipe["seed"], "fingerprint": full_fingerprint(result),
            "epochs": total_epochs(runs), "protocol": ", ".join(protocol),
            "seconds": seconds, "fastest": seconds, "slowest": seconds,
            "networks": len(result.get("members", [result])),
            "deviation": result.get("top1"), "n": 1, "pflop": pflop(result), "unlabelled": unlabelled,
            "make": result.get("make") or "", "command": " && ".join(run["command"] or "" for run in reversed(runs)),
            "alike": f"{result['folder']} {key_without_seed(result)}"})
    runs = pd.DataFrame(rows).drop_duplicates(["fingerprint", "tta"])
    # Two runs of one seed, on other machines perhaps, are no two seeds: the second begins another row.
    runs["alike"] += runs.groupby(["alike", "seed"]).cumcount().map(" {}".format)
    runs = runs.rename(columns={"params": "parameters", "include_test": "contaminated", "run": "runs"})
    runs = runs.reindex(columns=[*COLUMNS, "alike"]).astype({"pflop": float})

    mean = pd.Series.mean  # groupby's own adds up in another order, which is another second digit at times
    ways = dict.fromkeys(COLUMNS, "first") | dict.fromkeys(("precision", *ENVIRONMENT), join_distinct)
    ways |= dict.fromkeys(HUMANS, lambda values: values.mean(skipna=False))
    ways |= {"top1": mean, "deviation": pd.Series.std, "n": "sum", "seconds": mean, "fastest": "min", "slowest": "max",
             "runs": " ".join}
    table = runs.groupby("alike", sort=False).agg(ways)
    for row in table[~table["contaminated"]].itertuples():
        table.loc[row.Index, ["low", "high"]] = wilson(row.top1 / 100 * row.images, row.images)
    table = table.drop(columns=[name for name in HUMANS if table[name].isna().all()])
    table["name"] = shortest_unique_names([folder / name for folder, name in zip(table["folder"], table["name"])])
    table["folder"] = table["folder"].map(short_path)
    return table.sort_values(["top1", "model"], ascending=[False, True], na_position="last", ignore_index=True)


def shortest_unique_names(paths):
    """For each path as many of its last parts as no other has, joined by slashes."""
    short, others = [], set(paths)
    for path in paths:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in others) > 1:
            depth += 1
        short.append("/".join(path.parts[-depth:]))
    return short


def key_without_seed(result):
    """A text that runs which differ by their seed only have in common."""
    recipe = {name: value for name, value in result["recipe"].items() if name != "seed"}
    parts = [result["model"], result["tta"], result["training_data"], recipe, result.get("members")]
    return json.dumps(parts, sort_keys=True)


def wilson(right, total, z=1.959963984540054):
    """The 95 % interval, (low, high) in percent, of a share of which `right` of `total` were observed (Wilson 1927)."""
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return tuple(100 * min(1, max(0, bound / (1 + z * z / total))) for bound in (middle - half, middle + half))
