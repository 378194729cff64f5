"""Training, from top to bottom: `run` makes finished weights of a configuration (flags.py).

SGD with Nesterov momentum; the learning rate is a pure function of the step; images, labels and all augmentation live
on the device. Every random number comes from (seed, epoch) or (seed, step), never from what ran before, so a run that
was killed and resumed ends bit for bit like one that was not: on CPUs, and on one GPU in torch's deterministic mode.
"""

import copy
import math
import os
import platform
import signal
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import models
from augment.basic import normalize
from train import ROOT, UserError
from train.data import cifar10
from train.engine import checkpoint, distributed, metrics
from train.engine.batches import Ahead, batches, derive, steps_per_epoch
from train.engine.command import command_line, count_of, of_the_compiler, short_path
from train.engine.device import autocast, compilation, compiled, device_of, hardware, precision_of
from train.engine.distributed import Ranks
from train.engine.flags import FILES, RUNTIME
from train.engine.network import ENVIRONMENT, Frozen, Network, join_distinct, load, logits
from train.engine.progress import Every, Progress, duration, say

SAVE_EVERY = 300.0  # seconds between two saved states
LOOK_EVERY = 0.5  # seconds between two reads of the loss, each of which waits for the device
LOW_RES = 20  # pixels of a side in the first part of a run with --low-res
SPARED = 1 - (LOW_RES / 32) ** 2  # share of a step's work that these smaller images save
WHITENED = 5_000  # images that determine FastNet's whitening convolution


