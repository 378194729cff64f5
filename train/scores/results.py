"""Reads results and groups them for the report. `evaluate` writes two files for a network or an ensemble:

    x.json          a result: metrics, config, log and provenance of one network, or of an ensemble
    x.logits.npz    ids (N,), logits float32 (N, 10) and labels (N,) of the test images, to average and to compare

    results = [read_result(Path("weights/a.json")), ...]        # dicts of plain values
    table = group(results)      # a DataFrame: a row for all runs that differ by their seed only
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import models
from train import UserError
from train.data.cifar10 import SIZES, Dataset
from train.data.sources import expand, read_npz
from train.engine import checkpoint, metrics
from train.engine.command import count_of, short_path, warn
from train.engine.loop import SPARED
from train.engine.network import ENVIRONMENT, join_distinct, total_epochs
from train.scores.statistics import wilson

FORMAT = "result/2"
REQUIRED = {"run", "model", "params", "macs", "images", "tta", "test_digest", "fingerprint", "metrics", "config",
            "options", "data", "log", "provenance"}  # what each result has
PLACES = (*ENVIRONMENT, "precision")  # where and with what a network was trained


def result_file(path: str | Path) -> Path:
    """x.json for x.pt, or the path itself; its ~ is replaced."""
    path = expand(path)
    return path.with_suffix(".json") if path.suffix == ".pt" else path


def logits_file(file: Path) -> Path:
    """x.logits.npz of the result x.json."""
    return file.with_name(f"{file.stem}.logits.npz")


def write_result(file: Path, result: dict, test: Dataset, logits: torch.Tensor) -> None:
    """Write a result, and beside it the logits (N, 10) of the images of `test`."""
    arrays = {"ids": test.ids, "logits": logits.numpy(), "labels": test.labels.numpy(),
              "fingerprint": result["fingerprint"]}
    checkpoint.write(logits_file(file), lambda handle: np.savez_compressed(handle, **arrays))
    checkpoint.write_text(file, json.dumps(result) + "\n")


def read_result(file: Path) -> dict:
    """The result in x.json, with its path as `file`; UserError for any other file. It warns if x.pt is newer."""
    result, weights = {}, file.with_name(file.name.removesuffix(".json").removesuffix(".tta") + ".pt")
    if not file.exists():
        command = f"python train/evaluate.py {weights}" + " --tta" * file.name.endswith(".tta.json")
        advice = f": `{command}` writes it" if file.suffix == ".json" else ""
        raise UserError(f"{file} does not exist{advice}")
    with suppress(ValueError, RecursionError):
        result = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or result.get("format") != FORMAT or not REQUIRED <= result.keys():
        raise UserError(f"{file} is no result of train/evaluate.py in the format {FORMAT}")
    if weights.exists() and weights.stat().st_mtime > file.stat().st_mtime:
        warn(f"{file} is older than {weights}: evaluate it again")
    return result | {"file": file}


def kept_logits(result: dict) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """What `read_logits` returns for a result."""
    return read_logits(logits_file(result["file"]), result["fingerprint"])


def read_logits(file: Path, fingerprint: str | None = None) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """(ids (N,), logits float32 (N, 10), labels int64 (N,)) of x.logits.npz; UserError for any other file.

    fingerprint: of the weights to which the logits should belong.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist: train/evaluate.py writes it beside the result (of the published "
                        f"results, only those in weights/results/ladder have logits)")
    try:
        kept = read_npz(file)
        ids, logits, labels, mark = (kept[name] for name in ("ids", "logits", "labels", "fingerprint"))
        logits, labels = logits.astype(np.float32), labels.astype(np.int64)
        if logits.shape != (len(ids), 10) or labels.shape != ids.shape or not np.isfinite(logits).all():
            raise ValueError("they are not of so many images")
    except Exception:  # numpy, zipfile and zlib each fail in their own way
        raise UserError(f"{file} does not hold the logits that train/evaluate.py writes") from None
    if fingerprint not in (None, str(mark)):
        raise UserError(f"{file} holds the logits of other weights than the result beside it: evaluate them again")
    return ids, torch.from_numpy(logits), torch.from_numpy(labels)


# ---------------------------------------------------------------- ensembles


