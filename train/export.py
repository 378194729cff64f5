"""Export weights as one self-contained file that takes uint8 images and includes the normalization.

    python train/export.py weights/student.pt --format torch     weights/student.pt2, for torch.export.load
    python train/export.py weights/student.pt --format onnx      weights/student.onnx, for onnxruntime and others
    python train/export.py weights/student.pt --format half --allow-ties     weights/student-half.pt

Input `images`: uint8 (N, 3, 32, 32), red, green, blue, any N; output `logits`: float32 (N, 10). Before the file is
written, its logits are compared with the network's own. Without WEIGHTS the released network is exported. The format
onnx needs packages that are not in requirements.txt: `pip install onnx onnxscript onnxruntime`. An export takes a
minute at most on a CPU.

`half` writes a weights file as training does, with its large tensors in half precision and its logits of 16 generated
images.

    logits = torch.export.load("weights/student.pt2").module()(images)
    logits, = onnxruntime.InferenceSession("weights/student.onnx").run(None, {"images": images.numpy()})
"""

import io
import sys
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn as nn

from augment.basic import MEAN, STD
from train import UserError
from train.data import cifar10
from train.data.sources import expand
from train.engine import checkpoint
from train.engine.command import check_target, command, parser
from train.engine.network import Network, load, logits, restore

TOLERANCE = 1e-5  # of the largest logit
ANY_BATCH = {"images": {0: torch.export.Dim.DYNAMIC}}
TIE = 0.01  # between the two largest logits: with --allow-ties, such a prediction may change
WHOLE = 0.01  # of the numbers, those of the smallest tensors, stay float32: 40 % less error for 0.1 MB
CHECKED = 16  # generated test images whose logits go into a file in half precision


class FromBytes(nn.Module):
    """A network behind its normalization: uint8 (N, 3, 32, 32) to logits float32 (N, 10)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images.float() - self.mean) / self.std)


def random_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


def export_torch(network: nn.Module) -> tuple[bytes, Callable]:
    """A program of torch.export, and the loaded copy of it."""
    program = torch.export.export(network, (random_images(2),), dynamic_shapes=ANY_BATCH)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def export_onnx(network: nn.Module) -> tuple[bytes, Callable]:
    """An ONNX model, and an onnxruntime session of it."""
    import onnxruntime

    program = torch.onnx.export(
        network, (random_images(2),), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=ANY_BATCH)
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS = {"torch": (export_torch, ".pt2"), "onnx": (export_onnx, ".onnx")}


@torch.inference_mode()
def disparity(network: nn.Module, exported: Callable) -> float:
    """The largest difference of logits, as a share of the largest logit, on random images in batches of 1, 2 and 33."""
    pairs = [(logits(network, images), exported(images)) for images in map(random_images, (1, 2, 33))]
    return torch.stack([(found - wanted).abs().max() / wanted.abs().max() for wanted, found in pairs]).max().item()


def write_half(network: Network, out: Path, allow_ties: bool = False) -> None:
    """Write a network's file in half precision; UserError if a prediction of a generated test image would change.

    The numbers are those of the moving average if there is one. allow_ties: predictions may change whose two largest
    logits are within TIE. load_state_dict converts the numbers back to float32; content["check"] holds the resulting
    logits of the first generated test images, float32 (16, 10), by which later code can check that nothing changed.
    """
    state = checkpoint.evaluated(network.content)
    floats = sorted((name for name in state if state[name].is_floating_point()), key=lambda name: state[name].numel())
    passed = list(accumulate(state[name].numel() for name in floats))
    halved = {name for name, numbers in zip(floats, passed, strict=True) if numbers > WHOLE * passed[-1]}
    half = {name: value.half() if name in halved else value for name, value in state.items()}
    if flawed := checkpoint.nonfinite(half):
        raise UserError(f"{flawed} is not finite in half precision; nothing was written")
    content = network.content | {"state": half, "ema": None}

    images = cifar10.load("synthetic", "test").images
    before, after = (logits(model, images) for model in (network.model, restore(content)))
    difference, changed = (after - before).abs(), before.argmax(1) != after.argmax(1)
    margin = before.topk(2).values[changed].diff().abs().amax() if changed.any() else 0.0
    told = (f"of {len(images):,} generated images {changed.sum()} predictions differ, of {before.numel():,} logits "
            f"{(difference > 0).sum():,}, by {difference.mean():.1e} in the mean and {difference.max():.1e} at most")
    if margin > (TIE if allow_ties else 0.0):
        way = f"; --allow-ties admits logits within {TIE}, as here" if margin <= TIE else ""
        raise UserError(f"{network.file}: in half precision, {told}; nothing was written{way}")
    checkpoint.save(out, content | {"check": {"logits": after[:CHECKED].clone()}})
    print(f"{out}: {network.model.name} in half precision, {out.stat().st_size / 1e6:.1f} MB; {told}")


def main() -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("weights", nargs="?", type=expand, metavar="WEIGHTS", help="a weights file (default: the released network)")
    add("--format", choices=(*FORMATS, "half"), default="torch", help="format of the exported file")
    add("--out", type=expand, metavar="FILE", help="default: beside the weights")
    add("--allow-ties", action="store_true", help=f"half: predictions may change if two logits tie within {TIE}")
    args = arguments.parse_args()

    network = load(args.weights)
    if args.allow_ties and args.format != "half":
        raise UserError("--allow-ties is a flag of --format half")
    if args.format == "half":
        out = args.out or network.file.with_name(f"{network.name}-half.pt")
        check_target("--out", out, ".pt")
        if out.exists():  # only an earlier half of this network is replaced
            old = load(out)
            if old.fingerprint != network.fingerprint or "check" not in old.content:
                raise UserError(f"--out {out} holds weights that are no half of these: name another file, or delete it")
        return write_half(network, out, args.allow_ties)
    export, suffix = FORMATS[args.format]
    out = args.out or network.file.with_name(network.name + suffix)
    check_target("--out", out, suffix)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about themselves
        file, exported = export(FromBytes(network.model).eval())
    difference = disparity(network.model, exported)
    if not difference <= TOLERANCE:
        raise UserError(f"{network.file}: the exported network's logits differ by {difference:.1e} of the largest, "
                        f"more than {TOLERANCE:.0e}; nothing was written")
    checkpoint.write(out, lambda handle: handle.write(file))
    print(f"{out}: {network.model.name}, {network.params:,} parameters, {len(file) / 1e6:.1f} MB; logits agree within "
          f"{difference:.1e} of the largest (at most {TOLERANCE:.0e}) on random images")


if __name__ == "__main__":
    with command():
        main()
