"""Training speed in images per second: of the step alone, of the whole loop, and of a typical script.

    python train/benchmark.py                             three small models on a CPU, five models on a GPU
    python train/benchmark.py --models flatse,resnet18:16 -b 512 --precision float32

`step` is the training step on a batch that stays on the device; `loop` is the step with crop, flip, AutoAugment,
erasing and RICAP; `usual` is a typical script: torchvision's transforms for all but RICAP, image by image in a
DataLoader, float32, not compiled, and every loss is read. The three take turns; of each, the median counts.
`first steps` is the time of three steps, with compiling; `GPU memory` is the peak until they end, with the images (0 on
a CPU). Three minutes.
"""

import os
import statistics
import sys
import time
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator
from itertools import count, islice, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torchvision.transforms import v2

import augment
from augment.basic import MEAN, STD
from train import UserError
from train.data import cifar10
from train.engine.batches import Ahead, batches
from train.engine.command import add_common, command, integer, parser
from train.engine.device import compilation, compiled, device_of, hardware, precision_of
from train.engine.flags import config
from train.engine.loop import build, cross_entropy, parameter_groups, train_step
from train.engine.progress import progress, say

MODELS = {"cpu": "resnet18:8,resnet18:16,seresnet20:8",
          "cuda": "fastnet,resnet18,flatse,shakeshake26-64-se,seresnet164"}  # the quickest to compile first
RECIPE = dict(augment="crop,flip,autoaugment,erase", mix="ricap", allow_over_budget=True)
TRANSFORM = v2.Compose([
    v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.RandomErasing(0.25, (0.02, 0.4), (0.3, 3.3))])
HEADER = "| model | precision | step | loop | usual | first steps, s | GPU memory, MiB |\n| --- | --- |" + " ---: |" * 5
WORKERS = min(8, os.cpu_count())  # of the DataLoader
TURNS = 3  # of each measurement; the median counts
SECONDS, SETTLE = 0.4, 0.2  # of a measurement, at least; before it, for the workers to fill their queues


def loop_batches(dataset: cifar10.Dataset, args: Namespace, device: torch.device) -> Iterator:
    """Endless batches (images, targets), epoch after epoch, as in the training loop."""
    images, targets, ahead = dataset.images.to(device), [cifar10.one_hot(dataset.labels).to(device)], Ahead(device)
    for epoch in count():
        yield from ahead(batches(images, targets, args, epoch))


def usual_batches(dataset: cifar10.Dataset, batch_size: int) -> tuple[Iterator, int]:
    """(endless batches (images, labels) from a DataLoader, the number of them that its queues hold)."""
    pictures = [*zip(map(v2.functional.to_pil_image, dataset.images), dataset.labels, strict=True)]
    loader = DataLoader(pictures, batch_size, sampler=RandomSampler(pictures, replacement=True, num_samples=2**40),
                        collate_fn=collate, num_workers=WORKERS, pin_memory=torch.cuda.is_available())
    return iter(loader), WORKERS * (loader.prefetch_factor or 0)


def collate(pictures: list[tuple]) -> list[torch.Tensor]:
    return default_collate([(TRANSFORM(picture), label) for picture, label in pictures])


def measure(args: Namespace, wanted: bool | None, dataset: cifar10.Dataset, usual: tuple,
            device: torch.device) -> list[str | float]:
    """A model's row: name, precision, images per second of each measurement, seconds and memory of the first steps."""
    torch.compiler.reset()  # frees what was compiled for the previous model
    cudnn = torch.backends.cudnn
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = build(args).to(device, memory_format=torch.channels_last).train()
    (compiling, _), loss = compilation(wanted, device, 10**6, model), cross_entropy(args.smoothing)
    network = compiled(model, device) if compiling else model
    optimizer = torch.optim.SGD(parameter_groups(args, model), lr=args.lr, momentum=args.momentum,
                                nesterov=args.nesterov, weight_decay=args.weight_decay, fused=device.type == "cuda")

    def step(images, targets):
        train_step(network, optimizer, args, loss, images, [targets])

    def usual_step(images, labels):
        with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=True):  # TF32 as by torch's default
            optimizer.zero_grad()
            logits = model(images.to(device)).view(len(images), -1, len(cifar10.CLASSES)).mean(1)
            error = F.cross_entropy(logits, labels.to(device))
            error.backward()
            optimizer.step()
            return error.item()

    feed = loop_batches(dataset, args, device)
    ways = (step, repeat(next(feed))), (step, feed), (usual_step, *usual)
    began = now()
    for _ in range(3):  # compiled in the first, recorded as a CUDA graph in the second
        step(*next(feed))
    first, memory = now() - began, torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0
    usual_step(*next(usual[0]))
    turns = [[rate(args.batch_size, *way) for way in ways] for _ in progress(range(TURNS), model.name, unit="turn")]
    how = args.precision + ", compiled" * compiling
    return [model.name, how, *map(statistics.median, zip(*turns, strict=True)), first, memory]


def rate(batch_size: int, step: Callable, source: Iterator, queued: int = 0) -> float:
    """Images per second of a step on endless batches; the first `queued`, prepared beforehand, are dropped."""
    chunk = max(1, augment.CHUNK // batch_size)  # batches that are augmented in one call
    time.sleep(SETTLE)
    list(islice(source, queued))
    began = now()
    for done, batch in enumerate(source, 1):
        step(*batch)
        if done % chunk == 0 and time.perf_counter() - began > SECONDS:
            return done * batch_size / (now() - began)


def now() -> float:
    """The time in seconds, once the device has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    arguments = parser(__doc__)
    add_common(arguments)
    add = arguments.add_argument
    add("--models", metavar="NAME[:WIDTH],...", help="default: small ones on a CPU, five on CUDA")
    add("--batch-size", "-b", type=integer(1), default=128, metavar="N", help="images per step")
    add("--precision", default="auto", metavar="NAME", help="as in training")
    add("--compile", action=BooleanOptionalAction, help="default: as in a long training")
    args = arguments.parse_args()
    device, runs = device_of(args.device), []
    for name, _, width in (text.partition(":") for text in (args.models or MODELS[device.type]).split(",")):
        recipe = RECIPE | ({"model": name, "width": width} if width else {"model": name})
        runs.append(config(recipe, batch_size=args.batch_size, precision=args.precision))
        build(runs[-1])  # so that a wrong width is reported before the work
        runs[-1].precision = precision_of(args.precision, device)
    dataset = cifar10.load(args.data)
    if args.batch_size > len(dataset):  # a step would see fewer images than are counted
        raise UserError(f"--batch-size {args.batch_size:,} is above the {len(dataset):,} images of {dataset.source}")
    usual = usual_batches(dataset, args.batch_size)
    say(f"{hardware(device)}, torch {torch.__version__}, batches of "
        f"{args.batch_size}, {WORKERS} workers; images per second:\n\n{HEADER}")
    for run in runs:
        row = measure(run, args.compile, dataset, usual, device)
        say(f"| {' | '.join(row[:2])} | {' | '.join(f'{cell:,.0f}' for cell in row[2:])} |")


if __name__ == "__main__":
    with command():
        main()
