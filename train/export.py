"""Export weights as one file that takes bytes and needs nothing of ours: the normalization is inside.

    python train/export.py weights/student.pt --format torch     weights/student.pt2, for torch.export.load
    python train/export.py weights/student.pt --format onnx      weights/student.onnx, for onnxruntime and others
    python train/export.py weights/student.pt --format half --ties --out weights/released.pt     at half size

Input `images`: uint8 (N, 3, 32, 32), red, green, blue, any N; output `logits`: float32 (N, 10). Before the file is
written, its answers are compared with the network's own. Seconds to a minute on a CPU. Without a file it is the
released network that is exported.

`half` writes a weights file as training does, all large tensors in half precision, with its logits of 16 generated
images.

    answers = torch.export.load("weights/student.pt2").module()(images)
    answers, = onnxruntime.InferenceSession("weights/student.onnx").run(None, {"images": images.numpy()})
"""

import importlib.util
import io
import sys
import warnings
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import torch
import torch.nn as nn

import models
from augment.basic import MEAN, STD
from train.engine import checkpoint, data, predict
from train.engine.command import UserError, check_target, command, parser

TOLERANCE = 1e-5  # of the largest logit
ANY_BATCH = {"images": {0: torch.export.Dim.DYNAMIC}}
TIE = 0.01  # between the two likeliest logits: such an answer may turn
WHOLE = 0.01  # of the numbers, those of the smallest tensors, stay float32: 40 % less error for 0.1 MB
CHECKED = 16  # generated test images whose logits go into a file in half precision
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


def export_torch(network):
    """A program of torch.export, and the loaded copy of it."""
    program = torch.export.export(network, (random_images(2),), dynamic_shapes=ANY_BATCH)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def export_onnx(network):
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


FORMATS = {"torch": (export_torch, ".pt2"), "onnx": (export_onnx, ".onnx")}


@torch.inference_mode()
def disparity(network, exported):
    """The largest difference of their logits, as a share of the largest logit, on random images in several batches."""
    worst = []
    for images in map(random_images, (1, 2, 33)):
        wanted = predict.logits(network, images)
        worst.append((exported(images) - wanted).abs().max() / wanted.abs().max())
    return torch.stack(worst).max().item()  # NaN when one of them is


def write_half(network, out, ties=False):
    """Write a Network's file in half precision, unless an answer to a generated test image were another one then.

    The numbers are those of the moving average where there is one. ties: an answer may change whose two likeliest
    logits are within TIE. load_state_dict makes float32 of the numbers again; content["check"] holds the logits that
    it then has, float32 (16, 10), of the first generated test images, by which a later version of the code can tell
    that it still answers so.
    """
    if out.resolve() == network.file.resolve():
        raise UserError(f"--out {out} is the file itself: the half would replace the whole")
    state = checkpoint.evaluated(network.content)
    floats = sorted((name for name in state if state[name].is_floating_point()), key=lambda name: state[name].numel())
    passed = list(accumulate(state[name].numel() for name in floats))
    halved = {name for name, numbers in zip(floats, passed) if numbers > WHOLE * passed[-1]}
    half = {name: value.half() if name in halved else value for name, value in state.items()}
    if flawed := checkpoint.nonfinite(half):
        raise UserError(f"{flawed} is not finite in half precision; nothing was written")
    content = network.content | {"state": half, "ema": None, "whole": network.full_fingerprint}

    images = data.load("synthetic", "test").images
    before, after = (predict.logits(model, images) for model in (network.model, predict.restore(content)))
    difference, changed = (after - before).abs(), before.argmax(1) != after.argmax(1)
    margin = before.topk(2).values[changed].diff().abs().amax() if changed.any() else 0.0
    told = (f"of {len(images):,} generated images {changed.sum()} answers differ, of {before.numel():,} logits "
            f"{(difference > 0).sum():,}, by {difference.mean():.1e} in the mean and {difference.max():.1e} at most")
    if margin > (TIE if ties else 0.0):
        way = f"; --ties allows what was within {TIE}, as here" if margin <= TIE else ""
        raise UserError(f"{network.file}: in half precision, {told}; nothing was written{way}")
    checkpoint.save(out, content | {"check": {"logits": after[:CHECKED].clone()}})
    print(f"{out}: {network.model.name} in half precision, {out.stat().st_size / 1e6:.1f} MB; {told}")


@command
def main():
    arguments = parser(__doc__)
    arguments.add_argument("weights", nargs="?", metavar="WEIGHTS", help="a weights file (default: the released one)")
    group = arguments.add_argument_group("what is written")
    group.add_argument("--format", choices=(*FORMATS, "half"), default="torch", help="of the exported file")
    group.add_argument("--out", "--output", type=Path, metavar="FILE", help="default: beside the weights")
    group = arguments.add_argument_group("what is allowed")
    group.add_argument("--teacher", action="store_true", help=f"also above {models.BUDGET:,} parameters")
    group.add_argument("--ties", action="store_true", help=f"half: also answers that turn within {TIE} of a logit")
    args = arguments.parse_args()

    source = predict.load([args.weights] if args.weights else [])[0]
    network = source.model
    try:
        count = models.parameter_count(network) if args.teacher else models.check_budget(network)
    except ValueError as error:
        raise UserError(f"{error} --teacher exports it all the same.")
    if args.format == "half":
        out = args.out or source.file.with_name(f"{source.file.stem}-half.pt")
        check_target("--out", out, ".pt")
        return write_half(source, out, args.ties)
    export, suffix = FORMATS[args.format]
    out = args.out or source.file.with_suffix(suffix)
    check_target("--out", out, suffix)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about themselves
        file, exported = export(FromBytes(network).eval())
    difference = disparity(network, exported)
    if not difference <= TOLERANCE:
        raise UserError(f"{source.file}: the exported network's logits differ by {difference:.1e} of the largest, "
                        f"more than {TOLERANCE:.0e}; nothing was written")
    checkpoint.write(out, lambda handle: handle.write(file))
    print(f"{out}: {network.name}, {count:,} parameters, {len(file) / 1e6:.1f} MB; logits agree within "
          f"{difference:.1e} of the largest (at most {TOLERANCE:.0e}) on random images")


if __name__ == "__main__":
    main()
