"""Score weights, or an ensemble of several, on the official test set.

    python train/evaluate.py weights/resnet18-fold0.pt
    python train/evaluate.py weights/seresnet164-fold?.pt --tta --json weights/ensemble.json
    python train/evaluate.py weights/resnet18-fold0.pt --calibrate --mistakes mistakes.png
    python train/evaluate.py weights/resnet18-fold0.pt --corruptions --limit 1000

Several weights answer by the mean of their logits, as they do in the distillation labels. About a minute per
network on two CPU cores, seconds on a GPU; --corruptions is sixty passes more.
"""

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import models
from train import data, plots, predict
from train.checkpoint import write, write_text
from train.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from train.progress import progress
from train.recipe import ROOT, UserError, check_target, command, device_of, parser, whole

COOLEST, HOTTEST = 0.01, 100.0  # bounds of the temperature


class Contaminated(UserError):
    """The weights have seen the test images."""

    code = 3


class Network(NamedTuple):
    """A network in evaluation mode, with its file's name and content."""

    file: Path
    model: torch.nn.Module
    content: dict

    @property
    def fold(self):
        return self.content["recipe"]["fold"]


# ---------------------------------------------------------------- answers


def load(files, device="cpu", budget=False):
    """The Networks of weights files, on `device`.

    Raises Contaminated for weights trained with the test images, and UserError for one above the budget if `budget`.
    """
    networks = []
    for file in map(Path, files):
        model, content = predict.load_model(file, device)
        if content["provenance"]["include_test"]:
            raise Contaminated(f"CONTAMINATED: {file} was trained with the test images; it has no test accuracy")
        if budget:
            check_budget(model, file)
        networks.append(Network(file, model, content))
    return networks


def check_budget(model, file):
    try:
        models.check_budget(model)
    except ValueError as error:
        raise UserError(f"{file}: {error}")


def answers(networks, images, tta=False, bars=True):
    """Logits float32 (N, 10) of uint8 images: the mean over the Networks. bars: show the progress of each."""
    total = 0
    for number, network in enumerate(networks, 1):
        label = f"{network.file.stem} ({number}/{len(networks)})" if bars else None
        total = total + predict.logits(network.model, images, tta, label) / len(networks)
    return total


def score(networks, dataset, tta=False):
    """(figures, logits) of Networks on a Dataset: the dict that --json writes, and float32 (N, 10)."""
    logits = answers(networks, dataset.images, tta)
    figures = {
        "model": " + ".join(network.model.name for network in networks),
        "weights": [network.file.name for network in networks],
        "params": sum(models.parameter_count(network.model) for network in networks),
        "macs": sum(models.macs(network.model) for network in networks),
        "tta": tta, "images": len(dataset), **predict.figures(logits, dataset.labels), "data": dataset.digest,
    }
    return figures, logits


# ---------------------------------------------------------------- calibration


def held_out(networks, dataset):
    """The training images that every network has held out: the Dataset of their common fold.

    dataset: the whole training set. Raises UserError when there is no common fold, or when a network was trained on
    images other than these.
    """
    parts = []
    for file, _, content in networks:
        fold, limit = content["recipe"]["fold"], content["recipe"]["limit"]
        if fold is None:
            raise UserError(f"--calibrate: {file} was trained without a held-out fold")
        if fold != networks[0].fold:
            raise UserError(f"--calibrate: {networks[0].file} holds out fold {networks[0].fold} and {file} fold "
                            f"{fold}, so no image is new to both")
        train, val = data.split(dataset, fold, limit)
        if train.digest != content["provenance"]["train_digest"]:
            raise UserError(f"--calibrate: {file} was not trained on the images of {dataset.source}")
        if val is None:
            raise UserError(f"--calibrate: {file} has no image in fold {fold} within its --limit {limit}")
        parts.append(val)
    return min(parts, key=len)  # what a smaller limit holds out is part of what a larger one does


def temperature(logits, labels):
    """The T > 0 that minimises the nll of logits / T (Guo et al. 2017), by bisection.

    The nll is convex in 1 / T, and its slope there is mean(sum_k p_k z_k - z_label). Clamped to 0.01..100, which
    only answers that are all right, or worse than none, reach.
    """
    logits = logits.double()
    low, high = math.log(COOLEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1)
        slope = (expected - logits.gather(1, labels[:, None])[:, 0]).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def calibrate(networks, val, logits, labels, tta=False):
    """{temperature, nll, ece, fold, fold_images}: fitted on the held-out images `val`, scored on the test logits."""
    fitted = temperature(answers(networks, val.images, tta), val.labels)
    cooled = logits.double() / fitted
    return {"temperature": fitted, "nll": predict.nll(cooled, labels), "ece": predict.ece(cooled, labels),
            "fold": networks[0].fold, "fold_images": len(val)}


