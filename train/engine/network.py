"""From finished weights to logits and predictions.

    network = load()                                        # the released network; load("weights/student.pt") another
    names, probabilities = network.predict(["cat.jpg"])     # pictures of any size
    logits(network.model, images)                           # uint8 (N, 3, 32, 32) -> float32 (N, 10)
    mean_logits(load_all(["a.pt", "b.pt"]), images)         # an ensemble

Logits are computed in float32, without TF32, on every device, so scores and labels differ by rounding errors at most.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

import models
from augment.basic import normalize
from train import ROOT, UserError, one_line
from train.data import cifar10, pictures
from train.data.sources import expand
from train.engine import checkpoint
from train.engine.command import count_of, short_path
from train.engine.device import autocast
from train.engine.progress import progress

RELEASED = ROOT / "weights" / "released.pt"
BATCH = 500  # images
Pictures = str | Path | Image.Image | np.ndarray | torch.Tensor | Sequence  # what `predict` takes
ENVIRONMENT = ("hardware", "torch", "commit", "threads")  # where and with what a network was trained


class Contaminated(UserError):
    """The weights have seen the test images."""

    code = 3


@dataclass(frozen=True)
class Network:
    """A finished network in evaluation mode, with its file and that file's content."""

    file: Path
    model: nn.Module
    content: dict

    @property
    def config(self) -> dict:
        """The configuration of its run, every training flag by its name."""
        return self.content["config"]

    @property
    def provenance(self) -> dict:
        """How it was made (loop.provenance)."""
        return self.content["provenance"]

    @property
    def fold(self) -> int | None:
        """The fold that it held out, 0 to 4; None if there was none, or if its teachers had seen that fold."""
        fold = self.config["fold"]
        return None if fold in self.provenance["seen_folds"] else fold

    @property
    def name(self) -> str:
        """x for a file x.pt. Another suffix is kept: student.old is not taken for student.pt."""
        return self.file.name.removesuffix(".pt")

    @property
    def params(self) -> int:
        """Its number of parameters, counted, not read from its file."""
        return models.parameter_count(self.model)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the weights as they were trained; copies in half precision have the same."""
        return self.provenance["fingerprint"]

    @property
    def temperature(self) -> float:
        """The divisor of its logits before the softmax: 1.0, unless one was fitted and stored."""
        return self.content.get("temperature", 1.0)

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on the generated shapes."""
        return self.provenance["source"].startswith("synthetic")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the ten classes that it knows."""
        return cifar10.class_names(self.provenance["source"])

    @property
    def history(self) -> list[dict]:
        """Its run, then those whose weights it began with, the last one first, as plain values."""
        names = ("run", "command", "seconds", "images", "unlabelled", "date", "precision", "fingerprint", *ENVIRONMENT)
        return [{name: self.provenance[name] for name in names} | {"config": self.config}, *self.provenance["before"]]

    def describe(self) -> str:
        """How it was trained, in a sentence."""
        held_out = "none held out" if self.config["fold"] is None else f"fold {self.config['fold']} held out"
        if self.fold != self.config["fold"]:
            held_out += ", which its teachers had seen"
        before = "".join(f", after {count_of(run['config']['epochs'], 'epoch')} by `{run['command']}`"
                         for run in self.provenance["before"])
        return (f"trained for {count_of(self.config['epochs'], 'epoch')} on "
                f"{count_of(self.provenance['images'], 'image')}, {held_out}, seed {self.config['seed']}, by "
                f"`{self.provenance['command']}`{before}")

    def predict(self, images: Pictures, tta: bool = False) -> tuple[list[str], np.ndarray]:
        """Class names and probabilities, (N, 10) float64, of pictures.

        images: paths, PIL images, or uint8 arrays of one picture (H, W, 3) each, in a list or alone; or a uint8 array
        of many, (N, 32, 32, 3) or (N, 3, 32, 32). A network sees the centre square of a picture, at 32x32 pixels.
        """
        found = probabilities([self], as_images(images), tta, bars=False)
        return [self.classes[k] for k in found.argmax(1)], found.numpy()

    def check_clean(self) -> None:
        """Raises Contaminated for weights trained with the test images: they have no test accuracy."""
        if self.provenance["include_test"]:
            raise Contaminated(f"CONTAMINATED: {self.file} was trained with the test images; it has no test "
                               f"accuracy")

    def check_kind(self, data: str | Path) -> None:
        """Raise UserError for weights trained on generated images if `data` holds real ones, and vice versa."""
        if self.synthetic != (str(data) == "synthetic"):
            raise UserError(f"{self.file} was trained on other images than those of {data}")

    def check_source(self, data: str | Path, include_test: bool) -> None:
        """Raise UserError unless a run on the images at `data`, with include_test or without, may learn from it."""
        self.check_kind(data)
        if self.provenance["include_test"] and not include_test:
            raise UserError(f"{self.file} was trained with the test images, which would leak into what learns from it "
                            f"(--include-test admits it, and marks what learns)")

    def split(self, dataset: cifar10.Dataset) -> tuple[cifar10.Dataset, cifar10.Dataset | None]:
        """(images that it was trained on, those of its fold or None) of its training set; UserError for another set."""
        train, held_out = cifar10.split(dataset, self.config["fold"], self.config["limit"])
        if train.digest != self.provenance["train_digest"]:
            raise UserError(f"{self.file} was trained on other images than those of {dataset.source}")
        return train, held_out


def join_distinct(words: Iterable) -> str:
    """The distinct non-empty words, joined: `2.11.0; 2.12.0`. A word may be such a text itself."""
    return "; ".join(dict.fromkeys(part for word in words if word for part in str(word).split("; ")))


def total_epochs(history: Sequence[dict]) -> int:
    """Passes over the training images by a run and its predecessors, as in `Network.history`."""
    return sum(run["config"]["epochs"] for run in history)


def load(file: str | Path | None = None, device: torch.device | str = "cpu") -> Network:
    """The Network of a weights file, by default the released one; UserError if it is missing or of another kind."""
    if file is None and not RELEASED.exists():
        raise UserError(f"{short_path(RELEASED)} does not exist: no network is released here, so name WEIGHTS, such as "
                        f"those of `make quick`")
    file = expand(RELEASED if file is None else file)
    content = checkpoint.load_weights(file)
    return Network(file, restore(content, device, f"{file}: "), content)


def load_all(files: Sequence[str | Path] = (), device: torch.device | str = "cpu") -> list[Network]:
    """The Networks of several files, by default the released one; UserError for a network that is named twice."""
    networks, seen = [load(file, device) for file in files or [None]], {}
    for network in networks:
        if network.fingerprint in seen:
            raise UserError(f"{network.file} repeats {seen[network.fingerprint]}: a network counts once")
        seen[network.fingerprint] = network.file
    return networks


def restore(content: dict, device: torch.device | str = "cpu", where: str = "") -> nn.Module:
    """The network of a weights file's content, in evaluation mode; of the moving average if there is one.

    UserError, with `where` before its text, if the content does not fit its model.
    """
    try:
        model = models.build(content["model"], **content["options"])
        model.load_state_dict(checkpoint.evaluated(content))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}weights of {content.get('model')!r} do not fit: {one_line(error)[:300]}") from None
    return model.eval().to(device, memory_format=torch.channels_last)


# ---------------------------------------------------------------- logits


def mean_logits(networks: Sequence[Network], images: torch.Tensor, tta: bool = False,
                bars: bool = True) -> torch.Tensor:
    """Logits float32 (N, 10) of uint8 images: the mean over the Networks. bars: show the progress of each one."""
    count = len(networks)
    labels = [f"{network.name} ({number}/{count})" if bars else None for number, network in enumerate(networks, 1)]
    return sum(logits(network.model, images, tta, label) / count
               for network, label in zip(networks, labels, strict=True))


def probabilities(networks: Sequence[Network], images: torch.Tensor, tta: bool = False,
                  bars: bool = True) -> torch.Tensor:
    """Probabilities float64 (N, 10) of uint8 images; one network's logits are divided by its own temperature."""
    temperature = networks[0].temperature if len(networks) == 1 else 1.0  # it was fitted to this network alone
    return (mean_logits(networks, images, tta, bars).double() / temperature).softmax(1)


