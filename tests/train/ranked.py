"""Work for the ranks of a distributed run, each a process of its own, that talk by gloo."""

import os
import socket
import sys
import time
from contextlib import ExitStack
from datetime import timedelta

import torch
import torch.nn as nn

import models
import toy
from train.engine import checkpoint, data, loop, parallel
from train.engine.command import UserError
from train.engine.loop import batches, train_step
from train.engine.parallel import Ranks


class Plain(nn.Module):
    """Images to logits without any normalization: what a batch gives is the mean of what its images give."""

    def __init__(self, num_classes=10, width=4):
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
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def together(count, work, *arguments, patience=60):
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
    if parallel.rank():
        checkpoint.write = checkpoint.Run.acquire = checkpoint.Run.forget = forbidden
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


def built(recipe):
    """The model of a recipe with weights and running statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = models.build(recipe.model, **recipe.options)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return model


def gradients(recipe, file, training):
    """Save to `file`, with the rank's number, [(images, targets, {name: gradient})] of the steps of epoch 0."""
    model = built(recipe).train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train, _ = data.split(data.load(recipe.data), recipe.fold, recipe.limit)
    steps = []
    with Ranks(torch.device("cpu")) as ranks:
        network = ranks.wrap(model)
        global_batches = batches(train.images, [data.one_hot(train.labels)], recipe, 0)
        for count, scale, images, *targets in ranks.shard(global_batches):
            train_step(network, optimizer, recipe, images, targets, scale)
            found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            steps.append((images[:count], targets[0][:count], found))
    torch.save(steps, f"{file}{parallel.rank()}")


def hang(told, agree):
    """Rank 0 works alone for longer than a step's patience; then rank 1 hangs, until rank 0 has told that it is lost.

    told: the file with rank 0's words. Rank 1 exits with 1 when they do not come. agree: by which method they agree.
    """
    parallel.STEP_TIMEOUT = timedelta(seconds=1)
    with Ranks(torch.device("cpu")) as ranks:
        ranks.once(lambda: time.sleep(2))
        if ranks.rank == 0:
            try:
                getattr(ranks, agree)(torch.ones(1, dtype=torch.int64))
            except RuntimeError as error:
                told.write_text(str(parallel.lost_another(error)))
                os._exit(0)
        end = time.monotonic() + 15
        while not told.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(0 if told.exists() else 1)


def train(recipe, stop=None):
    """Run a recipe; SIGTERM comes to the last rank alone, in its step `stop`."""
    hit = stop and parallel.rank() == parallel.world_size() - 1
    loop.run(toy.hook(recipe, loss=toy.terminate(stop)) if hit else recipe)