# ---------------------------------------------------------------- corruptions


def corrupted(networks, dataset, tta=False):
    """{corruption: [top-1 in percent at severity 1 to 5]}."""
    accuracy = {name: [] for name in CORRUPTIONS}
    for name, severity in progress([(n, s) for n in CORRUPTIONS for s in SEVERITIES], "corruptions", unit="set"):
        logits = answers(networks, corrupt(dataset.images, name, severity), tta, bars=False)
        accuracy[name].append(predict.accuracy(logits, dataset.labels))
    return accuracy


def mean(values):
    return sum(values) / len(values)


# ---------------------------------------------------------------- the command


def show_trained(network):
    """How a network came about: what a score without it may be mistaken for."""
    recipe, provenance = network.content["recipe"], network.content["provenance"]
    held_out = "none held out" if network.fold is None else f"fold {network.fold} held out"
    print(f"{network.file.name}: trained for {recipe['epochs']:,} epoch{'s' * (recipe['epochs'] > 1)} on "
          f"{provenance['images']:,} images, {held_out}, seed {recipe['seed']}")


def show(figures):
    print(f"{figures['model']}: {figures['params']:,} parameters, {figures['macs'] / 1e6:,.0f} M multiply-accumulates")
    print(f"test top-1 {figures['top1']:.2f} % of {figures['images']:,} images, "
          f"nll {figures['nll']:.4f}, ece {figures['ece']:.4f}{', with flip TTA' if figures['tta'] else ''}")
    print("per class: " + ", ".join(f"{name} {value:.1f}" for name, value in zip(data.CLASSES, figures["per_class"])))


def show_calibrated(fit):
    print(f"at temperature {fit['temperature']:.3f}, fitted on {fit['fold_images']:,} images of fold {fit['fold']}: "
          f"nll {fit['nll']:.4f}, ece {fit['ece']:.4f}")


def show_corrupted(accuracy):
    print("\ntop-1 in percent on approximations of CIFAR-10-C, by severity")
    print(f"{'':16}" + "".join(f"{name:>7}" for name in [*SEVERITIES, "mean"]))
    for name, values in accuracy.items():
        print(f"{name:16}" + "".join(f"{value:7.2f}" for value in [*values, mean(values)]))
    columns = [*zip(*accuracy.values()), sum(accuracy.values(), [])]
    print(f"{'mean':16}" + "".join(f"{mean(values):7.2f}" for values in columns))


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="one weights file, or several as an ensemble")
    group = arguments.add_argument_group("data")
    group.add_argument("--data", default=str(ROOT / "data"), metavar="PATH", help="folder of the images, or synthetic")
    group.add_argument("--limit", type=whole(1), metavar="N", help="only the N test images of smallest id, for a trial")
    group = arguments.add_argument_group("what is computed")
    group.add_argument("--tta", action="store_true", help="mean of the image's and its mirror image's logits")
    group.add_argument("--calibrate", action="store_true", help="fit a temperature on the held-out fold")
    group.add_argument("--corruptions", action="store_true", help="also score approximations of CIFAR-10-C")
    group.add_argument("--budget", action="store_true", help=f"refuse weights above {models.BUDGET:,} parameters")
    group = arguments.add_argument_group("run")
    group.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    group.add_argument("--json", "--output", type=Path, metavar="FILE", help="also write the figures there")
    group.add_argument("--mistakes", type=Path, metavar="FILE", help="picture of the most confident mistakes, a .png")
    return arguments


@command
def main():
    args = flags().parse_args()
    # Whatever can be refused is refused before the work.
    check_target("--json", args.json, ".json")
    check_target("--mistakes", args.mistakes, ".png")
    networks = load(args.weights, device_of(args.device), args.budget)
    for network in networks:
        data.check_kind(network.file, network.content, args.data)
    val = held_out(networks, data.load(args.data, "train")) if args.calibrate else None
    dataset = data.load(args.data, "test").select(slice(args.limit))

    figures, logits = score(networks, dataset, args.tta)
    for network in networks:
        show_trained(network)
    show(figures)
    if args.calibrate:
        figures["calibrated"] = calibrate(networks, val, logits, dataset.labels, args.tta)
        show_calibrated(figures["calibrated"])
    if args.mistakes:
        write(args.mistakes, lambda handle: plots.mistakes(handle, dataset, logits))
        print(f"{args.mistakes}: the most confident mistakes")
    if args.corruptions:
        figures["corruptions"] = corrupted(networks, dataset, args.tta)
        show_corrupted(figures["corruptions"])
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