@torch.no_grad()  # not in inference mode, whose tensors no later gradient may pass
def logits(model: nn.Module, images: torch.Tensor, tta: bool = False, label: str | None = None) -> torch.Tensor:
    """Logits of uint8 images (N, 3, 32, 32) as float32 (N, K) on the CPU. UserError for other images.

    tta: the mean of the logits of the image and its mirror image; label: names a progress bar.
    The model is used in evaluation mode; afterwards it is in its previous mode.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
        form = f"{images.dtype} {tuple(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
        raise UserError(f"images should be a tensor of uint8 (N, 3, 32, 32), 0 to 255, not {form}")
    device = next(model.parameters()).device
    training, benchmark = model.training, torch.backends.cudnn.benchmark
    batches, found = images.split(BATCH), []
    try:
        model.eval()
        torch.backends.cudnn.benchmark = False  # or each process could choose other convolutions, with other last bits
        for batch in progress(batches, label, unit="batch") if label else batches:
            inputs = normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
            found.append((model(inputs) + model(inputs.flip(-1))) / 2 if tta else model(inputs))
    finally:
        model.train(training)
        torch.backends.cudnn.benchmark = benchmark
    return torch.cat(found).cpu()


def as_images(given: Pictures) -> torch.Tensor:
    """uint8 (N, 3, 32, 32) of what `predict` takes; UserError for anything else."""
    if isinstance(given, np.ndarray | torch.Tensor):
        array = given.cpu().numpy() if isinstance(given, torch.Tensor) else given
        if array.dtype != np.uint8:
            raise UserError(f"pictures should be uint8, 0 to 255, not {array.dtype}")
        if array.ndim == 4 and array.shape[1:] in ((32, 32, 3), (3, 32, 32)):
            return cifar10.channels_first(array) if array.shape[1:] == (32, 32, 3) else torch.from_numpy(array.copy())
        if array.ndim != 3 or array.shape[2] != 3:
            raise UserError(f"an array of pictures should be (N, 32, 32, 3), (N, 3, 32, 32) or one (H, W, 3), "
                            f"not {array.shape}")
        given = Image.fromarray(array)
    if isinstance(given, Image.Image):
        return cifar10.channels_first(pictures.centre(pictures.in_colour(given))[None])
    if isinstance(given, str | Path):
        return as_images(pictures.read_picture(Path(given)))
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"pictures should be paths, PIL images or a uint8 array, not {given!r:.60}")
    return torch.cat([as_images(one) for one in given])


class Frozen(nn.Module):
    """Frozen copies of networks as one: normalized images (N, 3, H, W) to the mean of their logits (N, 10).

    Their filters are cast to the precision once, not in every step.
    """

    def __init__(self, networks: Iterable[nn.Module], precision: str = "float32"):
        super().__init__()
        self.networks = nn.ModuleList(map(copy.deepcopy, networks)).eval().requires_grad_(False)
        self.precision = precision
        for layer in self.modules():
            if precision == "bfloat16" and isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(torch.bfloat16)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(images.device, self.precision):
            return sum(network(images).float() for network in self.networks) / len(self.networks)
