"""Training batches: shuffled, augmented and mixed on the device, by (seed, epoch) alone (see loop.py)."""

import hashlib
from argparse import Namespace
from collections.abc import Iterator, Sequence

import torch

import augment
from augment.basic import mirror, normalize


def derive(seed: int, *use: object) -> int:
    """A seed, 0 <= s < 2**63, for one use of randomness: derive(seed, "augment", epoch)."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only: the images left over differ from epoch to epoch, because the order does."""
    return max(1, images // batch_size)


def batches(images: torch.Tensor, targets: Sequence[torch.Tensor], args: Namespace, epoch: int,
            first: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield (images, *targets) of the steps `first`, first + 1, ... of an epoch, augmented and mixed.

    images: uint8 (N, 3, 32, 32); targets: float (N, K) tensors; all on one device. The yielded images are normalized
    float (B, 3, 32, 32), channels_last. Augmentation and mixing work on a chunk of several batches at once.
    """
    device, size = images.device, args.batch_size
    transform, mix = augment.pipeline(args.augment), augment.mixing(args.mix)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(args.seed, "order", epoch)))
    order = order[:steps_per_epoch(len(images), size) * size].to(device)
    if args.alternate_flip:  # half of the images start mirrored, and every epoch mirrors all of them
        generator = torch.Generator(device).manual_seed(derive(args.seed, "mirror"))
        mirrored = (torch.rand(len(images), device=device, generator=generator) < 0.5) ^ (epoch % 2 == 1)
    per_chunk = max(1, augment.CHUNK // size)  # batches
    for number, rows in enumerate(order.split(per_chunk * size)):
        skipped = max(0, first - number * per_chunk)  # batches of this chunk that an earlier process trained on
        if skipped >= per_chunk:
            continue
        generator = torch.Generator(device).manual_seed(derive(args.seed, "augment", epoch, number))
        shown = mirror(images[rows], mirrored[rows]) if args.alternate_flip else images[rows]
        chunk = mix(generator, transform(shown, generator), *(target[rows] for target in targets), batch=size)
        for mixed, *wanted in list(zip(*(tensor.split(size) for tensor in chunk), strict=True))[skipped:]:
            yield normalize(mixed).contiguous(memory_format=torch.channels_last), *wanted


class Ahead:
    """Ahead(device)(batches): the same batches; on CUDA each is prepared while the device is busy with the step before.

    They are prepared on a second CUDA stream. Their randomness is that of `batches`, whose generators do not depend on
    the stream.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterator) -> Iterator:
        if self.side is None:
            yield from batches
            return
        main = torch.cuda.current_stream(self.device)
        self.side.wait_stream(main)
        while True:
            with torch.cuda.stream(self.side):
                batch = next(batches, None)
            if batch is None:
                return
            main.wait_stream(self.side)
            for tensor in batch:
                tensor.record_stream(main)  # or its memory could be reused while the step still reads it
            yield batch
