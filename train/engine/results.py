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
from train.engine import checkpoint, data, predict
from train.engine.command import UserError, short_path
from train.engine.loop import SMALL
from train.engine.recipe import family

FORMAT = "result/1"
# What a summary takes over from the provenance: of every file, and of those that know it.
KNOWN = ("run", "params", "over_budget", "include_test", "hardware", "seconds", "date")
NEWER = ("command", "make", "torch", "commit", "threads", "unlabelled")


# ---------------------------------------------------------------- one test pass per weights file


class Scorer:
    """Scores Networks on one test set, each once.

    path: --data, read only when an answer is missing; out: the folder of the report, where answers are kept; beside:
    whether a summary stands in results/ beside its weights, or else in the report.
    """

    def __init__(self, path, device, tta, out, beside):
        self.path, self.device, self.tta, self.out, self.beside = path, device, tta, out, beside

    @cached_property
    def dataset(self):
        return data.load(self.path, "test")

    @cached_property
    def digest(self):
        """That of the test images, which without loading them can only be the official one."""
        return self.dataset.digest if self.path == "synthetic" else data.OFFICIAL["test"]

    def load(self, files, where=""):
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

    @property
    def suffix(self):
        return "-tta" if self.tta else ""

    def right(self, network):
        """Which test images are answered right, bool (N,)."""
        return self.answers(network).argmax(1) == self.dataset.labels

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
        """The figures known of these weights, or those of `answers()`, with what is to be said about them, and kept."""
        beside = file.parent / "results" / f"{file.stem}{self.suffix}.json"
        ours = self.out / "results" / f"{file.stem}-{mark[:8]}{self.suffix}.json"
        result = {"format": FORMAT, "weights": mark, "data": self.digest, "tta": self.tta, **about}
        if not about["include_test"]:
            result |= self.known(mark, beside, ours) or self.score(answers())
        kept = beside if self.may_write_beside(file) else ours
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(kept, json.dumps(result) + "\n")
        return result | {"folder": file.resolve().parent}

    def may_write_beside(self, file):
        """Never of generated images, which would stand among the real ones; a report beside its weights is at home."""
        wanted = self.beside or self.out.resolve() == file.resolve().parent / "report"
        folders = [folder for folder in (file.parent, file.parent / "results") if folder.exists()]
        return wanted and self.path != "synthetic" and all(os.access(folder, os.W_OK) for folder in folders)

    def known(self, mark, *files):
        """The figures of a summary of the same weights on the same images, or None."""
        for result in filter(None, map(read_result, files)):
            if (result["weights"], result["data"], result["tta"]) == (mark, self.digest, self.tta) and "top1" in result:
                return {name: result[name] for name in (
                    "images", "top1", "nll", "ece", "per_class", "confusion", "reliability")}

    def score(self, logits):
        """What a summary says about one set of answers."""
        return {"images": len(self.dataset), **predict.figures(logits, self.dataset.labels),
                "reliability": predict.reliability(logits, self.dataset.labels)}


def facts(network):
    """What a summary says about how the weights came about."""
    about = network.provenance
    kept = {name: about[name] for name in KNOWN} | {name: about.get(name) for name in NEWER}
    return {"model": about["name"], **kept, "trained_on": about["images"], "macs": models.macs(network.model),
            "recipe": network.content["recipe"], "training_data": network.content["data"]}


def facts_of_all(members):
    """The `facts` of several networks that answer together: their sums, and of their recipes what they share."""
    recipes = [member["recipe"] for member in members]
    shared = {name: value for name, value in recipes[0].items()
              if all(name in recipe and recipe[name] == value for recipe in recipes)}
    counts = Counter(member["model"] for member in members)
    total = {name: sum(member[name] for member in members) for name in ("params", "macs", "seconds")}
    return total | {
        "model": " + ".join(f"{count} {model}" for model, count in counts.items()), "include_test": False,
        "over_budget": total["params"] > models.BUDGET, "pflop": sum(map(pflop, members)),
        "unlabelled": max(member["unlabelled"] or 0 for member in members), "date": max(m["date"] for m in members),
        **{name: ", ".join(dict.fromkeys(str(member[name]) for member in members if member[name]))
           for name in ("hardware", "torch", "commit", "threads")},
        "recipe": shared | {"seed": 0, "limit": shared.get("limit"), "epochs": max(r["epochs"] for r in recipes)},
        "training_data": checkpoint.digest([member["training_data"] for member in members]),
    }


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


def read_result(file):
    """A summary that a Scorer wrote, with the folder of its weights; None where there is none, or another version's."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return result | {"folder": file.resolve().parents[1]} if result["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- the rows of the table


def group(results):
    """One row of plain values for all runs of a folder that differ by their seed only: a DataFrame, the best first."""
    alike, seen = {}, set()
    for result in sorted(results, key=lambda result: result["recipe"]["seed"]):
        if (result["weights"], result["tta"]) not in seen:  # the same weights under two names are one run
            seen.add((result["weights"], result["tta"]))
            alike.setdefault((str(result["folder"]), same_but_seed(result)), []).append(result)
    table = pd.DataFrame([row_of(runs) for runs in alike.values()])
    paths = [folder / name for folder, name in zip(table["folder"], table["name"])]
    table["name"] = list(map(tell_apart(paths).get, paths))
    table["folder"] = table["folder"].map(short_path)
    return table.sort_values(["top1", "model"], ascending=[False, True], na_position="last", ignore_index=True)


def wilson(right, total, z=1.959963984540054):
    """The 95 % interval, (low, high) in 0..1, of a share of which `right` of `total` were observed (Wilson 1927)."""
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / (1 + z * z / total)), min(1.0, (middle + half) / (1 + z * z / total))


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
    """The row of runs that differ by their seed only."""
    first = runs[0]
    scores = pd.Series([run.get("top1") for run in runs], dtype=float)
    row = {
        "model": first["model"], "name": family(first["run"]), "parameters": first["params"], "macs": first["macs"],
        "over_budget": first["over_budget"], "contaminated": first["include_test"],
        "epochs": first["recipe"]["epochs"], "protocol": protocol(first), "tta": first["tta"],
        "networks": len(first.get("members", [first])),
        "top1": scores.mean(), "deviation": scores.std(), "n": len(runs), "low": None, "high": None,
        "images": first.get("images"), "pflop": pflop(first),
        "seconds": sum(run["seconds"] for run in runs) / len(runs),
        **{name: ", ".join(dict.fromkeys(str(run[name]) for run in runs if run.get(name)))
           for name in ("hardware", "torch", "commit", "threads")},
        "unlabelled": first.get("unlabelled") or 0, "make": first.get("make") or "", "command": first["command"] or "",
        "runs": " ".join(run["run"] for run in runs), "folder": first["folder"], "weights": first["weights"],
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
    words += [f"{result['unlabelled']:,} unlabelled images"] if result.get("unlabelled") else []
    words += ["with the test images"] if result["include_test"] else []
    return ", ".join(words + (["TTA"] if result["tta"] else []))
