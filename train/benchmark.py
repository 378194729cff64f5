"""Measure how much of the training time is the step itself, and how far that is from the hardware.

    python train/benchmark.py                                        under three minutes; a row of figures as it comes
    python train/benchmark.py --models flatse --precisions -b 512    float32 against bfloat16, at another batch
    python train/benchmark.py --bounds                               no measurement: an epoch by an H200's speed

Images per second of (a) the step alone, on a batch that stays on the device, (b) the loop, with augmentation and
mixing, (c) the same step fed with torchvision's v2 transforms, image by image, in a DataLoader, (d) the usual script:
that DataLoader, eager, float32, a look at every loss. They take turns, a b c d a b c d ..., and the median counts. A
model is named with its width, as in resnet18:16. `graphs` is what the compiler made of it, one when all is well.
Several trainings on one GPU: as many commands at once, the sum of their (b) against that of one.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count, islice, product, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train  # a library that is missing is told in one line

import pandas as pd
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torchvision.transforms import v2

import augment
import models
from augment.basic import MEAN, STD
from train.engine import data
from train.engine.checkpoint import Run, write_text
from train.engine.command import ROOT, add_common, check_target, command, integer, one_line, parser, user_errors
from train.engine.device import device_of, hardware, precision_of
from train.engine.loop import Ahead, batches, batches_per_chunk, builds_kernels, compiled, derive, train_step
from train.engine.parallel import Ranks
from train.engine.progress import progress, say
from train.engine.recipe import Recipe, augmentations, mix_name
from train.engine.state import State

DEFAULTS = {"cpu": "resnet18:8,resnet18:16,seresnet20:8",
            "cuda": "fastnet,resnet18,flatse,shakeshake26-64-se,seresnet164"}  # the quickest to compile first
SECONDS = 0.4  # of one measurement, and to the end of a chunk of augmentation
SETTLE = 0.2  # seconds for the workers to fill their queues, before a measurement
AUGMENT = ("crop", "flip", "autoaugment", "erase")  # as the teachers have it, with RICAP
FLOPS, BYTES = 790e12, 4.3e12  # per second, as reached on an H200 in bfloat16; its data sheet has 989e12, 4.8e12
PASSES = 8  # over a convolution's output: written, read and written by a fused normalization, read; its gradient too

# torchvision's form of an augmentation, by its strengths.
V2 = {
    "crop": lambda padding=4: v2.RandomCrop(32, int(padding)),
    "shift": lambda padding=2: v2.RandomCrop(32, int(padding), padding_mode="reflect"),
    "flip": lambda p=0.5: v2.RandomHorizontalFlip(p),
    "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "trivial": lambda: v2.TrivialAugmentWide(),
    "augmix": lambda severity=3, width=3, alpha=0.4: v2.AugMix(int(severity), int(width), alpha=alpha),
    "erase": lambda p=0.25, low=0.02, high=0.4, flat=0.3, tall=3.3: v2.RandomErasing(p, (low, high), (flat, tall)),
    "cutout": lambda size=16: v2.RandomErasing(1.0, ((size / 32) ** 2,) * 2, (1, 1)),
}


def feed_loader(dataset, recipe, workers):
    """Batches without end of torchvision's transforms, and how many its queues hold; None for what torchvision lacks.

    As from torchvision's own datasets: every image is a PIL image that is transformed when it is asked for.
    """
    try:
        transforms = [V2[name](*map(float, strengths)) for name, *strengths in (a.split(":") for a in recipe.augment)]
    except (KeyError, TypeError):  # an augmentation, or a strength of it
        return None
    erasing = [transform for transform in transforms if isinstance(transform, v2.RandomErasing)]  # comes last
    others = [transform for transform in transforms if transform not in erasing]
    transform = v2.Compose([*others, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
                            *erasing])
    pictures = [(v2.functional.to_pil_image(image), label) for image, label in zip(dataset.images, dataset.labels)]
    loader = DataLoader(pictures, recipe.batch_size, collate_fn=partial(collate, transform), num_workers=workers,
                        sampler=RandomSampler(pictures, replacement=True, num_samples=2**40),
                        pin_memory=torch.cuda.is_available())
    return iter(loader), workers * (loader.prefetch_factor or 0)


def collate(transform, pictures):
    return default_collate([(transform(picture), label) for picture, label in pictures])


def feed_loop(dataset, recipe, device):
    """The batches of one epoch after another, as the loop has them."""
    images, targets, ahead = dataset.images.to(device), [data.one_hot(dataset.labels).to(device)], Ahead(device)
    for epoch in count():
        yield from ahead(batches(images, targets, recipe, epoch))


def build(name):
    """The model of `name` or `name:width`; UserError when there is none."""
    name, _, width = name.partition(":")
    with user_errors(f"--models {name}: "):
        if width and (not width.isdecimal() or int(width) < 1):
            raise ValueError(f"a width is a whole number, 1 or more, not {width}")
        return models.build(name, **({"width": int(width)} if width else {}))


def measure(name, variants, dataset, loader, device, repeats):
    """The rows of a model, one for each (compiling, recipe) that compiles: medians of runs that all take turns."""
    torch._dynamo.reset()
    ready = []
    for compiling, recipe in variants:
        try:
            ready.append(prepare(name, recipe, compiling, dataset, loader, device))
        except torch._dynamo.exc.TorchDynamoException as error:
            say(f"{name}, {recipe.precision}: DOES NOT COMPILE, and is left out: {one_line(error)[:300]}")
    turns = [[{way: run() for way, run in ways.items()} for _, ways in ready]
             for _ in progress(range(repeats), name, unit="turn")]
    for (row, _), *rates in zip(ready, *turns):
        row["images_per_second"] = pd.DataFrame(rates).median().to_dict()
    return [row for row, _ in ready]


def prepare(name, recipe, compiling, dataset, loader, device):
    """(a row that only lacks its rates, {way: function that measures one}), all of it compiled and warmed up."""
    counters.clear()
    occupied = torch.cuda.memory_allocated()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    # 1. A model with all that trains it.
    torch.manual_seed(0)
    model = build(name).to(device, memory_format=torch.channels_last).train()
    network = compiled(model, device) if compiling else model
    state = State(model, recipe, Run("nowhere/benchmark.pt"), data_digest="", steps=1, ranks=Ranks())
    mix, generator = augment.mixing(recipe.mix), torch.Generator(device).manual_seed(0)

    # 2. The loop's step, the same on a loader's batch, and that of the usual script.
    def step(images, *targets):
        torch.manual_seed(derive(0, "model", state.step))
        parts, logits = train_step(network, state.optimizer, recipe, images, targets)
        state.advance(parts, logits, targets[0], len(images))

    def step_mixed(images, labels):
        images, targets = mix(generator, images.to(device, non_blocking=True),
                              data.one_hot(labels).to(device, non_blocking=True))
        step(images.contiguous(memory_format=torch.channels_last), targets)

    def step_usual(images, labels):
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # torch's default, for a script that says nothing
        state.optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        state.optimizer.step()
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        return loss.item()

    loop, timed = feed_loop(dataset, recipe, device), partial(rate, recipe.batch_size)
    batch = next(feed_loop(dataset, recipe, device))
    ways = {"step": partial(timed, step, repeat(batch)), "loop": partial(timed, step, loop)}

    # 3. Compile and warm up, and tell what that took.
    first, further = (3 * recipe.batch_size / ways["step"](steps=3) for _ in range(2))  # seconds; the first compile
    ways["loop"]()
    row = {"model": model.name, "batch_size": recipe.batch_size, "precision": recipe.precision,
           "compile_seconds": max(0.0, first - further) if compiling else None,
           "compiler": explain_compilation() if compiling else "eager",
           "peak_bytes": torch.cuda.max_memory_allocated() - occupied if device.type == "cuda" else None,
           "bound": bound(name) if device.type == "cuda" and recipe.precision == "bfloat16" else None}
    if loader:
        ways |= {"torchvision": partial(timed, step_mixed, *loader), "usual": partial(timed, step_usual, *loader)}
        ways["usual"](steps=3)
    return row, ways


def rate(batch_size, step, source, queued=0, steps=None):
    """Images per second of a step on endless batches: so many steps, or whole chunks for about SECONDS.

    queued: batches of `source` that may be ready already, and cost nothing: they are dropped.
    """
    chunk = batches_per_chunk(batch_size)
    time.sleep(SETTLE)
    list(islice(source, queued))
    began = now()
    for done, batch in enumerate(source, 1):
        step(*batch)
        late = done % chunk == 0 and time.perf_counter() - began > SECONDS
        if done == steps or late and not steps:
            break
    return done * batch_size / (now() - began)


def now():
    """The time in seconds, when the device has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def explain_compilation():
    """What the compiler made of the model: "1 graph(s)" when all is well, and in capitals what is not."""
    breaks, frames = counters["graph_break"], counters["frames"]
    found = {"graph(s)": counters["stats"]["unique_graphs"], "GRAPH BREAK(S)": sum(breaks.values()),
             "LEFT TO EAGER": frames["total"] - frames["ok"], "NO CUDA GRAPH": counters["inductor"]["cudagraph_skips"]}
    words = ", ".join(f"{number} {what}" for what, number in found.items() if number) or "NOTHING COMPILED"
    return words + "".join(f" ({one_line(reason)[:150]})" for reason in list(breaks)[:1])


