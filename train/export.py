"""Export weights as one file that takes bytes and needs nothing of ours: the normalization is inside.

    python train/export.py weights/student.pt --format torch     weights/student.pt2, for torch.export.load
    python train/export.py weights/student.pt --format onnx      weights/student.onnx, for onnxruntime and others

Input `images`: uint8 (N, 3, 32, 32), red, green, blue, any N; output `logits`: float32 (N, 10). Before the file is
written, its answers are compared with the network's own. Seconds to a minute on a CPU.

    answers = torch.export.load("weights/student.pt2").module()(images)
    answers, = onnxruntime.InferenceSession("weights/student.onnx").run(None, {"images": images.numpy()})
"""

import importlib.util
import io
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn as nn

import models
from augment.basic import MEAN, STD
from train.engine import predict
from train.engine.checkpoint import write
from train.engine.command import UserError, check_target, command, parser

TOLERANCE = 1e-5  # of the largest logit
ANY_BATCH = {"images": {0: torch.export.Dim.DYNAMIC}}
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class FromBytes(nn.Module):
    """A network behind its normalization: uint8 (N, 3, 32, 32) to logits float32 (N, 10)."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", 255 * torch.tensor(STD).view(3, 1, 1))

    def forward(self, images):
        return self.network((images.float() - self.mean) / self.deviation)


def random_images(count):
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


# ---------------------------------------------------------------- formats: network -> (bytes, images -> logits)


def as_torch(network):
    """A program of torch.export, and the loaded copy of it."""
    program = torch.export.export(network, (random_images(2),), dynamic_shapes=ANY_BATCH)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def as_onnx(network):
    """An ONNX model, and an onnxruntime session of it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}, which the requirements leave out: "
                        f"{sys.executable} -m pip install {' '.join(missing)}")
    import onnxruntime  # an optional extra

    program = torch.onnx.export(
        network, (random_images(2),), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=ANY_BATCH)
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS = {"torch": (as_torch, ".pt2"), "onnx": (as_onnx, ".onnx")}


def parity(network, exported, counts=(1, 2, 33)):
    """The largest difference of their logits, as a share of the largest logit, on random images in several batches."""
    worst = 0.0
    for count in counts:
        images = random_images(count)
        wanted = predict.logits(network, images)
        with torch.inference_mode():
            found = exported(images)
        worst = max(worst, ((found - wanted).abs().max() / wanted.abs().max()).item())
    return worst


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", type=Path, metavar="WEIGHTS", help="a weights file")
    group = arguments.add_argument_group("what is written")
    group.add_argument("--format", choices=tuple(FORMATS), default="torch", help="of the exported file")
    group.add_argument("--out", "--output", type=Path, metavar="FILE", help="default: beside the weights")
    group = arguments.add_argument_group("what is allowed")
    group.add_argument("--teacher", action="store_true", help=f"also above {models.BUDGET:,} parameters")
    args = arguments.parse_args()

    network = predict.load([args.weights])[0].model
    try:
        count = models.parameter_count(network) if args.teacher else models.check_budget(network)
    except ValueError as error:
        raise UserError(f"{error} --teacher exports it all the same.")
    export, suffix = FORMATS[args.format]
    out = args.out or args.weights.with_suffix(suffix)
    check_target("--out", out, suffix)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about themselves
        file, exported = export(FromBytes(network).eval())
    difference = parity(network, exported)
    if not difference <= TOLERANCE:
        raise UserError(f"{args.weights}: the exported network's logits differ by {difference:.1e} of the largest, "
                        f"more than {TOLERANCE:.0e}; nothing was written")
    write(out, lambda handle: handle.write(file))
    print(f"{out}: {network.name}, {count:,} parameters, {len(file) / 1e6:.1f} MB; logits agree within "
          f"{difference:.1e} of the largest (at most {TOLERANCE:.0e}) on random images")


if __name__ == "__main__":
    main()
