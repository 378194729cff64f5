"""Score weights on the official test set; no other command does so (`report` reads the results of this one).

    python train/evaluate.py                                    the released network
    python train/evaluate.py weights/quick/student.pt           also writes student.json and student.logits.npz there
    python train/evaluate.py weights/quick/teacher-*.pt --tta   an ensemble, by the mean of the logits
    python train/evaluate.py weights/quick/*.pt --each          several networks, each separately
    python train/evaluate.py weights/resnet18-fold0.pt --calibrate --store-temperature --mistakes mistakes.png
    python train/evaluate.py weights/resnet18-fold0.pt --cifar10c CIFAR-10-C

The result of one network on the whole test set is written beside its weights, for `train/report.py` and
`train/compare.py`; that of an ensemble, or of a part of the set, only where --json says. About a minute per network on
two CPU cores; --cifar10c is 75 passes more.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import models
from train import UserError
from train.data import cifar10
from train.data.sources import expand
from train.engine import checkpoint, metrics
from train.engine.command import (
    add_common,
    check_replaceable,
    check_target,
    command,
    command_line,
    integer,
    parser,
    short_path,
    warn,
)
from train.engine.device import device_of
from train.engine.network import Network, load_all, mean_logits
from train.engine.progress import progress
from train.scores import plots
from train.scores.results import FORMAT, combine, logits_file, write_result
from train.scores.statistics import wilson

# Hendrycks and Dietterich 2019. Each file holds the test images in their official order, at severity 1, then 2, to 5.
CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
               "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
               "jpeg_compression")
SEVERITIES = 5
RESULT = '{"format": "result/'  # what a result begins with


def load_groups(args: argparse.Namespace, device: torch.device) -> list[list[Network]]:
    """The Networks, each list to be scored as one; --each leaves out a file that cannot be scored, with a warning."""
    groups = []
    for files in [[file] for file in args.weights] if args.each and args.weights else [args.weights]:
        try:
            networks = load_all(files, device)
            for network in networks:
                network.check_clean()
                network.check_kind(args.data)
            beside(networks, args)
            groups.append(networks)
        except UserError as error:
            if not (args.each and files and files[0].exists()):
                raise
            warn(f"left out: {error}")
    return groups


def common_fold(networks: Sequence[Network], dataset: cifar10.Dataset) -> cifar10.Dataset:
    """The images of the whole training set that every network has held out; UserError if there are none."""
    for network in networks:
        if network.fold is None:
            raise UserError(f"--calibrate: {network.file} has held out no fold, or its teachers saw that fold")
        if network.fold != networks[0].fold:
            raise UserError("--calibrate: these networks held out different folds, so no image is new to all")
    # The images held out with a smaller limit are among those of a larger one.
    part = min((network.split(dataset)[1] for network in networks), key=lambda part: len(part or ()))
    if not part:
        raise UserError(f"--calibrate: no image of fold {networks[0].fold} is within the --limit of the training")
    return part


def read_corruptions(folder: Path) -> dict[str, np.ndarray]:
    """{name: uint8 array} of CIFAR-10-C, including labels, memory-mapped; UserError for other files."""
    arrays, images = {}, SEVERITIES * cifar10.SIZES["test"]
    for name in ("labels", *CORRUPTIONS):
        file, shape = folder / f"{name}.npy", (images,) if name == "labels" else (images, 32, 32, 3)
        if not file.is_file():
            raise UserError(f"--cifar10c: {file} does not exist; labels.npy and fifteen others are needed")
        try:
            arrays[name] = np.load(file, mmap_mode="r")
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError
        except Exception:  # a damaged header fails in any of numpy's ways
            raise UserError(f"--cifar10c: {file} is not an array of numpy") from None
        if (arrays[name].dtype, arrays[name].shape) != (np.uint8, shape):
            raise UserError(f"--cifar10c: {file} is {arrays[name].dtype} {arrays[name].shape}, not uint8 {shape}")
    if arrays["labels"].max() >= len(cifar10.CLASSES):
        raise UserError(f"--cifar10c: {folder / 'labels.npy'} should hold labels 0 to 9")
    return arrays


def score_corruptions(networks: Sequence[Network], arrays: dict, tta: bool, limit: int | None) -> dict:
    """{corruption: [error in percent at severity 1 to 5]}, which it also prints; limit: the first of each severity."""
    count, errors = cifar10.SIZES["test"], {name: [] for name in CORRUPTIONS}
    for name, severity in progress([(n, s) for n in CORRUPTIONS for s in range(SEVERITIES)], "CIFAR-10-C", "set"):
        part = slice(severity * count, severity * count + min(count, limit or count))
        images, labels = cifar10.channels_first(arrays[name][part]), torch.tensor(arrays["labels"][part]).long()
        errors[name].append(100 - metrics.accuracy(mean_logits(networks, images, tta, bars=False), labels))
    print("error in percent on CIFAR-10-C, by severity", *(f"{n:>7}" for n in [*range(1, SEVERITIES + 1), "mean"]))
    for name, values in errors.items():
        print(f"{name:43}", *(f"{value:7.2f}" for value in [*values, np.mean(values)]))
    print(f"mean corruption error {np.mean([*errors.values()]):.2f} %")
    return errors


def flags() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="*", type=expand, metavar="WEIGHTS",
                           help="one weights file, or several as an ensemble (default: the released network)")
    add_common(arguments)
    add = arguments.add_argument
    add("--each", action="store_true", help="score several networks separately")
    add("--tta", action="store_true", help="average the logits of each image and its mirror image")
    add("--limit", type=integer(1), metavar="N", help="score only N test images, always the same, for a trial")
    add("--json", type=expand, metavar="FILE", help="write the result to FILE, not beside the weights")
    add("--calibrate", action="store_true", help="fit a temperature on the held-out fold")
    add("--store-temperature", action="store_true", help="keep that temperature in the weights file, for probabilities")
    add("--cifar10c", type=expand, metavar="FOLDER", help="also score the corrupted test sets of CIFAR-10-C")
    add("--mistakes", type=expand, metavar="PNG", help="write a picture of the most confident mistakes")
    add("--verbose", action="store_true", help="also say how the weights were trained")
    return arguments


def main() -> None:
    args = flags().parse_args()
    # 1. Refuse wrong flags and files before the work.
    check_target("--json", args.json, ".json", RESULT)
    check_target("--mistakes", args.mistakes, ".png")
    device = device_of(args.device)
    if args.each and len(args.weights) > 1 and (args.json or args.mistakes or args.cifar10c):
        raise UserError("--each scores several networks: leave out --json, --mistakes and --cifar10c")
    groups = load_groups(args, device)
    if args.store_temperature and (not args.calibrate or args.tta or any(group[1:] for group in groups)):
        raise UserError("--store-temperature needs --calibrate, one network, and no --tta")
    if args.cifar10c and args.data == "synthetic":
        raise UserError("--cifar10c holds corrupted CIFAR-10 images, not generated ones")
    for network in chain(*groups) if args.store_temperature else ():
        check_target("--store-temperature", network.file, ".pt")
        with checkpoint.RunFiles(network.file, log=False):  # or a UserError: they are being trained again
            pass
    corrupted = read_corruptions(args.cifar10c) if args.cifar10c else None
    training = cifar10.load(args.data, "train") if args.calibrate else None
    folds = [common_fold(group, training) if args.calibrate else None for group in groups]

    # 2. Score each network, or the ensemble.
    test = cifar10.load(args.data, "test").select(slice(args.limit))
    for group, fold in zip(groups, folds, strict=True):
        score(group, fold, corrupted, test, args, brief=len(groups) > 1 and not args.verbose)


def beside(networks: Sequence[Network], args: argparse.Namespace) -> Path | None:
    """The file of a result beside the weights of a single network, if one is written there.

    UserError if it holds something else.
    """
    if len(networks) > 1 or args.json or args.limit is not None:
        return None
    file = networks[0].file.with_name(f"{networks[0].name}{'.tta' * args.tta}.json")
    check_replaceable("the result", file, RESULT)
    return file


def result_of(network: Network, test: cifar10.Dataset, tta: bool) -> dict:
    """The content of x.json for one network, except its metrics."""
    return {"format": FORMAT, "run": network.name, "model": network.model.name, "params": network.params,
            "macs": models.macs(network.model), "images": len(test), "tta": tta, "test_digest": test.digest,
            "fingerprint": network.fingerprint, "config": network.config,
            **{name: network.content[name] for name in ("options", "data", "log", "provenance")}}


def temperature_of(networks: Sequence[Network], fold: cifar10.Dataset | None, tta: bool) -> tuple[float | None, str]:
    """(temperature, what it was fitted on): fitted on the held-out fold, or stored with a single network, or None."""
    first = networks[0]
    if fold:
        fitted = metrics.temperature(mean_logits(networks, fold.images, tta), fold.labels)
        return fitted, f"{len(fold):,} images of fold {first.fold}, held out"
    if len(networks) == 1 and "temperature" in first.content:
        return first.temperature, first.content["temperature_from"]
    return None, ""


def score(networks: Sequence[Network], fold: cifar10.Dataset | None, corrupted: dict | None, test: cifar10.Dataset,
          args: argparse.Namespace, brief: bool) -> None:
    """Score one network, or several by the mean of their logits: print it (brief: one line) and write the result."""
    logits, labels, first = mean_logits(networks, test.images, args.tta), test.labels, networks[0]
    results = [result_of(network, test, args.tta) for network in networks]
    if len(results) == 1:
        result = results[0] | {"metrics": metrics.summary(logits, labels)}
    else:
        result = combine(args.json.stem if args.json else "ensemble", results, command_line(), logits, labels)
    scores = result["metrics"]

    low, high = wilson(scores["top1"] / 100 * len(labels), len(labels))
    print(f"test top-1 {scores['top1']:.2f} %, 95 % interval {low:.2f} to {high:.2f}, of {len(labels):,} images"
          f"{', with --tta' * args.tta}: {', '.join(short_path(network.file) for network in networks)}")
    lines = [f"{network.file.name}: {network.describe()}" for network in networks if args.verbose]
    above = f" (above the budget of {models.BUDGET:,})" * (result["params"] > models.BUDGET)
    lines.append(f"{result['model']}: {result['params']:,} parameters{above}, {result['macs'] / 1e6:,.0f} M "
                 f"multiply-accumulates")
    sure = metrics.confidence(logits)
    lines.append(f"nll {scores['nll']:.4f}, ece {scores['ece']:.4f}, mean confidence {sure:.1f} %")
    # The same logits at a temperature, fitted on the held-out fold or stored.
    temperature, source = temperature_of(networks, fold, args.tta)
    if temperature:
        cooled = logits.double() / temperature
        scores["calibrated"] = {"temperature": temperature, "from": source, "nll": metrics.nll(cooled, labels),
                                "ece": metrics.ece(cooled, labels)}
        lines.append(f"at temperature {temperature:.3f}, fitted on {source}: nll {scores['calibrated']['nll']:.4f}, "
                     f"ece {scores['calibrated']['ece']:.4f}, mean confidence {metrics.confidence(cooled):.1f} %")
    lines.append("per class: " + ", ".join(name + (" -" if value is None else f" {value:.1f}")
                                           for name, value in zip(test.classes, scores["per_class"], strict=True)))
    if not brief:
        print(*lines, sep="\n")
    if args.store_temperature:
        with checkpoint.RunFiles(first.file, log=False):
            if checkpoint.digest(checkpoint.load_weights(first.file)) != checkpoint.digest(first.content):
                raise UserError(f"{first.file} was replaced while it was scored: no temperature is stored, try again")
            checkpoint.save(first.file, first.content | {"temperature": temperature, "temperature_from": source})
        print(f"{first.file}: the temperature is stored")
    if corrupted:
        scores["cifar10c"] = score_corruptions(networks, corrupted, args.tta, args.limit)
    if args.mistakes:
        plots.mistakes(args.mistakes, test, logits)
        print(f"{args.mistakes}: the most confident mistakes")

    if file := args.json or beside(networks, args):
        try:
            write_result(file, result, test, logits)
        except OSError as error:
            if args.json:
                raise
            return warn(f"the result is not kept ({error}): --json FILE names another place")
        if not brief:
            print(f"{file}, {logits_file(file).name}: the result and its logits")


if __name__ == "__main__":
    with command():
        main()
