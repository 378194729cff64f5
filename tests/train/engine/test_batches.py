"""What a training step sees."""

from itertools import combinations

import pytest
import torch
import toy

import augment
from augment.basic import normalize
from train.data import cifar10
from train.engine.batches import batches, derive


@pytest.fixture
def dataset():
    return cifar10.as_dataset(*toy.arrays("train"), "toy")


def test_seeds_differ_by_every_part_and_fit_a_generator():
    seeds = [derive(*parts) for parts in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", 1, 1)]]
    assert len(set(seeds)) == 5 and derive(0, "a", 1) == seeds[0]
    assert derive(0, "augment", 3) == 604450161917222388  # another would change every run
    assert all(0 <= seed < 2**63 for seed in [*seeds, *map(derive, range(1000))])
    torch.Generator().manual_seed(max(seeds))


def test_every_seed_epoch_and_chunk_draws_anew(dataset, monkeypatch):
    monkeypatch.setattr(augment, "CHUNK", 13)
    same, number = dataset.images[:1].expand(60, -1, -1, -1), torch.arange(60.0).view(60, 1)
    steps = [step for seed, epoch in ((0, 0), (0, 1), (1, 0))
             for step in batches(same, [number], toy.configure(seed=seed, augment="erase:1"), epoch)]
    assert not any(torch.equal(a[0], b[0]) for a, b in combinations(steps, 2))
    assert len({tuple(rows.flatten().tolist()) for _, rows in steps}) == len(steps) == 12


def test_an_epoch_is_whole_batches_of_different_images_in_an_order_of_its_own(dataset):
    targets = cifar10.one_hot(dataset.labels)
    number = torch.arange(60.0).view(60, 1).expand(60, 10)
    orders = []
    for epoch in range(2):
        steps = list(batches(dataset.images, [targets, number], toy.configure(), epoch))
        rows = torch.cat([numbers[:, 0] for _, _, numbers in steps]).long()
        assert [len(images) for images, *_ in steps] == [13] * 4 and len(set(rows.tolist())) == 52
        assert torch.equal(torch.cat([images for images, *_ in steps]), normalize(dataset.images[rows]))
        assert torch.equal(torch.cat([hard for _, hard, _ in steps]), targets[rows])
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, *_ in steps)
        orders.append(rows.tolist())
    assert orders[0] != orders[1] and len({*orders[0], *orders[1]}) > 52  # what was left over comes in other epochs


def test_a_chunk_is_augmented_and_then_mixed_within_each_batch(dataset):
    """Four batches in one chunk: each image's target says of which images it is made."""
    args, number = toy.configure(augment="crop,flip,erase", mix="cutmix"), torch.eye(60)
    images, shares = map(torch.cat, zip(*batches(dataset.images, [number], args, 0), strict=True))
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(derive(0, "order", 0)))[:52]
    draws = torch.Generator().manual_seed(derive(0, "augment", 0, 0))
    shown = augment.pipeline(args.augment)(dataset.images[rows], draws)
    mixed, wanted = augment.mixing(args.mix)(draws, shown, number[rows], batch=13)
    assert torch.equal(images, normalize(mixed)) and torch.equal(shares, wanted)
    assert all(set(share.nonzero()[:, 1].tolist()) <= set(own.tolist())
               for share, own in zip(shares.split(13), rows.split(13), strict=True))


@pytest.mark.parametrize("chunk", [1, 13, 26, 512])
def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole(dataset, monkeypatch, chunk):
    """With chunks of one batch, two, and all of them."""
    monkeypatch.setattr(augment, "CHUNK", chunk)
    args, targets = toy.configure(augment="crop,flip,erase", mix="ricap"), [cifar10.one_hot(dataset.labels)]
    whole = list(batches(dataset.images, targets, args, 3))
    for first in range(5):
        rest = list(batches(dataset.images, targets, args, 3, first))
        assert toy.different([tuple(step) for step in whole[first:]], [tuple(step) for step in rest]) is None
