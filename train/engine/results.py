"""What weights scored on the test set: one summary per file, and the rows of a table.

    scorer = Scorer("data", device, tta=False, out=Path("weights/report"), beside=True)
    results = [scorer.result(network) for network in predict.load(files)]
    table = group(results)          # one row for all runs that differ by their seed only

A summary is a dict of plain values, kept in results/ so that it outlives the weights.
"""

import json
import math
import os
import shlex
from collections import Counter
from functools import cached_property

import pandas as pd
import torch

import models
from train.engine import checkpoint, data, people, predict
from train.engine.command import UserError, short_path
from train.engine.loop import SMALL
from train.engine.recipe import family

FORMAT = "result/1"
# What a summary takes over from the provenance, None where older weights do not know it; and what it says of answers.
ORIGIN = ("run", "params", "over_budget", "include_test", "hardware", "seconds", "date", "command", "make", "torch",
          "commit", "threads", "unlabelled")
SCORES = ("images", "top1", "nll", "ece", "per_class", "confusion", "reliability", "humans")
HUMANS = ("top1_corrected", "top1_apart")  # of `people.figures`, what the table shows


class Scorer:
    """Scores Networks on one test set, each once.

    path: --data, read only when an answer is missing; out: the folder of the report, where answers are kept; beside:
    whether a summary stands in results/ beside its weights, or else in the report; humans: the CSV of `people`, read
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

    def answers(self, network):
        """Logits float32 (N, 10): kept ones, or those of a pass that is then kept."""
        kept = self.out / "answers" / f"{network.file.stem}-{network.mark}{self.suffix}-{self.digest[:8]}.pt"
        try:
            return checkpoint.load(kept)["logits"]
        except (FileNotFoundError, checkpoint.Damaged, UserError, KeyError):
            logits = predict.answers([network], self.dataset.images, self.tta)
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(kept, {"logits": logits})
        return logits

    def accuracy(self, network):
        return predict.accuracy(self.answers(network), self.dataset.labels)

    def result(self, network):
        """The summary of one network."""
        return self.summary(network.file, network.mark, facts(network), lambda: self.answers(network))

    def ensemble(self, name, networks):
        """The summary of several networks that answer by the mean of their logits."""
        words = ["python", "train/evaluate.py", *(short_path(network.file) for network in networks)]
        words += ["--tta"] * self.tta + ["--data", "synthetic"] * (self.path == "synthetic")
        members = sorted([network.provenance["run"], network.mark] for network in networks)
        about = {"run": name, "members": members, "command": shlex.join(words)}
        return self.summary(networks[0].file.with_name(f"{name}.pt"), checkpoint.digest(members)[:16],
                            about | facts_of_all(list(map(facts, networks))),
                            lambda: torch.stack(list(map(self.answers, networks))).mean(0))

    def summary(self, file, mark, about, answers):
        """What is known of these weights, scored by `answers()` where no summary has it yet, and kept."""
        beside = file.parent / "results" / f"{file.stem}{self.suffix}.json"
        ours = self.out / "results" / f"{file.stem}-{mark[:8]}{self.suffix}.json"
        result = {"format": FORMAT, "weights": mark, "data": self.digest, "tta": self.tta, **about}
        if not about["include_test"]:
            for old in filter(None, map(read_result, (ours, beside))):
                if all(old[name] == result[name] for name in ("weights", "data", "tta")):
                    result |= {name: old[name] for name in SCORES if name in old}
            if self.people or "top1" not in result:
                logits, labels = answers(), self.dataset.labels
                result |= {"images": len(labels), **predict.figures(logits, labels),
                           "reliability": predict.reliability(logits, labels)}
                result |= {"humans": people.figures(logits, labels, self.people)} if self.people else {}
        # A report beside its weights is at home. Scores of generated images would stand among those of real ones.
        home = self.beside or self.out.resolve() == file.resolve().parent / "report"
        writable = all(os.access(folder, os.W_OK) for folder in (file.parent, beside.parent) if folder.exists())
        kept = beside if home and writable and self.path != "synthetic" else ours
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(kept, json.dumps(result) + "\n")
        return result | {"folder": file.resolve().parent}


def read_result(file):
    """A summary that a Scorer wrote, with the folder of its weights; None where there is none, or another version's."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return result | {"folder": file.resolve().parents[1]} if result["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- how weights came about


def facts(network):
    """What a summary says about how the weights came about."""
    about = network.provenance
    return {"model": about["name"], **{name: about.get(name) for name in ORIGIN}, "trained_on": about["images"],
            "macs": models.macs(network.model), "recipe": network.content["recipe"],
            "training_data": network.content["data"]}


def facts_of_all(members):
    """The `facts` of several networks that answer together: their sums, and of their recipes what they share."""
    recipes = [member["recipe"] for member in members]
    shared = dict(item for item in recipes[0].items() if all(item in recipe.items() for recipe in recipes))
    total = {name: sum(member[name] for member in members) for name in ("params", "macs", "seconds")}
    return total | joined(members) | {
        "model": " + ".join(f"{count} {model}" for model, count in Counter(m["model"] for m in members).items()),
        "include_test": False, "over_budget": total["params"] > models.BUDGET, "pflop": sum(map(pflop, members)),
        "unlabelled": max(member["unlabelled"] or 0 for member in members), "date": max(m["date"] for m in members),
        "recipe": shared | {"seed": 0, "limit": shared.get("limit"), "epochs": max(r["epochs"] for r in recipes)},
        "training_data": checkpoint.digest([member["training_data"] for member in members])}