def run(args: Namespace, targets: Callable | None = None, loss: Callable | None = None,
        teachers: Sequence[Network] = ()) -> Path:
    """Train a configuration from the images to finished weights; returns their path.

    targets: a function of the training Dataset to (Dataset, further float targets (N, K)), which may append images;
    loss: (logits (B, K), labels (B, K), *further targets) -> a dict of scalars, of which "loss" is minimized and all
    are logged; teachers: Networks whose mean logits for each batch are its last target. UserError for whatever the user
    can fix.
    """
    # 1. The device, the model, and the files of the run.
    distributed.check_environment()
    device, code, loss = device_of(args.device), commit(), loss or cross_entropy(args.smoothing)
    torch.manual_seed(derive(args.seed, "init"))
    model = build(args)
    weights = Path(args.out or ROOT / "weights" / f"{run_name(args, model.name)}.pt")
    start = load(args.init) if args.init else None
    earlier = [*teachers, *([start] if start else [])]  # the networks that this run learns from
    check_start(args, model, weights, start, earlier)
    with Ranks(device, args.compile) as ranks, ranks.hold(checkpoint.RunFiles(weights)) as files:
        finished = ranks.once(files.check_fresh if args.fresh else files.finished)
        saved = finished or (None if args.fresh else ranks.once(files.load_state))
        usual = ranks.once(lambda: precision_of(args.precision, device))  # one for all ranks, on any machines
        args = settle_precision(args, usual, saved, bool(finished))

        # 2. The images, and the targets of each.
        dataset = cifar10.load(args.data)
        for network in earlier:
            network.split(dataset)  # or a UserError: it was trained on other images
        labelled, val = cifar10.split(dataset, args.fold, args.limit)
        del dataset  # the split has copied the images
        train, further = labelled, ()
        if args.include_test:
            train = cifar10.join(labelled, cifar10.load(args.data, "test"))
        if hasattr(model, "whiten"):
            model.whiten(normalize(train.images[:WHITENED]))
        if targets:
            train, further = targets(train)
        if start:
            model.load_state_dict(start.model.state_dict())
        seen = seen_folds(args, earlier)
        # A fold that the teachers have trained on is not logged as validation.
        fold_role = "seen_fold" if args.fold in seen else "val"
        config = stored(args, start, teachers)
        # A CSV is in the configuration, by its content; the last bits of the targets made from it vary by processor.
        digest = checkpoint.digest([train.digest, *(() if config.get("labels") else further)])
        per_epoch = steps_per_epoch(len(train), args.batch_size)
        steps, low_res_steps = args.epochs * per_epoch, round(args.low_res * args.epochs * per_epoch)
        compiling, why_not = compilation(args.compile, device, steps, model)
        ranks.once(lambda: files.forget() if args.fresh else None)  # a barrier too: a rank may be fetching the images
        if saved:
            checkpoint.check_same(saved, config, digest)
        if finished:
            say(f"{weights} is finished: train/evaluate.py scores it, --fresh trains it again")
            return weights

        # 3. All that changes during training, restored if a state was saved.
        # channels_last on a CPU too: 1.04 to 1.45 times as fast for all families from width 8 on.
        model.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            parameter_groups(args, model), lr=args.lr, momentum=args.momentum, nesterov=args.nesterov,
            weight_decay=args.weight_decay, fused=device.type == "cuda")
        average = copy.deepcopy(model).eval().requires_grad_(False) if args.ema_decay else None
        step, rows, sums, spent = 0, [], {}, 0.0  # sums: of this epoch, by this rank; spent: seconds on this epoch
        places = [{"hardware": hardware(device), "torch": str(torch.__version__), "commit": code,
                   "execution": "compiled" if compiling else "eager",
                   "threads": torch.get_num_threads()}]  # of all the processes that worked on the run
        if saved:
            model.load_state_dict(saved["state"])
            optimizer.load_state_dict(saved["optimizer"])
            for group in optimizer.param_groups:  # the state may be from another kind of device
                group["fused"] = device.type == "cuda"
            if average:
                average.load_state_dict(saved["ema"])
            step, rows, spent, places = saved["step"], saved["rows"], saved["seconds"], saved["places"] + places
            sums = {name: torch.tensor(value * (ranks.rank == 0), dtype=torch.float64, device=device)
                    for name, value in saved["sums"].items()}
            say(f"{weights}: resumed at step {step:,}{other_conditions(places)}")
        if average:  # all float tensors of both, running statistics included, for one foreach call
            averaged, current = ([value for value in network.state_dict().values() if value.is_floating_point()]
                                 for network in (average, model))

        # 4. What runs: the network, compiled or not, and the data on the device.
        images = train.images.to(device)
        wanted = [cifar10.one_hot(train.labels).to(device), *(target.to(device) for target in further)]
        network = ranks.wrap(model)
        network = compiled(network, device) if compiling else network
        teach = Frozen([teacher.model for teacher in teachers], args.precision).to(device) if teachers else None
        if teachers and compiling:
            # Each alone, for equal ones then share a graph; no CUDA graphs, whose memory the student's would reuse.
            for teacher in teach.networks:
                teacher.compile(dynamic=False)

        def elapsed() -> float:
            return spent + time.perf_counter() - began

        def totals() -> dict[str, float]:
            """The sums of this epoch over all ranks; raises Diverged if a loss was not finite."""
            found = ranks.all_sum(torch.stack([*map(torch.Tensor.cpu, sums.values())])).tolist() if sums else []
            if not math.isfinite(sum(found)):
                raise Diverged("the loss", step, args, steps, files)
            return dict(zip(sums, found, strict=True))

        def content() -> dict:
            """What saved states and finished weights have in common."""
            return {"model": args.model, "options": model.options, "state": model.state_dict(),
                    "ema": average and average.state_dict(), "config": config, "data": digest}

        def save() -> None:
            state = content() | {"step": step, "rows": rows, "sums": totals(), "seconds": elapsed(), "places": places,
                                 "optimizer": optimizer.state_dict()}
            if flawed := ranks.once(lambda: checkpoint.nonfinite(state)):
                raise Diverged(flawed, step, args, steps, files)
            ranks.once(lambda: files.save_state(state))

        def work(done: int) -> float:  # in full steps; a validation image costs about a third of a training image
            return done - min(done, low_res_steps) * SPARED + done // per_epoch * len(val or ()) / args.batch_size / 3

        facts = [f"{models.parameter_count(model):,} parameters", hardware(device), args.precision, "channels_last",
                 "compiled" if compiling else why_not, count_of(len(train), "image"),
                 f"{count_of(steps, 'step')} in {count_of(args.epochs, 'epoch')}",
                 f"from {short_path(args.init)}" if start else ""]
        first_line = f"{model.name}: {', '.join(filter(None, facts))}"
        # Timing starts at the first look: a compiled run compiles in its first step and records graphs in its second.
        first = step
        first_look = first + (4 if compiling else 1)
        if compiling:
            say(f"{model.name}: the first step compiles the network, which takes one to five minutes")
        ahead, look_due, save_due, began = Ahead(device), Every(LOOK_EVERY), Every(SAVE_EVERY), time.perf_counter()

        with catch_signals() as signals, Progress(steps, weights.stem, "step", step, work, first_line) as bar:
            for epoch in range(len(rows), args.epochs):
                model.train()
                global_batches = ahead(batches(images, wanted, args, epoch, step - epoch * per_epoch))
                for count, scale, inputs, *labels in ranks.shard(global_batches):
                    if compiling and step == low_res_steps > first:
                        say(f"{model.name}: this step compiles the network again, for images of 32x32 pixels")
                    # 5. A step. All randomness inside the model follows from (seed, step) and the rank.
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(args, step, steps) * group.get("lr_scale", 1)
                    torch.manual_seed(derive(args.seed, "model", step, *ranks.seed))
                    side = LOW_RES if step < low_res_steps else None
                    labels += [teach(inputs)] if teachers else []
                    parts, predicted = train_step(network, optimizer, args, loss, inputs, labels, scale, side)
                    if average:  # its decay grows from 0.1, so that the initial weights soon lose their influence
                        decay = min(args.ema_decay, (1 + step) / (10 + step))
                        torch._foreach_lerp_(averaged, current, 1 - decay)

                    # 6. Its metrics, which stay on the device; only the first `count` images count.
                    hard = labels[0][:count]
                    labelled_here = hard.sum(1) > 0  # the others have no label
                    parts = {name: count * value.detach().double() for name, value in parts.items()} | {
                        "right": ((predicted[:count].argmax(1) == hard.argmax(1)) & labelled_here).sum().double(),
                        "labelled": labelled_here.sum().double(),
                        "images": torch.full((), count, dtype=torch.float64, device=device)}
                    sums = {name: sums.get(name, 0) + value for name, value in parts.items()}
                    step += 1

                    # 7. At intervals, what waits for the device: the bar, the saved state, a signal.
                    mean_loss = 0.0
                    if ranks.rank == 0 and step >= first_look and look_due():
                        mean_loss = (sums["loss"] / sums["images"]).item()
                        bar.reach(step, f"loss {mean_loss:.3f}")
                    caught, saving, diverged = ranks.all_max(
                        next(iter(signals), 0), ranks.rank == 0 and save_due(), not math.isfinite(mean_loss))
                    if diverged:
                        raise Diverged("the loss", step, args, steps, files)
                    if saving or caught:
                        save()
                    if caught:
                        raise Stopped(caught, step, args, steps, files)

                # 8. The end of an epoch: validation, and one row of the log. No choice depends on it.
                found = totals()
                trained, right, known = (found.pop(name) for name in ("images", "right", "labelled"))
                speed = trained / elapsed()  # of training, without the validation
                row = {"epoch": epoch + 1, "lr": learning_rate(args, step - 1, steps),
                       "train_loss": None, "train_accuracy": 100 * right / max(1, known)}
                row |= {f"train_{name}": total / trained for name, total in found.items()}
                row |= {"val_loss": None, "val_accuracy": None}
                if val:
                    held_out = ranks.once(lambda: logits(average or model, val.images))
                    row |= {f"{fold_role}_loss": metrics.nll(held_out, val.labels),
                            f"{fold_role}_accuracy": metrics.accuracy(held_out, val.labels)}
                rows.append(row | {"seconds": elapsed(), "images_per_second": speed})
                sums, spent, began = {}, 0.0, time.perf_counter()
                ranks.once(lambda: files.save_csv(rows))
                bar.reach(step)
            save()

        # 9. Finished: the weights of the last step, with their provenance.
        about = provenance(args, model, content(), train, labelled, rows, places, start, seen)
        ranks.once(lambda: files.finish(content() | {"log": rows, "provenance": about}))
    seconds = sum(row["seconds"] for row in rows)
    what = "validation" if fold_role == "val" else f"NO VALIDATION (the teachers have trained on fold {args.fold}):"
    validation = f", {what} {rows[-1][f'{fold_role}_accuracy']:.2f} % of {len(val):,} images" if val else ""
    say(f"{weights}: training {rows[-1]['train_accuracy']:.2f} %{validation}, {duration(seconds)} for "
        f"{count_of(args.epochs, 'epoch')}")
    return weights


