"""Work for the ranks of a distributed run, each a process of its own, that talk by gloo."""

import os
import socket
import sys
import time
from contextlib import ExitStack
from datetime import timedelta

import torch
import torch.nn as nn
import toy

import models
from train import UserError
from train.data import cifar10
from train.engine import checkpoint, device, distributed, loop
from train.engine.batches import batches
from train.engine.distributed import Ranks
from train.engine.loop import cross_entropy, train_step


class Plain(nn.Module):
    """Images to logits without any normalization: what a batch gives is the mean of what its images give."""

    def __init__(self, num_classes: int = 10, width: int = 4):
        super().__init__()
        self.name, self.options = "plain", {"num_classes": num_classes, "width": width}
        self.conv = nn.Conv2d(3, width, 5, stride=2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def environments(count):
    """What torchrun would set for each of `count` ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
              "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "toy"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def together(count, work, *arguments, patience=300):
    """Run work(*arguments) in every rank, for so many seconds at most; the list of their exit codes."""
    processes = [toy.CONTEXT.Process(target=begin, args=(e, work, arguments)) for e in environments(count)]
    for process in processes:
        process.start()
    end = time.monotonic() + patience
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        process.kill(), process.join()
    return [process.exitcode for process in processes]


def begin(environment, work, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    toy.use()
    models.MODELS["plain"] = Plain
    loop.LOOK_EVERY = 0
    if distributed.rank():
        checkpoint.write = checkpoint.RunFiles.__enter__ = checkpoint.RunFiles.forget = forbidden
    try:
        work(*arguments)
    except UserError as error:
        sys.exit(error.code)


def training(count, *argv, log, **settings):
    """A context of `count` ranks that train by the script of the baseline; gives their processes."""
    stack = ExitStack()
    started = [stack.enter_context(toy.training(*argv, log=log, environment=environment, **settings))
               for environment in environments(count)]
    return stack, started


def forbidden(*_):
    raise AssertionError("rank 0 alone writes")


# ---------------------------------------------------------------- work


def built(args):
    """The model of a configuration with weights and running statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = loop.build(args)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return model


def gradients(args, file, training):
    """Save to `file`, with the rank's number, [(images, targets, {name: gradient})] of the steps of epoch 0."""
    model = built(args).train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train, _ = cifar10.split(cifar10.load(args.data), args.fold, args.limit)
    steps = []
    with Ranks(torch.device("cpu")) as ranks:
        network = ranks.wrap(model)
        global_batches = batches(train.images, [cifar10.one_hot(train.labels)], args, 0)
        for count, scale, images, *targets in ranks.shard(global_batches):
            train_step(network, optimizer, args, cross_entropy(0.0), images, targets, scale)
            found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            steps.append((images[:count], targets[0][:count], found))
    torch.save(steps, f"{file}{distributed.rank()}")


def seeds(args, file):
    """Train, and save to `file`, with the rank's number, torch's seed and the precision in every step.

    Only the processor of rank 0 is faster in bfloat16.
    """
    drawn, step = [], loop.train_step
    device.faster_in_bfloat16 = lambda: distributed.rank() == 0
    loop.train_step = lambda *given: drawn.append((torch.initial_seed(), given[2].precision)) or step(*given)
    loop.run(args)
    torch.save(drawn, f"{file}{distributed.rank()}")


def hang(agree, mark):
    """Rank 0 works alone for longer than a step's patience; then rank 1 hangs until rank 0 notices, 3, by a file."""
    distributed.STEP_TIMEOUT = timedelta(seconds=4)
    with Ranks(torch.device("cpu")) as ranks:
        ranks.once(lambda: time.sleep(5))
        if ranks.rank == 0:
            try:
                getattr(ranks, agree)(torch.ones(1, dtype=torch.float64))
            except RuntimeError:
                mark.touch()
                os._exit(3)
        while not mark.exists():
            time.sleep(0.1)
        os._exit(0)


def with_known_mean(logits, hard):
    """The usual loss, and a mean over the images that no rounding of the network has a part in."""
    known = (hard.double() @ torch.arange(1, 11).double().sqrt()).mean()
    return cross_entropy(0)(logits, hard) | {"known": known}


def train(args, stop=None, loss=None):
    """Run a configuration; SIGTERM comes to the last rank alone, in its step `stop`."""
    hit = stop and distributed.rank() == distributed.world_size() - 1
    loop.run(args, loss=toy.terminate(stop) if hit else loss)
