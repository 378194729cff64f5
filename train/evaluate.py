"""Score weights, or an ensemble of several, on the official test set.

    python train/evaluate.py                                    the released network
    python train/evaluate.py weights/resnet18-fold0.pt
    python train/evaluate.py weights/seresnet164-fold?.pt --tta --json weights/ensemble.json
    python train/evaluate.py weights/resnet18-fold0.pt --calibrate --mistakes mistakes.png
    python train/evaluate.py weights/resnet18-fold0.pt --calibrate --store      for the probabilities of classify
    python train/evaluate.py weights/resnet18-fold0.pt --corruptions --limit 1000
    python train/evaluate.py --humans humans.csv                beside what people say; train/humans.py makes the CSV

Several weights answer by the mean of their logits, as they do in the distillation labels. About a minute per
network on two CPU cores, seconds on a GPU; --corruptions is sixty passes more.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import torch

import models
from augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from train.engine import checkpoint, data, people, plots, predict
from train.engine.checkpoint import write_text
from train.engine.command import TTA, UserError, add_common, check_target, command, integer, parser
from train.engine.device import device_of
from train.engine.loop import derive
from train.engine.progress import progress


def common_fold(networks, dataset):
    """The training images that every network has held out: the Dataset of their common fold.

    dataset: the whole training set. Raises UserError when there is no common fold, or when a network was trained on
    images other than these.
    """
    parts = []
    for network in networks:
        if network.fold is None:
            raise UserError(f"--calibrate: {network.file} was trained without a held-out fold")
        if network.fold != networks[0].fold:
            raise UserError(f"--calibrate: {networks[0].file} holds out fold {networks[0].fold} and {network.file} "
                            f"fold {network.fold}, so no image is new to both")
        _, part = network.split(dataset)
        if part is None:
            raise UserError(f"--calibrate: {network.file} has no image in fold {network.fold} within its --limit "
                            f"{network.content['recipe']['limit']}")
        parts.append(part)
    return min(parts, key=len)  # what a smaller limit holds out is part of what a larger one does


def score_corruptions(networks, dataset, tta):
    """{corruption: [top-1 in percent at severity 1 to 5]}, which it also prints as a table."""
    accuracy = {name: [] for name in CORRUPTIONS}
    for name, severity in progress([(n, s) for n in CORRUPTIONS for s in SEVERITIES], "corruptions", unit="set"):
        generator = torch.Generator().manual_seed(derive(0, "corruption", name, severity))
        images = corrupt(dataset.images, name, severity, generator)
        accuracy[name].append(predict.accuracy(predict.answers(networks, images, tta, bars=False), dataset.labels))

    def print_row(title, *columns):
        print(f"{title:16}" + "".join(f"{sum(values) / len(values):7.2f}" for values in columns))

    print("\ntop-1 in percent on approximations of CIFAR-10-C, by severity")
    print(f"{'':16}" + "".join(f"{name:>7}" for name in [*SEVERITIES, "mean"]))
    for name, values in accuracy.items():
        print_row(name, *zip(values), values)
    print_row("mean", *zip(*accuracy.values()), sum(accuracy.values(), []))
    return accuracy


def flags():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="*", metavar="WEIGHTS",
                           help="one weights file, or several as an ensemble (default: the released network)")
    add_common(arguments)
    add = arguments.add_argument
    add("--limit", type=integer(1), metavar="N", help="only the N test images of smallest id, for a trial")
    add("--tta", **TTA)
    add("--calibrate", action="store_true", help="fit a temperature on the held-out fold")
    add("--store", action="store_true", help="keep that temperature in the weights file, for classify")
    add("--humans", type=Path, metavar="CSV", help="also score against what people say, by train/humans.py")
    add("--corruptions", action="store_true", help="also score approximations of CIFAR-10-C")
    add("--budget", action="store_true", help=f"refuse weights above {models.BUDGET:,} parameters")
    add("--json", "--output", type=Path, metavar="FILE", help="also write the figures there")
    add("--mistakes", type=Path, metavar="FILE", help="picture of the most confident mistakes, a .png")
    return arguments


@command
def main():
    args = flags().parse_args()
    # Whatever can be refused is refused before the work.
    check_target("--json", args.json, ".json")
    check_target("--mistakes", args.mistakes, ".png")
    if args.store and not args.calibrate:
        raise UserError("--store keeps the temperature of --calibrate: add that")
    if args.store and (args.tta or len(args.weights) > 1):
        raise UserError("--store is for one network without --tta: classify answers by that")
    networks = predict.load(args.weights, device_of(args.device))
    if args.store:
        check_target("--store", networks[0].file, ".pt")
    for network in networks:
        network.check_clean()
        network.check_kind(args.data)
        if args.budget:
            network.check_budget()
    val = common_fold(networks, data.load(args.data, "train")) if args.calibrate else None
    test = data.load(args.data, "test")
    opinions = people.read(args.humans, test, args.limit) if args.humans else None
    test = test.select(slice(args.limit))

    logits, labels = predict.answers(networks, test.images, args.tta), test.labels
    figures = {
        "model": " + ".join(network.model.name for network in networks),
        "weights": [network.file.name for network in networks],
        "params": sum(network.params for network in networks),
        "macs": sum(models.macs(network.model) for network in networks),
        "tta": args.tta, "images": len(test), **predict.figures(logits, labels), "data": test.digest,
    }
    for network in networks:
        print(f"{network.file.name}: {network.origin}")
    above = f" (above the budget of {models.BUDGET:,})" if figures["params"] > models.BUDGET else ""
    print(f"{figures['model']}: {figures['params']:,} parameters{above}, {figures['macs'] / 1e6:,.0f} M "
          f"multiply-accumulates")
    print(f"test top-1 {figures['top1']:.2f} % of {figures['images']:,} images, "
          f"nll {figures['nll']:.4f}, ece {figures['ece']:.4f}{', with flip TTA' if args.tta else ''}")
    print("per class: " + ", ".join(name + (" -" if value is None else f" {value:.1f}")
                                    for name, value in zip(test.classes, figures["per_class"])))

    if args.calibrate:
        temperature = predict.temperature(predict.answers(networks, val.images, args.tta), val.labels)
        cooled = logits.double() / temperature
        figures["calibrated"] = fit = {
            "temperature": temperature, "nll": predict.nll(cooled, labels), "ece": predict.ece(cooled, labels),
            "fold": networks[0].fold, "fold_images": len(val)}
        print(f"at temperature {temperature:.3f}, fitted on {len(val):,} images of fold {fit['fold']}: "
              f"nll {fit['nll']:.4f}, ece {fit['ece']:.4f}")
    if args.store:
        [network] = networks
        with checkpoint.Run(network.file):  # nothing that trains it anew may end in between
            if predict.load([network.file])[0].fingerprint != network.fingerprint:
                raise UserError(f"{network.file} was trained anew meanwhile: its temperature is another")
            checkpoint.save(network.file, network.content | {"temperature": temperature})
        print(f"{network.file}: the temperature is stored")
    if opinions:
        figures["humans"] = said = people.figures(logits, labels, opinions)
        print(f"top-1 {said['top1_corrected']:.2f} % on corrected labels, without {said['undecided']:,} that have no "
              f"majority; {said['top1_apart']:.2f} % without {said['twins']:,} images that have a near twin among the "
              f"training images")
        print(f"cross-entropy {said['nll_votes']:.4f} against people's votes, {said['nll']:.4f} against the labels; "
              f"{said['agreement']:.2f} % of the people would give its answers, {said['label_agreement']:.2f} % the "
              f"labels")
    if args.mistakes:
        plots.mistakes(args.mistakes, test, logits)
        print(f"{args.mistakes}: the most confident mistakes")
    if args.corruptions:
        figures["corruptions"] = score_corruptions(networks, test, args.tta)
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