# ---------------------------------------------------------------- the step


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, args: Namespace, loss: Callable,
               images: torch.Tensor, targets: Sequence[torch.Tensor], scale: float = 1.0,
               side: int | None = None) -> tuple[dict, torch.Tensor]:
    """One step down the gradient of `scale` times the loss: (the dict of the loss, logits in float32).

    images: normalized float (B, 3, 32, 32); targets: float (B, K) tensors, the labels first; side: pixels of a side to
    which the images are shrunk for the network. A network of several columns has logits (B, columns, K): each column
    has its own loss, and the mean of the logits is returned.
    """
    optimizer.zero_grad(set_to_none=True)
    shown = F.interpolate(images, (side, side), mode="bilinear", antialias=True) if side else images
    with autocast(images.device, args.precision):
        logits = network(shown)
    logits = logits.float().view(len(images), -1, targets[0].shape[1])
    columns = logits.shape[1]
    parts = loss(logits.flatten(0, 1), *(target.repeat_interleave(columns, 0) for target in targets))
    (scale * columns * parts["loss"]).backward()
    optimizer.step()
    return parts, logits.detach().mean(1)


def cross_entropy(smoothing: float) -> Callable:
    """The loss of float targets (B, K) with label smoothing, for `run`."""
    return lambda logits, hard: {"loss": F.cross_entropy(logits, hard, label_smoothing=smoothing)}