def bound(name):
    """Images per second of training that an H200 could reach, by arithmetic and by memory traffic, each for itself.

    Backward costs twice the forward pass. The traffic is that of PASSES over the convolutions' outputs in bfloat16.
    """
    model, sizes = build(name), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _input, output: sizes.append(output.numel()))
    multiplications = models.macs(model)
    return {"compute": FLOPS / (2 * 3 * multiplications), "memory": BYTES / (2 * PASSES * sum(sizes))}


# ---------------------------------------------------------------- the command

HEADER = """\
| model | batch | | (a) step | (b) loop | (c) torchvision | (d) usual | not step | memory | compile | graphs | bound |
| --- | ---: | --- |""" + " ---: |" * 7 + " --- | ---: |"


def line_of(row):
    """A row as Markdown; rates in images per second."""
    rates = row["images_per_second"]
    cells = [row["model"], row["batch_size"], row["precision"],
             *(f"{rates[way]:,.0f}" if way in rates else "" for way in ("step", "loop", "torchvision", "usual")),
             f"{1 - rates['loop'] / rates['step']:.1%}",
             "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB",
             "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.0f} s", row["compiler"],
             f"{rates['loop'] / min(row['bound'].values()):.1%}" if row["bound"] else ""]
    return f"| {' | '.join(map(str, cells))} |"