def combine(name: str, members: Sequence[dict], command: str, logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """The result of an ensemble whose mean logits are `logits` (N, 10): sums over its members, and what they share."""
    shared = {key: value for key, value in members[0]["config"].items()
              if all(member["config"].get(key, ()) == value for member in members)}
    # Two members may have started from the same weights, whose work counts once.
    once = {run["fingerprint"]: (run, member["macs"]) for member in members for run in runs_of(member)}
    runs = [run for run, _ in once.values()]
    marks = sorted([member["run"], member["fingerprint"]] for member in members)
    params, macs = (sum(member[key] for member in members) for key in ("params", "macs"))
    counts = Counter(member["model"] for member in members)
    provenance = {key: join_distinct(run[key] for run in runs) for key in PLACES} | {
        "run": name, "command": command, "params": params, "over_budget": params > models.BUDGET, "include_test": False,
        "source": members[0]["provenance"]["source"], "seconds": sum(run["seconds"] for run in runs),
        "unlabelled": max(run["unlabelled"] for run in runs), "date": max(run["date"] for run in runs), "before": []}
    return {"format": FORMAT, "run": name, "members": marks,
            "model": " + ".join(f"{count} {model}" for model, count in counts.items()), "params": params, "macs": macs,
            "images": len(labels), "tta": members[0]["tta"], "test_digest": members[0]["test_digest"],
            "fingerprint": checkpoint.digest(marks)[:16], "metrics": metrics.summary(logits, labels),
            "config": shared | {"seed": 0, "epochs": max(total_epochs(runs_of(member)) for member in members),
                                "alpha": max(run["config"].get("alpha", 0) for run in runs)},
            "options": None, "pflop": sum(work(*run) for run in once.values()),
            "data": checkpoint.digest([member["data"] for member in members]), "log": None, "provenance": provenance}


def mean_of_kept(file: Path, members: Sequence[dict]) -> dict:
    """The result of an ensemble, as if in `file`, by its members' kept logits, no TTA; UserError if they do not fit."""
    marks = [member["fingerprint"] for member in members]
    if len(set(marks)) < len(marks):
        raise UserError(f"the ensemble {file.stem} takes each network once")
    kept = list(map(kept_logits, members))
    ids, _, labels = kept[0]
    if any(not np.array_equal(ids, other) for other, *_ in kept):
        raise UserError(f"the ensemble {file.stem} mixes test images")
    weights = [short_path(member["file"].with_name(f"{member['run']}.pt")) for member in members]
    command = " ".join(["python train/evaluate.py", *weights])
    mean = sum(logits for _, logits, _ in kept) / len(kept)
    return combine(file.stem, members, command, mean, labels) | {"file": file}


# ---------------------------------------------------------------- the work of training


def runs_of(result: dict) -> list[dict]:
    """The run of a result, and those whose weights it began with, as in `Network.history`."""
    own = {"config": result["config"], "fingerprint": result["fingerprint"]}
    return [result["provenance"] | own, *result["provenance"]["before"]]


def pflop(result: dict) -> float:
    """The work of training in 1e15 floating-point operations, without that of teachers."""
    return result["pflop"] if "members" in result else sum(work(run, result["macs"]) for run in runs_of(result))


def work(run: dict, macs: int) -> float:
    """PFLOP of one run: a multiply-accumulate is two operations, a step three times the work of a forward pass."""
    area = 1 - run["config"]["low_res"] * SPARED  # part of the run is at low resolution
    return 2 * 3 * macs * run["images"] * run["config"]["epochs"] * area / 1e15


# ---------------------------------------------------------------- the table


def group(results: Iterable[dict]) -> pd.DataFrame:
    """The table: one row for all runs that differ by their seed only, best first.

    Seeds are in one folder or in folders seed1, seed2 of it. The same weights under two names are one run, unless one
    is `control`. Two runs with the same seed are not pooled.
    """
    rows = []
    for result in sorted(results, key=lambda result: result["config"]["seed"]):
        runs, top1, folder = runs_of(result), result["metrics"]["top1"], home(result["file"])
        seconds = sum(run["seconds"] for run in runs)
        rows.append({
            "model": result["model"], "name": family(result["run"]), "parameters": result["params"],
            "macs": result["macs"], "over_budget": result["params"] > models.BUDGET, "epochs": total_epochs(runs),
            "protocol": protocol(result), "augmentation": augmentation(result["config"]),
            "tta": result["tta"], "top1": top1, "std": top1, "n": 1, "low": None,
            "high": None, "images": result["images"], "pflop": pflop(result),
            "taught": any(run["config"].get("alpha", 0) > 0 for run in runs),  # by teachers, whose work does not count
            "seconds": seconds, "fastest": seconds, "slowest": seconds,
            **{key: join_distinct(run[key] for run in runs) for key in PLACES},
            "command": " && ".join(run["command"] for run in reversed(runs)), "runs": result["run"], "folder": folder,
            "fingerprint": result["fingerprint"], "seed": result["config"]["seed"],
            "control": family(result["run"]) == "control",  # which may be the same run as teacher-all
            "alike": f"{folder} {key_without_seed(result)}"})
    runs = pd.DataFrame(rows).drop_duplicates(["fingerprint", "tta", "control"])
    runs["alike"] += runs.groupby(["alike", "seed"]).cumcount().map(" {}".format)  # a repeated seed is its own row

    mean = pd.Series.mean  # groupby's own mean adds in another order, which sometimes changes the second digit
    ways = dict.fromkeys(runs.columns.drop(["seed", "alike", "control"]), "first")
    ways |= dict.fromkeys(PLACES, join_distinct) | {
        "top1": mean, "std": pd.Series.std, "n": "sum", "seconds": mean, "fastest": "min", "slowest": "max",
        "runs": " ".join}
    table = runs.groupby("alike", sort=False).agg(ways)
    table[["low", "high"]] = [wilson(row.top1 / 100 * row.images, row.images) for row in table.itertuples()]
    table["name"] = shortest_unique_names(table["folder"] / table["name"])
    return table.sort_values(["top1", "model"], ascending=[False, True], ignore_index=True)


def protocol(result: dict) -> str:
    """What the networks of a result were trained on, and how they were scored: `fold 0, 5,000 images, TTA`."""
    config, runs = result["config"], runs_of(result)
    generated = result["provenance"]["source"].startswith("synthetic")
    whole = 5_000 if generated else SIZES["train"]  # a larger limit is none
    limit = max(min(run["config"].get("limit") or whole, whole) for run in runs)
    unlabelled = max(run["unlabelled"] for run in runs)
    words = [f"mean of {len(result['members'])}" if "members" in result else
             "noval" if config["fold"] is None else f"fold {config['fold']}"]
    words += [f"{limit:,} images"] if limit < whole else []
    words += [f"{unlabelled:,} unlabelled images"] if unlabelled else []
    words += [f"from weights of {count_of(total_epochs(runs[1:]), 'epoch')}"] if runs[1:] else []
    return ", ".join(words + ["TTA"] * result["tta"])


def augmentation(config: dict) -> str:
    """The augmentation of a run, in the words of its flags; `various` if the networks of an ensemble differ."""
    names = [*config.get("augment", ["various"]), config.get("mix", "various")]
    return ", ".join(dict.fromkeys(name for name in names if name != "none")) or "none"


def home(file: Path) -> Path:
    """The folder of a result without its seed: quick for quick/seed1, quick/images-a for quick/seed1/images-a."""
    parts = file.resolve().parent.parts
    return Path(*parts[:-2], *(part for part in parts[-2:] if not re.fullmatch(r"seed\d+", part)))


def family(run: str) -> str:
    """The name of a run without its fold and seed, as in seresnet164-fold3 or student-seed1."""
    return re.sub(r"-(fold\d|noval|seed\d+)(?=-|$)", "", run)


def shortest_unique_names(paths: Sequence[Path]) -> list[str]:
    """For each path, the fewest of its last parts that no other path has, joined by slashes."""
    short = []
    for path in paths:
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in paths if other != path):
            depth += 1
        short.append("/".join(path.parts[-depth:]))
    return short


def key_without_seed(result: dict) -> str:
    """A text that the results of runs share if these differ by their seed only."""
    config = {name: value for name, value in result["config"].items() if name != "seed"}
    return json.dumps([result["model"], result["tta"], result["data"], config, result.get("members")], sort_keys=True)
