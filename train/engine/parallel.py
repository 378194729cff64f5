"""One process or several: what the ranks of a distributed run do together.

    torchrun --nproc-per-node 4 train/seresnet.py --noval

Every rank augments and mixes the whole global batch, with the draws of a single process, and trains on its part of
it; weighted by their images, the ranks' gradients sum to that of the global batch. Batch normalization takes the
statistics of the rank's own part (torch's SyncBatchNorm knows no CPU, and waits for all ranks in every layer); the
running statistics that are saved are those of rank 0.
"""

import os
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import cache
from threading import Thread

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # for all ranks to start, from a slow disk perhaps
STEP_TIMEOUT = timedelta(seconds=50)  # a rank that keeps the others waiting in a step for so long is lost
COMPILE_TIMEOUT = timedelta(minutes=10)  # one rank may find its first step compiled that another has to compile yet
RANK_0_TIMEOUT = timedelta(hours=1)  # for what rank 0 does alone: to validate, to save


def world_size():
    """The number of ranks, from the environment that torchrun sets; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def rank():
    """The number of this rank, 0 <= rank < world_size; only rank 0 prints and writes."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank():
    """The number of this rank's GPU among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def launcher():
    """The words that start this run's processes, `torchrun --nnodes 2 --nproc-per-node 4` or `python`."""
    if world_size() == 1:
        return ["python"]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))  # of this machine
    machines = ["--nnodes", str(world_size() // local)] if world_size() > local else []
    return ["torchrun", *machines, "--nproc-per-node", str(local)]


@cache
def store():
    """The table of names and numbers that all ranks share; torchrun keeps it."""
    return next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))[0]


def may_complain():
    """Whether this rank tells what went wrong: the first one that asks, for the others fail of the same or of it."""
    if world_size() == 1:
        return True
    answers = []

    def ask():
        with suppress(RuntimeError):  # the table is gone
            answers.append(store().add("complaints", 1) == 1)

    asking = Thread(target=ask, daemon=True)  # a frozen machine would never answer
    asking.start()
    asking.join(5.0)
    return answers != [False]


def lost_another(error):
    """Whether an exception says that another rank is gone; gloo has no class of its own for it.

    Its messages begin with a path of its source, but for that of a second operation that was under way when the first
    one's patience ended.
    """
    return isinstance(error, dist.DistError) or any(text in str(error) for text in ("/gloo/", "caused pair closure"))


class Ranks:
    """All processes of a run, as one of them sees them; Ranks() is a run of one process.

    CPU tensors travel by gloo, which notices a dead rank at once; gradients on GPUs by nccl.
    seed: what a rank adds to the seed of the model's own randomness.
    """

    def __init__(self, device=None, compiling=False):
        """device: what this rank computes on; None for a process by itself, wherever it runs.

        compiling: whether a network may be compiled on a CPU; on GPUs it always may.
        """
        self.rank, self.size, self.seed = 0, 1, ()
        if device and world_size() > 1:
            self.rank, self.size, self.seed = rank(), world_size(), (rank(),)
            backend = "nccl" if device.type == "cuda" else "gloo"
            timeout = COMPILE_TIMEOUT if compiling or backend == "nccl" else STEP_TIMEOUT
            dist.init_process_group(backend, store=store(), rank=self.rank, world_size=self.size, timeout=timeout)
            self.in_step = dist.new_group(backend="gloo", timeout=timeout)
            self.patient = dist.new_group(backend="gloo", timeout=RANK_0_TIMEOUT)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.size > 1 and kind is None:  # after a failure the others may be gone, and would be waited for
            dist.destroy_process_group()

    def wrap(self, model):
        """The network to train, whose gradients become the mean over the ranks."""
        if self.size == 1:
            return model
        # After its first step torch arranges the gradients anew, unless some may be unused. From three ranks on gloo's
        # order of adding depends on their place, so the first step after a resumption would have other last bits. Torch
        # warns of it once, on the error stream, where no Python filter reaches.
        fixed = next(model.parameters()).device.type == "cpu"
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=fixed)

    def shard(self, batches):
        """This rank's part of each global (images, *targets): yields (count, scale, images, *targets).

        count: how many of the images count; scale: the factor of the part's mean loss with which the mean over the
        ranks is the mean over the global batch.
        """
        for batch in batches:
            images, *targets = (tensor.tensor_split(self.size)[self.rank] for tensor in batch)
            count = len(images)
            if not count:  # it joins in with an image that does not count
                images, *targets = (tensor[:1] for tensor in batch)
            yield count, count * self.size / len(batch[0]), images, *targets

    def once(self, work):
        """`work()` is done by rank 0 alone; all wait for it, and get what it returns."""
        box = [work() if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(box, group=self.patient)
        return box[0]

    def hold(self, resource):
        """The context manager `resource`, which rank 0 alone enters."""
        return resource if self.rank == 0 else nullcontext(resource)

    def all_sum(self, numbers):
        """The sum over the ranks of an int64 tensor on the CPU, in its place."""
        if self.size > 1:
            dist.all_reduce(numbers, group=self.in_step)
        return numbers

    def all_max(self, *numbers):
        """The greatest of the ranks' numbers, each for itself, as a list: what one rank wants, all do."""
        if self.size == 1:
            return list(numbers)
        greatest = torch.tensor(numbers)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.in_step)
        return greatest.tolist()