def learning_rate(args: Namespace, step: int, steps: int) -> float:
    """The learning rate of step 0 <= step < steps, a pure function.

    1. Linear warm-up over warmup_epochs, at most a fifth of the run, so that a short run still anneals; from warmup_lr,
       by default 0, or lr / 5 for triangular. With triangular, the first step has that rate; otherwise the last step
       of the warm-up has `lr`.
    2. cosine: min_lr + 0.5 (lr - min_lr)(1 + cos(pi t)), t from 0 towards 1 (Loshchilov & Hutter 2017, eq. 5);
       triangular: straight down towards min_lr (Jordan 2024); constant: lr.
    """
    warmup = round(min(args.warmup_epochs, args.epochs / 5) * (steps // args.epochs))
    if args.schedule == "triangular":
        first = 0.2 if args.warmup_lr is None else args.warmup_lr / args.lr  # the first rate, as a share of the peak
        if step < warmup:
            return args.lr * (first + (1 - first) * step / warmup)
        return args.min_lr + (args.lr - args.min_lr) * (steps - step) / (steps - warmup)
    if step < warmup:
        first = args.warmup_lr or 0.0
        return first + (args.lr - first) * (step + 1) / warmup
    if args.schedule == "constant":
        return args.lr
    t = (step - warmup) / (steps - warmup)
    return args.min_lr + 0.5 * (args.lr - args.min_lr) * (1 + math.cos(math.pi * t))


def parameter_groups(args: Namespace, model: nn.Module) -> list[dict]:
    """SGD's parameter groups, without frozen parameters.

    With --no-decay-all, biases and scales (one dimension) are a group without decay. With --norm-bias-lr, the biases of
    the normalizations are a group with `lr_scale`. SGD multiplies the decay by the learning rate, so theirs is divided
    by that scale.
    """
    biases = [layer.bias for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    fast = {id(bias) for bias in biases} if args.norm_bias_lr != 1 else set()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in fast]
    groups = [{"params": learned}]
    if not args.decay_all:
        groups = [{"params": [parameter for parameter in learned if parameter.dim() > 1]},
                  {"params": [parameter for parameter in learned if parameter.dim() <= 1], "weight_decay": 0.0}]
    if fast:
        decay = args.weight_decay / args.norm_bias_lr if args.decay_all else 0.0
        groups.append({"params": biases, "lr_scale": args.norm_bias_lr, "weight_decay": decay})
    return groups


# ---------------------------------------------------------------- before the first step


def build(args: Namespace) -> nn.Module:
    """The model of a configuration; UserError for a wrong option, or a model above the budget without permission."""
    options = {name: vars(args)[name] for name in models.options_of(args.model)}
    try:
        model = models.build(args.model, **options)
        if not args.allow_over_budget:
            models.check_budget(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    return model


def run_name(args: Namespace, model: str) -> str:
    """The name of a run, and of its files: `seresnet164-fold3`, `resnet18-basic-noval-seed1`."""
    stage = f"-{args.stage}" if vars(args).get("stage", "augmented") != "augmented" else ""
    fold = "noval" if args.fold is None else f"fold{args.fold}"
    return f"{model}{stage}-{fold}" + (f"-seed{args.seed}" if args.seed else "")


def check_start(args: Namespace, model: nn.Module, weights: Path, start: Network | None,
                earlier: Sequence[Network]) -> None:
    """Raise UserError if the run may not learn from a network of `earlier`, or would write over its file.

    The weights of --init, start, must be of the same network, and may not have seen the fold that the run holds out,
    which would then be no validation.
    """
    for network in earlier:
        if network.file.resolve() == weights.resolve():
            flag = "--init" if network is start else "--teachers"
            raise UserError(f"{flag} {network.file} is the file that this run writes: name another with --out")
        network.check_source(args.data, args.include_test)
    if start and start.model.name != model.name:
        raise UserError(f"--init {start.file} is {start.model.name}, and the network to train is {model.name}")
    if start and args.fold is not None and args.fold in start.provenance["seen_folds"]:
        raise UserError(f"--init {start.file} was trained on images that --fold {args.fold} holds out")


def seen_folds(args: Namespace, earlier: Sequence[Network]) -> list[int]:
    """The folds whose labels the run learns from: directly, or through the networks of `earlier`."""
    seen = {fold for fold in range(cifar10.FOLDS) if fold != args.fold} | set(args.seen_folds)
    return sorted(seen.union(*(network.provenance["seen_folds"] for network in earlier)))


def settle_precision(args: Namespace, usual: str, saved: dict | None, finished: bool) -> Namespace:
    """The same configuration with its precision determined: `usual`, but `auto` keeps that of a saved run."""
    kept = saved["config"]["precision"] if saved and args.precision == "auto" else usual
    if kept != usual:
        slow = ", where bfloat16 is slower, up to 12 times" if usual == "float32" else ""
        goes_on = "it is finished" if finished else f"it goes on in {kept}"
        say(f"this run began in {kept}; here auto is {usual}{slow}: {goes_on}; to start over, add --precision {usual} "
            f"--fresh")
    return Namespace(**vars(args) | {"precision": kept})


def stored(args: Namespace, start: Network | None, teachers: Sequence[Network]) -> dict:
    """What a resumed run has to agree with, as plain values; in place of paths, digests of the files' content."""
    config = {name: list(value) if isinstance(value, tuple) else value
              for name, value in vars(args).items() if name not in RUNTIME}
    for name in FILES:
        if config.get(name):
            config[name] = checkpoint.digest_of_files(config[name])
    config |= {"init": start.fingerprint} if start else {}
    # Not their fingerprints, which copies in half precision share.
    contents = [checkpoint.digest(checkpoint.evaluated(teacher.content))[:16] for teacher in teachers]
    config |= {"teachers": contents} if teachers else {}
    return config | ({"ranks": distributed.world_size()} if distributed.world_size() > 1 else {})


def other_conditions(places: list[dict]) -> str:
    """A remark if a resumed run's hardware, torch, execution or commit changed: each can change its weights."""
    before, now = places[-2:]
    changes = [f"{key} {now[key] or 'unknown'} instead of {before[key] or 'unknown'}"
               for key in ("hardware", "torch", "execution", "commit") if before.get(key, now[key]) != now[key]]
    return f", {', '.join(changes)}: the weights may differ from those of a run in one go" if changes else ""


# ---------------------------------------------------------------- how a run ends


def provenance(args: Namespace, model: nn.Module, content: dict, train: cifar10.Dataset, labelled: cifar10.Dataset,
               rows: list[dict], places: list[dict], start: Network | None, seen: list[int]) -> dict:
    """How finished weights were made, as plain values.

    train: what was trained on; labelled: its images that the fold and the limit leave; places: where and with what.
    """
    params = models.parameter_count(model)
    return {
        "run": Path(args.out).stem if args.out else run_name(args, model.name), "command": command_line(),
        "name": model.name, "params": params, "over_budget": params > models.BUDGET,
        "include_test": args.include_test, "images": len(train), "unlabelled": int((train.labels < 0).sum()),
        "train_digest": labelled.digest, "seen_folds": seen, "source": Path(train.source).name,
        "steps": args.epochs * steps_per_epoch(len(train), args.batch_size),
        "seconds": sum(row["seconds"] for row in rows),
        **{name: join_distinct(place[name] for place in places) for name in ENVIRONMENT},
        "precision": args.precision, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        "fingerprint": checkpoint.digest(checkpoint.evaluated(content))[:16],
        "before": start.history if start else [],
    }


def commit() -> str:
    """The commit of this repository, with `+` behind it when files were changed since; empty without git."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        ours = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not that of a repository around this one
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10, env=ours).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Diverged(UserError):
    """A loss or a weight is not finite: the run stops, and the last good state is kept."""

    code = 1

    def __init__(self, what: str, step: int, args: Namespace, steps: int, files: checkpoint.RunFiles):
        saved = files.last.exists() or files.backup.exists()
        kept, fresh = ("; the state saved before is kept", ", with --fresh") if saved else ("", "")
        longest = args.epochs / 5  # of a warm-up, see learning_rate
        warmup = "a longer --warmup-epochs" if args.warmup_epochs < longest else "more --epochs, for a longer warm-up"
        super().__init__(f"{what} is not finite by step {step:,} (learning rate "
                         f"{learning_rate(args, step - 1, steps):.4g}){kept}. Try a smaller --lr, or {warmup}{fresh}")


class Stopped(UserError):
    """SIGTERM or Ctrl-C was caught and the state was saved; the exit code is the shell's for that signal."""

    def __init__(self, caught: int, step: int, args: Namespace, steps: int, files: checkpoint.RunFiles):
        again = "the same command without --fresh" if args.fresh else "the same command"
        super().__init__(f"{signal.Signals(caught).name} at step {step:,} of {steps:,}: the state is saved in "
                         f"{files.last}, {again} goes on from there")
        self.code = 128 + caught


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Put SIGTERM and Ctrl-C into this list instead of stopping; after one, ignore others until the process ends."""
    caught, numbers = [], (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        numbers = ()

    def catch(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) == 1 and distributed.rank() == 0:
            with suppress(OSError):  # the same Ctrl-C may have ended the reader, such as `| tee log`
                os.write(2, b"\nstopping after this step\n")

    before = {number: signal.signal(number, catch) for number in numbers}
    try:
        yield caught
    except RuntimeError as error:
        if signal.SIGINT in caught and of_the_compiler(error):  # Ctrl-C also ends its processes
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if caught else handler)