def joined(runs):
    """Where and with what several runs were made: each different word once."""
    return {name: ", ".join(dict.fromkeys(str(run[name]) for run in runs if run.get(name)))
            for name in ("hardware", "torch", "commit", "threads")}


def pflop(result):
    """The work of training in 1e15 floating-point operations, or None for older summaries of several networks.

    A multiply-accumulate is two operations, and a step three times the work of an answer. What teachers had to do
    is not in it.
    """
    if "members" in result:
        return result.get("pflop")
    recipe = result["recipe"]
    held_out = 0 if recipe["fold"] is None else 1 / data.FOLDS
    images = result.get("trained_on") or (recipe["limit"] or data.SIZES["train"]) * (1 - held_out)
    area = 1 - recipe.get("small", 0) * (1 - (SMALL / 32)**2)  # a part of the run is at fewer pixels
    return 2 * 3 * result["macs"] * images * recipe["epochs"] * area / 1e15


# ---------------------------------------------------------------- the rows of the table


def group(results):
    """One row of plain values for all runs of a folder that differ by their seed only: a DataFrame, the best first."""
    alike, seen = {}, set()
    for result in sorted(results, key=lambda result: result["recipe"]["seed"]):
        if (result["weights"], result["tta"]) not in seen:  # the same weights under two names are one run
            seen.add((result["weights"], result["tta"]))
            alike.setdefault((str(result["folder"]), same_but_seed(result)), []).append(result)
    table = pd.DataFrame([row_of(runs) for runs in alike.values()])
    table = table.drop(columns=[name for name in HUMANS if table[name].isna().all()])
    paths = [folder / name for folder, name in zip(table["folder"], table["name"])]
    table["name"] = list(map(tell_apart(paths).get, paths))
    table["folder"] = table["folder"].map(short_path)
    return table.sort_values(["top1", "model"], ascending=[False, True], na_position="last", ignore_index=True)


def same_but_seed(result):
    """A text that runs which differ by their seed only have in common."""
    recipe = {name: value for name, value in result["recipe"].items() if name != "seed"}
    parts = [result["model"], result["tta"], result["training_data"], recipe, result.get("members")]
    return json.dumps(parts, sort_keys=True)


def tell_apart(paths):
    """{path: as many of its last parts as no other has, joined by slashes}."""
    paths = set(paths)

    def shortest(path):
        ends = (path.parts[-depth:] for depth in range(1, len(path.parts) + 1))
        return "/".join(next(end for end in ends if sum(other.parts[-len(end):] == end for other in paths) == 1))

    return {path: shortest(path) for path in paths}


def row_of(runs):
    """The row of runs that differ by their seed only; figures that not all of them have are missing."""
    first, recipe = runs[0], runs[0]["recipe"]
    scores = pd.Series([run.get("top1") for run in runs], dtype=float)
    humans = pd.DataFrame([run.get("humans", {}) for run in runs], columns=HUMANS, dtype=float)
    low, high = None, None
    if not first["include_test"]:
        low, high = wilson(scores.mean() / 100 * first["images"], first["images"])
    protocol = [f"mean of {len(first['members'])}" if "members" in first else
                "noval" if recipe["fold"] is None else f"fold {recipe['fold']}"]
    protocol += [f"{recipe['limit']:,} images"] if recipe["limit"] else []
    protocol += [f"{first['unlabelled']:,} unlabelled images"] if first.get("unlabelled") else []
    protocol += ["with the test images"] if first["include_test"] else []
    protocol += ["TTA"] if first["tta"] else []
    return {
        "model": first["model"], "name": family(first["run"]), "parameters": first["params"], "macs": first["macs"],
        "over_budget": first["over_budget"], "contaminated": first["include_test"],
        "epochs": recipe["epochs"], "protocol": ", ".join(protocol), "tta": first["tta"],
        "networks": len(first.get("members", [first])),
        "top1": scores.mean(), "deviation": scores.std(), "n": len(runs), "low": low, "high": high,
        **humans.mean(skipna=False), "images": first.get("images"), "pflop": pflop(first),
        "seconds": sum(run["seconds"] for run in runs) / len(runs), **joined(runs),
        "unlabelled": first.get("unlabelled") or 0, "make": first.get("make") or "", "command": first["command"] or "",
        "runs": " ".join(run["run"] for run in runs), "folder": first["folder"], "weights": first["weights"],
    }


def wilson(right, total, z=1.959963984540054):
    """The 95 % interval, (low, high) in percent, of a share of which `right` of `total` were observed (Wilson 1927)."""
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return tuple(100 * min(1, max(0, bound / (1 + z * z / total))) for bound in (middle - half, middle + half))
