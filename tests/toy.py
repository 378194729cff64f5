"""Toy CIFAR-10s, pixels and configurations, and runs of them: in this process, or in another that can be killed.

The toy set has 60 training and 20 test images. With fold 0 held out 40 images are trained on: in batches of 13 that
is three steps an epoch, and the image that is left over is another one in every epoch.
"""

import multiprocessing
import os
import pickle
import runpy
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

import models
from train import ROOT
from train.data import cifar10
from train.engine import distributed, flags, loop

SIZES = {"train": 60, "test": 20}
TORCHVISION = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def arrays(part, seed=0):
    """(images uint8 NHWC, labels int64): noise around a mean that depends on the class."""
    count = SIZES[part]
    random = np.random.default_rng([seed, count])
    labels = np.arange(count) % 10
    noise = random.integers(0, 100, (count, 32, 32, 3))
    return (noise + 15 * labels[:, None, None, None]).astype(np.uint8), labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    """An array of random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(file, pixels=None, **options):
    """Save pixels, by default noise, as a picture."""
    Image.fromarray(noise(32, 32, 3) if pixels is None else pixels).save(file, **options)
    return file


def operation(image, name, magnitude):
    """What torchvision's AutoAugment makes of one image."""
    return TORCHVISION._apply_image_or_video_transform(
        image, name, magnitude, InterpolationMode.NEAREST, TORCHVISION._fill)


def write_npz(folder, **changes):
    """PATH/cifar10.npz; changes replace or add arrays, and None leaves one out."""
    content = {}
    for part in SIZES:
        content[f"{part}_images"], content[f"{part}_labels"] = arrays(part)
    content = {name: array for name, array in (content | changes).items() if array is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "cifar10.npz", **content)
    return folder


def use(patch=setattr):
    """Make the toy set the official one; `patch` is monkeypatch.setattr where that has to end."""
    patch(cifar10, "SIZES", SIZES)
    patch(cifar10, "OFFICIAL", {part: cifar10.as_dataset(*arrays(part), "toy").digest for part in SIZES})


def columns_of(model):
    """The columns of a FastNet as networks of their own, with its weights."""
    alone = []
    for column in range(model.columns):
        own = {key: value if key.startswith("whitening") or value.dim() == 0 else value.chunk(model.columns)[column]
               for key, value in model.state_dict().items()}
        alone.append(models.build("fastnet", **model.options | {"columns": 1}).to(model.head.weight.dtype))
        alone[-1].load_state_dict(own)
    return alone


# ---------------------------------------------------------------- configurations and losses


RECIPE = dict(epochs=2, batch_size=13, warmup_epochs=0.25, ema_decay=0.9, augment="none", device="cpu",
              precision="float32", compile=False)


def configure(model="resnet18", **changes):
    """The configuration of a run with seconds of work in it, of two channels where the model has a width."""
    width = {"width": 2} if "width" in models.options_of(model) else {}
    return flags.config(RECIPE | width, model=model, **changes)


@dataclass
class at:
    """A loss, with `action()` before the step-th call of it, counted from 1; it can be pickled."""

    step: int
    action: Callable
    loss: Callable | None = None  # the usual one
    calls: int = 0

    def __call__(self, logits, hard, *soft):
        self.calls += 1
        if self.calls == self.step:
            self.action()
        return self.loss(logits, hard, *soft) if self.loss else {"loss": F.cross_entropy(logits, hard)}


def terminate(step, number=signal.SIGTERM, loss=None):
    """The loss of a run to which a signal comes during its step-th step."""
    return at(step, partial(signal.raise_signal, number), loss)


def result(weights):
    """All that a run left, but for clock times and provenance: what a resumed run must have in common."""
    weights, clocks = Path(weights), ["seconds", "images_per_second"]
    content = torch.load(weights, weights_only=True)["content"]
    content["log"] = [{k: v for k, v in row.items() if k not in clocks} for row in content["log"]]
    log = pd.read_csv(weights.with_suffix(".csv"))
    return {"weights": {k: v for k, v in content.items() if k != "provenance"},
            "csv": log.drop(columns=clocks).to_csv(index=False)}


def different(a, b, name=""):
    """The name of the first place where two results are not the same to the last bit, or None."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return None if same else name
    if type(a) is not type(b) or (isinstance(a, (dict, list, tuple)) and len(a) != len(b)):
        return name
    if isinstance(a, dict):
        return next((found for key in a if (found := different(a[key], b.get(key), f"{name}.{key}"))), None)
    if isinstance(a, (list, tuple)):
        return next((found for i in range(len(a)) if (found := different(a[i], b[i], f"{name}.{i}"))), None)
    return None if a == b else name


# ---------------------------------------------------------------- other processes


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.engine.loop"])


def child(script, argv, log, settings, environment):
    """In a new process, and session: run a script on the toy set, with both outputs in the file `log`."""
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    use()
    for name, value in settings.items():
        setattr(loop if hasattr(loop, name) else distributed, name, value)
    sys.argv = [str(script), *map(str, argv)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def survivors(process):
    """The ids of processes of a child's session, itself included, that still run."""
    rows = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            rows.append(stat.read_text().rpartition(")")[2].split())
    return [row for row in rows if int(row[3]) == process.pid and row[0] != "Z"]


@contextmanager
def training(*argv, log, script=ROOT / "train" / "baseline.py", environment=(), **settings):
    """A process that trains; `settings` are constants of engine.loop or engine.distributed. It is dead afterwards."""
    process = CONTEXT.Process(target=child, args=(script, argv, log, settings, environment))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


class Bomb:
    """An object whose pickle runs a command when it is trusted: it would write the file `mark`."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


# ---------------------------------------------------------------- the official archive


def write_archive(folder, patch):
    """PATH/cifar-10-batches-py in the official format, whose md5s `patch` makes torchvision expect."""
    from hashlib import md5

    from torchvision.datasets import CIFAR10

    root = folder / CIFAR10.base_folder
    root.mkdir(parents=True)

    def write(name, content):
        (root / name).write_bytes(pickle.dumps(content))
        return name, md5((root / name).read_bytes()).hexdigest()

    def batch(images, labels):
        return {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels.tolist()}

    images, labels = arrays("train")
    train = [write(f"data_batch_{k + 1}", batch(images[k::5], labels[k::5])) for k in range(5)]
    test = [write("test_batch", batch(*arrays("test")))]
    meta = write("batches.meta", {"label_names": list(cifar10.CLASSES)})
    patch(CIFAR10, "train_list", train)
    patch(CIFAR10, "test_list", test)
    patch(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return folder