def flags():
    arguments = parser(__doc__)
    add_common(arguments)
    add = arguments.add_argument
    add("--models", metavar="NAME[:WIDTH],...", help="default: small ones on a CPU, one of each family on CUDA")
    add("--batch-size", "-b", type=integer(1), default=128, metavar="N", help="images per step")
    add("--augment", type=augmentations, default=AUGMENT, metavar="NAME[:STRENGTH],...", help="as in training")
    add("--mix", type=mix_name, default="ricap", metavar="NAME[:STRENGTH]", help="as in training")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="as in training")
    add("--precisions", action="store_true", help="measure float32 and bfloat16, in turns")
    add("--compile", action=argparse.BooleanOptionalAction,
        help="measure eager and compiled models, or eager ones alone (default: compiled ones alone on CUDA, where "
        "there is a compiler)")
    add("--repeats", type=integer(1), default=3, metavar="N", help="measurements of which the median counts")
    add("--workers", type=integer(0), default=min(8, os.cpu_count()), metavar="N", help="of the DataLoader")
    add("--bounds", action="store_true", help="only print what an epoch takes by an H200's speed")
    add("--json", "--output", type=Path, default=ROOT / "weights" / "benchmark.json", metavar="FILE",
        help="also write the figures there")
    return arguments


@command
def main():
    args = flags().parse_args()
    check_target("--json", args.json, ".json")
    device = device_of(args.device)
    chosen = (args.models or DEFAULTS["cuda" if args.bounds else device.type]).split(",")
    built = [build(name) for name in chosen]  # a wrong name is told before the work
    if args.bounds:
        print("| model | MACs | an epoch's arithmetic | its memory traffic |\n| --- | ---: | ---: | ---: |")
        for name, model in zip(chosen, built):
            compute, memory = (50_000 / rate for rate in bound(name).values())
            print(f"| {model.name} | {models.macs(model) / 1e6:,.0f} M | {compute:.2f} s | {memory:.2f} s |")
        return

    # What is fed: the training images in whole chunks (the rest is left out, less than one chunk repeated).
    recipe = Recipe(batch_size=args.batch_size, augment=args.augment, mix=args.mix)
    chunk = batches_per_chunk(args.batch_size) * args.batch_size
    dataset = data.load(args.data)
    dataset = dataset.select(torch.arange(max(1, len(dataset) // chunk) * chunk).numpy() % len(dataset))
    loader = feed_loader(dataset, recipe, args.workers)

    # What is measured.
    torch._dynamo.config.suppress_errors = False  # whatever the environment says
    precisions = ["float32", "bfloat16"] if args.precisions else [precision_of(args.precision, device)]
    by_default = device.type == "cuda" and builds_kernels(device)
    compiling = [by_default] if args.compile is None else [False, True][:1 + args.compile]
    variants = [(how, replace(recipe, precision=precision)) for how, precision in product(compiling, precisions)]
    figures = {"hardware": hardware(device), "torch": str(torch.__version__), "augment": ",".join(args.augment),
               "mix": args.mix, "workers": args.workers, "repeats": args.repeats, "rows": []}
    say(", ".join(f"{name} {value}" for name, value in figures.items() if name != "rows"),
        "" if loader else "(torchvision lacks an augmentation of these)", f"\n\n{HEADER}")
    for name in chosen:  # what is measured is told and written at once, should the time run out
        for row in measure(name, variants, dataset, loader, device, args.repeats):
            figures["rows"].append(row)
            say(line_of(row))
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
