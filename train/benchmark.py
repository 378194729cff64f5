"""Measure how much of the training time is the step itself, and how far that is from the hardware.

    python train/benchmark.py                                   under 3 minutes on two CPU cores; writes the JSON too
    python train/benchmark.py --models seresnet164 --batch-size 512
    python train/benchmark.py --models seresnet164 --folds 5    also five trainings at once against one
    python train/benchmark.py --bounds                          no measurement: an epoch by an H200's speed

Images per second of (a) the step alone, on a batch that stays on the device, (b) the loop, with augmentation and
mixing, (c) the same step fed with torchvision's v2 transforms, image by image, in a DataLoader, and on CUDA (d) the
usual script: that DataLoader with 8 workers, float32, a look at every loss. All take turns, a b c a b c ..., after
a warm-up, and the median counts. A model is named with its width, as in resnet18:16.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import v2

import augment
import models
from augment.basic import MEAN, STD
from train import data
from train.checkpoint import write_text
from train.loop import State, ahead, batches, compiled, cross_entropy, derive, optimizer_of, train_step
from train.parallel import Ranks
from train.progress import progress
from train.recipe import ROOT, Recipe, UserError, add_common, check_target, command, device_of, names, parser, whole

MODELS = {"cpu": "resnet18:8,resnet18:16,seresnet20:8", "cuda": "resnet18,seresnet164,shakeshake26-64-se"}
STEPS = {"cpu": 8, "cuda": 200}  # in one measurement; rounded up to whole chunks of augmentation
AUGMENT = ("crop", "flip", "autoaugment", "erase")  # as the teachers have it, with RICAP
FLOPS, BYTES = 790e12, 4.3e12  # per second, as reached on an H200 in bfloat16; its data sheet has 989e12, 4.8e12
PASSES = 8  # over a convolution's output: written, read and written by a fused normalization, read; its gradient too
SETTLE = 0.3  # seconds for the workers to fill their queues, before a measurement

V2 = {
    "crop": v2.RandomCrop(32, padding=4),
    "shift": v2.RandomCrop(32, padding=2, padding_mode="reflect"),
    "flip": v2.RandomHorizontalFlip(),
    "autoaugment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "trivial": v2.TrivialAugmentWide(),
    "augmix": v2.AugMix(severity=3),
    "erase": v2.RandomErasing(0.25, scale=(0.02, 0.4)),
    "cutout": v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1, 1)),
}
TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


class PerImage(torch.utils.data.Dataset):
    """Images as torchvision's own datasets give them: a PIL image, transformed when it is asked for."""

    def __init__(self, dataset, chosen):
        pictures = [name for name in chosen if name not in ("erase", "cutout")]  # those two come after normalization
        self.transform = v2.Compose([*map(V2.get, pictures), *TENSOR, *(V2[n] for n in chosen if n not in pictures)])
        self.images, self.labels = [v2.functional.to_pil_image(image) for image in dataset.images], dataset.labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.transform(self.images[row]), self.labels[row]


class Subject:
    """One model with all that trains it: `step` is the loop's, `usual` that of a script without any care."""

    def __init__(self, name, recipe, device, compiling):
        torch.manual_seed(0)
        self.model = build(name).to(device, memory_format=torch.channels_last).train()
        self.network = compiled(self.model, device) if compiling else self.model
        self.device, self.recipe = device, recipe
        self.optimizer = optimizer_of(self.model, recipe)
        nowhere = SimpleNamespace(load_state=lambda say: None)
        self.state = State(self.model, self.optimizer, lambda step: recipe.lr, recipe, nowhere, "", Ranks())

    def step(self, images, *targets):
        torch.manual_seed(derive(0, "model", self.state.step))
        parts, answer = train_step(self.network, self.optimizer, cross_entropy, images, targets)
        self.state.advance(parts, answer, targets[0], len(images))

    def usual(self, images, labels):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def rate(self, source, step=None):
        """Images per second of the batches that `source()` gives."""
        fed = source()
        time.sleep(SETTLE)
        settle(self.device)
        began, count = time.perf_counter(), 0
        for images, *targets in fed:
            (step or self.step)(images, *targets)
            count += len(images)
        settle(self.device)
        return count / (time.perf_counter() - began)


def settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- where batches come from


