"""One process or several: what the ranks of a distributed run do together.

    torchrun --nproc-per-node 4 train/seresnet.py --noval

Every rank augments and mixes the whole global batch, with the random draws of a single process, and trains on its part
of it. The sum of the ranks' gradients, weighted by their numbers of images, is the gradient of the global batch. Batch
normalization uses the statistics of the rank's own part (torch's SyncBatchNorm does not support CPUs, and waits for all
ranks in every layer); the running statistics that are saved are those of rank 0.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from train import UserError

T = TypeVar("T")
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # for all ranks to start, perhaps from a slow disk
STEP_TIMEOUT = timedelta(seconds=50)  # a rank that keeps the others waiting in a step for longer is lost
COMPILE_TIMEOUT = timedelta(minutes=10)  # a rank may find its step in the compiler's cache while another compiles
RANK_0_TIMEOUT = timedelta(hours=1)  # for what rank 0 does alone: to validate, to save
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # what torchrun sets for each rank


def variable(name: str, default: int) -> int:
    """A number that torchrun has set, or the default if some of its variables are missing."""
    found = [os.environ.get(known, "") for known in (*VARIABLES, name)]
    return int(found[-1]) if all(text.isdecimal() for text in found) else default


def world_size() -> int:
    """The number of ranks; 1 without torchrun."""
    return variable("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this rank, 0 <= rank < world_size; only rank 0 prints and writes."""
    return variable("RANK", 0) if world_size() > 1 and all(map(os.environ.get, ("MASTER_ADDR", "MASTER_PORT"))) else 0


def local_rank() -> int:
    """The number of this rank among those of its machine."""
    return variable("LOCAL_RANK", 0) if rank() else 0


def launcher() -> list[str]:
    """The words that start this run's processes, `torchrun --nnodes 2 --nproc-per-node 4` or `python`."""
    if world_size() == 1:
        return ["python"]
    local = variable("LOCAL_WORLD_SIZE", world_size())  # the ranks on this machine
    machines = ["--nnodes", str(world_size() // local)] if world_size() > local else []
    return ["torchrun", *machines, "--nproc-per-node", str(local)]


def check_environment() -> None:
    """Raise UserError for a WORLD_SIZE that is left in the environment, without a launcher of ranks."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if text == "1" or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    missing = [name for name in (*VARIABLES, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or not text.isdecimal():
        problem = f"{', '.join(missing)} not set" if missing else "not a number"
        raise UserError(f"WORLD_SIZE is {text}, with {problem}: start the ranks by torchrun, or unset WORLD_SIZE")
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    print(f"waiting for {text} ranks at {address}; torchrun starts them, or unset WORLD_SIZE", file=sys.stderr)


class Ranks:
    """All processes of a run, as seen by one of them; without torchrun there is only one.

    gloo exchanges CPU tensors and notices a dead rank at once; nccl exchanges gradients on GPUs.
    seed: what a rank adds to the seed of the model's own randomness.
    """

    def __init__(self, device: torch.device, compiling: bool = False):
        """device: what this rank computes on; compiling: whether a CPU may have to compile."""
        self.rank, self.size, self.seed = 0, 1, ()
        if world_size() > 1:
            self.rank, self.size, self.seed = rank(), world_size(), (rank(),)
            backend = "nccl" if device.type == "cuda" else "gloo"
            timeout = COMPILE_TIMEOUT if compiling or backend == "nccl" else STEP_TIMEOUT
            store, *_ = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout)
            self.in_step = dist.new_group(backend="gloo", timeout=timeout)
            self.patient = dist.new_group(backend="gloo", timeout=RANK_0_TIMEOUT)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind, *_) -> None:
        if self.size > 1 and kind is None:  # after a failure the others may be gone, and this would wait for them
            dist.destroy_process_group()

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The network to train, whose gradients become the mean over the ranks."""
        if self.size == 1:
            return model
        # After the first step, DDP rebuilds its buckets of gradients, unless some parameters may be unused. With three
        # ranks or more, gloo's order of summation depends on the buckets, so the first step after a resumption would
        # have other last bits. Torch warns about it once, on standard error, where no Python filter applies.
        fixed = next(model.parameters()).device.type == "cpu"
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=fixed)

    def shard(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> Iterator[tuple]:
        """This rank's part of each global (images, *targets): yields (count, scale, images, *targets).

        count: the number of these images that are this rank's own; 0 if the batch is too small for all ranks: then it
        yields one image that does not count, so that the rank can take part. scale: count x ranks / batch, the factor
        on the part's mean loss by which the mean over the ranks becomes the mean over the global batch.
        """
        for batch in batches:
            images, *targets = (tensor.tensor_split(self.size)[self.rank] for tensor in batch)
            count = len(images)
            if not count:
                images, *targets = (tensor[:1] for tensor in batch)
            yield count, count * self.size / len(batch[0]), images, *targets

    def once(self, work: Callable[[], T]) -> T:
        """Run `work()` on rank 0 only; every rank waits for it, and returns its result or raises its error."""
        box = [None, None]
        if self.rank == 0:
            try:
                box[0] = work()
            except (UserError, OSError) as error:
                box[1] = error
        if self.size > 1:
            dist.broadcast_object_list(box, group=self.patient)
        if box[1] is not None:
            raise box[1]
        return box[0]

    @contextmanager
    def hold(self, resource: AbstractContextManager) -> Iterator[AbstractContextManager]:
        """Enter `resource` on rank 0 only; every rank raises what that raises."""
        with ExitStack() as stack:
            self.once(lambda: stack.enter_context(resource) and None)
            yield resource

    def all_sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of a float64 tensor on the CPU, computed in place."""
        if self.size > 1:
            dist.all_reduce(numbers, group=self.in_step)
        return numbers

    def all_max(self, *numbers: int) -> list[int]:
        """The maximum over the ranks of each number: if one rank wants something, all of them do it."""
        if self.size == 1:
            return list(numbers)
        greatest = torch.tensor(numbers)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.in_step)
        return greatest.tolist()
