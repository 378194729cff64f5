"""Score weights, or an ensemble of several, on the official test set.

    python train/evaluate.py weights/resnet18-fold0.pt
    python train/evaluate.py weights/seresnet164-fold?.pt --tta --json weights/ensemble.json

Several weights answer by the mean of their logits, as they do in the distillation labels; --tta adds the mirror
image. About a minute per network on two CPU cores, seconds on a GPU.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models
from train import data, predict
from train.checkpoint import write_text
from train.recipe import ROOT, UserError, command, device_of, parser


class Contaminated(UserError):
    """The weights have seen the test images."""

    code = 3


def score(files, dataset, device="cpu", tta=False, budget=False):
    """(figures, logits) of one or several weights files on a Dataset.

    figures: the dict that --json writes; logits: float32 (N, 10), the mean over the files. Raises Contaminated for
    weights trained with the test images, UserError for one above the budget when `budget` is set.
    """
    total, names, params, macs = 0, [], 0, 0
    for number, file in enumerate(files, 1):
        model, content = predict.load_model(file, device)
        if content["provenance"]["include_test"]:
            raise Contaminated(f"CONTAMINATED: {file} was trained with the test images; it has no test accuracy")
        if budget:
            check_budget(model, file)
        label = f"{Path(file).stem} ({number}/{len(files)})"
        total = total + predict.logits(model, dataset.images, tta, label) / len(files)
        names.append(model.name)
        params, macs = params + models.parameter_count(model), macs + models.macs(model)
    figures = {
        "model": " + ".join(names), "weights": [Path(file).name for file in files], "params": params, "macs": macs,
        "tta": tta, "images": len(dataset), **predict.figures(total, dataset.labels), "data": dataset.digest,
    }
    return figures, total


def check_budget(model, file):
    try:
        models.check_budget(model)
    except ValueError as error:
        raise UserError(f"{file}: {error}")


def show(figures):
    print(f"{figures['model']}: {figures['params']:,} parameters, {figures['macs'] / 1e6:,.0f} M multiply-accumulates")
    print(f"test top-1 {figures['top1']:.2f} % of {figures['images']:,} images, "
          f"nll {figures['nll']:.4f}, ece {figures['ece']:.4f}{', with flip TTA' if figures['tta'] else ''}")
    print("per class: " + ", ".join(f"{name} {value:.1f}" for name, value in zip(data.CLASSES, figures["per_class"])))


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="+", metavar="WEIGHTS", help="one weights file, or several as an ensemble")
    arguments.add_argument("--data", default=str(ROOT / "data"), metavar="PATH", help="folder of the images, or synthetic")
    arguments.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute")
    arguments.add_argument("--tta", action="store_true", help="mean of the image's and its mirror image's logits")
    arguments.add_argument("--budget", action="store_true", help=f"refuse weights above {models.BUDGET:,} parameters")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = arguments.parse_args()
    dataset = data.load(args.data, "test")
    figures, _ = score(args.weights, dataset, device_of(args.device), args.tta, args.budget)
    show(figures)
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