def steps_of(recipe, device):
    """The number of steps in one measurement: whole chunks, for a chunk is augmented at once."""
    chunk = max(1, augment.CHUNK // recipe.batch_size)
    return chunk * -(-STEPS[device.type] // chunk)


def repeated(dataset, count):
    """`count` images of a Dataset, repeated where it has fewer."""
    return dataset.select(torch.arange(count).numpy() % len(dataset))


def looped(dataset, recipe, device):
    """A source of one epoch after another, as the loop has it."""
    images, targets = dataset.images.to(device), [data.one_hot(dataset.labels).to(device)]
    epochs = iter(range(10**9))
    return lambda: ahead(batches(images, targets, recipe, next(epochs)), device)


def loaded(dataset, recipe, workers):
    """An endless DataLoader of per-image transforms: normalized float (B, 3, 32, 32) and int64 labels (B,)."""
    endless = RandomSampler(dataset, replacement=True, num_samples=2**40)
    return DataLoader(PerImage(dataset, recipe.augment), recipe.batch_size, sampler=endless, num_workers=workers,
                      pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0)


def steady(loader, count):
    """A source of `count` batches of a loader whose queues were emptied: what it keeps up, not what it has in store."""
    waiting = iter(loader)

    def source():
        list(islice(waiting, loader.num_workers * (loader.prefetch_factor or 0)))
        return islice(waiting, count)

    return source


def mixed(source, recipe, device):
    """The batches of a loader as the loop's step takes them, mixed on the device."""
    mix, generator = augment.MIXES[recipe.mix], torch.Generator(device).manual_seed(0)

    def start():
        fed = source()
        return (mix(generator, images.to(device, non_blocking=True, memory_format=torch.channels_last),
                    data.one_hot(labels).to(device, non_blocking=True)) for images, labels in fed)

    return start


# ---------------------------------------------------------------- one row of the table


def measure(name, dataset, recipe, device, compiling, repeats, workers):
    """The row of one model: medians in images per second, and what follows from them."""
    reset_peak(device)
    subject, loop = Subject(name, recipe, device, compiling), looped(dataset, recipe, device)
    resident = list(islice(loop(), 1)) * (len(dataset) // recipe.batch_size)
    begun = 3 * recipe.batch_size / subject.rate(lambda: resident[:3])  # seconds; the second step records CUDA graphs
    ways = {"step": partial(subject.rate, lambda: resident), "loop": partial(subject.rate, loop)}
    warm = {way: run() for way, run in ways.items()}
    memory = peak(device)
    fed = steady(loaded(dataset, recipe, workers), len(resident))
    ways["torchvision"] = partial(subject.rate, mixed(fed, recipe, device))
    if device.type == "cuda":
        usual = Subject(name, recipe, device, compiling=False)
        ways["usual"] = partial(usual.rate, steady(loaded(dataset, recipe, workers=8), len(resident)), usual.usual)
    rates = in_turn(ways, repeats, f"{name}{', compiled' * compiling}")
    return {
        "model": subject.model.name, "batch_size": recipe.batch_size, "compiled": compiling,
        "images_per_second": rates,
        "compile_seconds": max(0.0, begun - 3 * recipe.batch_size / warm["step"]) if compiling else None,
        "loader_share": 1 - rates["loop"] / rates["step"], "over_torchvision": rates["loop"] / rates["torchvision"],
        "peak_bytes": memory, "roofline": roofline(name) if device.type == "cuda" else None,
    }


def in_turn(ways, repeats, label):
    """{way: median rate} of runs that alternate, a b c a b c ..., the first of each not counted."""
    rates = {way: [] for way in ways}
    for _ in progress(range(repeats + 1), label, unit="turn"):
        for way, run in ways.items():
            rates[way].append(run())
    return {way: statistics.median(found[1:]) for way, found in rates.items()}


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device):
    """Bytes: of the device's memory, or of the whole process so far on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def roofline(name):
    """Images per second of training that an H200 could reach, by arithmetic and by memory traffic, each for itself.

    Backward costs twice the forward pass. The traffic is that of PASSES over the convolutions' outputs in bfloat16.
    """
    model, sizes = build(name), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _input, output: sizes.append(output.numel()))
    multiplications = models.macs(model)
    return {"compute": FLOPS / (2 * 3 * multiplications), "memory": BYTES / (2 * PASSES * sum(sizes))}


def build(name):
    """The model of `name` or `name:width`; UserError when there is none."""
    name, _, width = name.partition(":")
    if width and not width.isdecimal():
        raise UserError(f"--models {name}:{width}: the width should be a whole number")
    try:
        return models.build(name, **({"width": int(width)} if width else {}))
    except ValueError as error:
        raise UserError(f"--models: {error}")


# ---------------------------------------------------------------- several trainings on one device


def at_once(count, name, dataset, recipe, device, compiling):
    """Images per second of `count` trainings together, each a process of its own."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(count), context.Queue()
    arguments = (count, barrier, rates, name, dataset, recipe, device, compiling)
    processes = [context.Process(target=take_part, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    total = sum(rates.get(timeout=1800) for _ in processes)
    for process in processes:
        process.join()
    return total


def take_part(count, barrier, rates, name, dataset, recipe, device, compiling):
    """One of the trainings: the median of three epochs that all begin together."""
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.set_float32_matmul_precision("high")
    subject, loop = Subject(name, recipe, device, compiling), looped(dataset, recipe, device)
    subject.rate(loop)
    found = []
    for _ in range(3):
        barrier.wait()
        found.append(subject.rate(loop))
    rates.put(statistics.median(found))


def folds_row(count, *what):
    alone, together = at_once(1, *what), at_once(count, *what)
    return {"model": build(what[0]).name, "processes": count, "alone": alone, "together": together}


# ---------------------------------------------------------------- the command


def table(rows):
    """The rows as Markdown; rates in images per second."""
    yield ("| model | batch | | (a) step | (b) loop | (c) torchvision v2 | (d) usual script | of (b) not in (a) "
           "| (b) / (c) | peak memory | compile | of the roofline |")
    yield "| --- | ---: | --- |" + " ---: |" * 9
    for row in rows:
        rates = row["images_per_second"]
        bound = row["roofline"] and min(row["roofline"].values())
        cells = [row["model"], row["batch_size"], "compiled" if row["compiled"] else "eager",
                 *(f"{rates[way]:,.0f}" if way in rates else "" for way in ("step", "loop", "torchvision", "usual")),
                 f"{row['loader_share']:.1%}", f"{row['over_torchvision']:.2f}",
                 f"{row['peak_bytes'] / 2**20:,.0f} MiB",
                 f"{row['compile_seconds']:.0f} s" if row["compiled"] else "",
                 f"{rates['loop'] / bound:.1%}" if bound else ""]
        yield "| " + " | ".join(map(str, cells)) + " |"


def bounds(chosen):
    """Seconds that an epoch of 50,000 images takes by the `roofline`, as Markdown."""
    yield "| model | MACs | an epoch's arithmetic | its memory traffic |"
    yield "| --- | ---: | ---: | ---: |"
    for name in chosen:
        model = build(name)
        compute, memory = (50_000 / rate for rate in roofline(name).values())
        yield f"| {model.name} | {models.macs(model) / 1e6:,.0f} M | {compute:.2f} s | {memory:.2f} s |"


def told(folds):
    ratio = folds["together"] / folds["alone"]
    return (f"{folds['model']}: {folds['processes']} trainings at once {folds['together']:,.0f} images/s, one alone "
            f"{folds['alone']:,.0f}: at once they take {1 / ratio:.2f} of the time of one after the other")


def flags():
    arguments = parser(__doc__)
    add_common(arguments)
    add = arguments.add_argument
    add("--models", metavar="NAME[:WIDTH],...", help="default: small ones on a CPU, the teachers on CUDA")
    add("--batch-size", "-b", type=whole(1), default=128, metavar="N", help="images per step")
    add("--augment", type=names, default=AUGMENT, metavar="NAME[,NAME...]", help="as in training")
    add("--mix", default="ricap", choices=tuple(augment.MIXES), help="as in training")
    add("--compile", action=argparse.BooleanOptionalAction, help="measure compiled models too (default: on CUDA)")
    add("--repeats", type=whole(1), default=5, metavar="N", help="measurements of which the median counts")
    add("--workers", type=whole(0), default=min(8, os.cpu_count()), metavar="N", help="of the DataLoader of (c)")
    add("--folds", type=whole(2), metavar="N", help="also N trainings at once, against one after the other")
    add("--bounds", action="store_true", help="only print what an epoch takes by an H200's speed")
    add("--json", "--output", type=Path, default=ROOT / "weights" / "benchmark.json", metavar="FILE",
        help="also write the figures there")
    return arguments


@command
def main():
    args = flags().parse_args()
    check_target("--json", args.json, ".json")
    device = device_of(args.device)
    chosen = (args.models or MODELS["cuda" if args.bounds else device.type]).split(",")
    for name in chosen:
        build(name)
    if args.bounds:
        print(*bounds(chosen), sep="\n")
        return
    torch.set_float32_matmul_precision("high")
    compiling = device.type == "cuda" if args.compile is None else args.compile
    recipe = Recipe(batch_size=args.batch_size, augment=args.augment, mix=args.mix)
    dataset = repeated(data.load(args.data), steps_of(recipe, device) * recipe.batch_size)
    rows = [measure(name, dataset, recipe, device, variant, args.repeats, args.workers)
            for name in chosen for variant in ([False, True] if compiling else [False])]
    folds = [folds_row(args.folds, name, dataset, recipe, device, compiling) for name in chosen] if args.folds else []
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    print(f"{where}, torch {torch.__version__}, {','.join(recipe.augment) or 'no augmentation'}, mix {recipe.mix}, "
          f"{args.workers} workers; images per second, medians of {args.repeats}\n")
    print(*table(rows), "", *map(told, folds), sep="\n")
    figures = {"hardware": where, "torch": str(torch.__version__), "augment": recipe.augment, "mix": recipe.mix,
               "workers": args.workers, "repeats": args.repeats, "rows": rows, "folds": folds}
    write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
