"""RICAP, CutMix and mixup against slow loops, degenerate geometry included."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toy import generator

from augment import MIXES, mix, mixing

N, K = 12, 10
COPIES = [mix.ricap, mix.cutmix]


@pytest.fixture
def named():
    """Pixels that say where they come from: channel 0 the image, 1 the row, 2 the column."""
    n, y, x = torch.meshgrid(torch.arange(N), torch.arange(32), torch.arange(32), indexing="ij")
    return torch.stack([n, y, x], 1).to(torch.uint8)


@pytest.fixture
def targets():
    return torch.eye(N)


def force_beta(monkeypatch, *shares):
    monkeypatch.setattr(mix, "_beta", lambda generator, alpha, count: torch.tensor(shares))


# ---- weights are areas ----


@pytest.mark.parametrize("function", COPIES)
@pytest.mark.parametrize("batch", [None, 5])
def test_weights_are_the_shares_of_pixels_exactly(named, targets, function, batch):
    for seed in range(25):
        images, mixed = function(generator(seed), named, targets, batch=batch)
        pixels = [image[0].flatten().long().bincount(minlength=N) for image in images]
        assert torch.equal(mixed * 1024, torch.stack(pixels).float())


@pytest.mark.parametrize("name", ["ricap", "cutmix", "mixup"])
def test_several_batches_at_once_each_mix_among_themselves(named, targets, name):
    """Twelve images in batches of five, five and two."""
    number = torch.arange(N) // 5
    geometries = set()
    for seed in range(10):
        _, shares, doubled = MIXES[name](generator(seed), named, targets, 2 * targets, batch=5)
        assert torch.equal(shares.sum(1), torch.ones(N)) and torch.equal(doubled, 2 * shares)
        assert torch.equal(shares @ torch.eye(3)[number], torch.eye(3)[number]), "no partner is of another batch"
        geometries |= {tuple(row[row > 0].sort().values.tolist()) for row in shares[:10:5] if (row > 0).sum() > 1}
    assert len(geometries) > 10, "each batch draws a geometry of its own"


def test_a_batch_shares_its_cuts(named, targets):
    for seed in range(10):
        images, _ = mix.ricap(generator(seed), named, targets, batch=4)
        for batch in images[:, 1:].split(4):  # rows and columns: whence each pixel comes, whatever the image
            assert (batch == batch[:1]).all()


def test_a_batch_shares_its_box(named, targets):
    """Pasted pixels keep their places; an image that is its own partner does not show the box."""
    boxes = []
    for seed in range(10):
        images, _ = mix.cutmix(generator(seed), named, targets, batch=4)
        for batch in (images[:, 0] != named[:, 0]).split(4):
            boxes.append({tuple(mask.flatten().tolist()) for mask in batch if mask.any()})
    assert max(map(len, boxes)) == 1


@pytest.mark.parametrize("name", MIXES)
def test_every_target_is_mixed_alike_and_sums_stay(named, targets, name):
    soft = torch.rand(N, K, generator=generator(3)).softmax(1)
    _, hard, *rest = MIXES[name](generator(4), named, targets, soft, targets)
    torch.testing.assert_close(hard.sum(1), torch.ones(N))
    torch.testing.assert_close(rest[0], hard @ soft)  # hard is the matrix of the weights
    assert torch.equal(hard, rest[1])


# ---- RICAP ----


def slow_ricap(images, cut_y, cut_x, starts, partners):
    """The four crops pasted one by one; starts: (4, 2) rows and columns."""
    out = torch.full_like(images, 255)
    places = [(0, 0), (0, cut_x), (cut_y, 0), (cut_y, cut_x)]
    sizes = [(h, w) for h in (cut_y, 32 - cut_y) for w in (cut_x, 32 - cut_x)]
    for (top, left), (h, w), (y, x), partner in zip(places, sizes, starts, partners, strict=True):
        for n in range(len(images)):
            crop = images[partner[n], :, y : y + h, x : x + w]
            out[n, :, top : top + h, left : left + w] = crop
    return out


@pytest.mark.parametrize("share_y", [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("share_x", [0.0, 0.02, 0.7, 1.0])
def test_ricap_pastes_four_crops(named, targets, monkeypatch, share_y, share_x):
    force_beta(monkeypatch, share_y, share_x)
    images, mixed = mix.ricap(generator(6), named, targets)

    # The same draws in the same order: vertical starts, horizontal starts, four permutations.
    draws, cut_y, cut_x = generator(6), round(32 * share_y), round(32 * share_x)
    room_y = torch.tensor([32 - cut_y, 32 - cut_y, cut_y, cut_y])
    room_x = torch.tensor([32 - cut_x, cut_x, 32 - cut_x, cut_x])
    start_y = (torch.rand(4, generator=draws) * (room_y + 1)).long()
    start_x = (torch.rand(4, generator=draws) * (room_x + 1)).long()
    partners = list(torch.rand(4, N, generator=draws).argsort(1))
    starts = list(zip(start_y.tolist(), start_x.tolist(), strict=True))
    assert torch.equal(images, slow_ricap(named, cut_y, cut_x, starts, partners))

    areas = [h * w for h in (cut_y, 32 - cut_y) for w in (cut_x, 32 - cut_x)]
    expected = sum(area / 1024 * targets[p] for area, p in zip(areas, partners, strict=True))
    assert torch.equal(mixed, expected)


def test_ricap_and_cutmix_ask_for_the_beta_of_their_papers(named, targets, monkeypatch):
    asked, beta = [], mix._beta
    monkeypatch.setattr(mix, "_beta", lambda g, alpha, count: asked.append(alpha) or beta(g, alpha, count))
    mix.ricap(generator(), named, targets), mix.cutmix(generator(), named, targets)
    assert asked == [0.3, 1.0]


def test_each_batch_has_a_ricap_point_of_its_own(named, targets):
    images, _ = mix.ricap(generator(1), named, targets, batch=1)
    moved = images[:, 1, :, 0].int() - torch.arange(32)  # constant above the cut, and below it
    assert len({int((row != row[0]).int().argmax()) for row in moved}) > 2


def test_ricap_draws_its_point_from_beta():
    shares = mix._beta(generator(), 0.3, 40_000).double()
    variance = 1 / (4 * (2 * 0.3 + 1))  # of Beta(b, b)
    assert abs(shares.mean() - 0.5) < 4 * (variance / 40_000) ** 0.5
    assert abs(shares.var() - variance) < 0.005
    assert not shares.isnan().any() and shares.min() >= 0 and shares.max() <= 1


# ---- CutMix ----


@pytest.mark.parametrize("share", [0.0, 0.15, 0.75, 0.9999, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_cutmix_pastes_one_box_in_place(named, targets, monkeypatch, share, seed):
    force_beta(monkeypatch, share)
    images, mixed = mix.cutmix(generator(seed), named, targets)

    draws = generator(seed)
    y, x = (torch.randint(32, (1,), generator=draws).item() for _ in range(2))
    partner = torch.rand(1, N, generator=draws).argsort(1)[0]
    half = int(32 * (1 - share) ** 0.5) // 2
    rows, columns = (slice(max(at - half, 0), min(at + half, 32)) for at in (y, x))
    expected = named.clone()
    expected[:, :, rows, columns] = named[partner][:, :, rows, columns]
    area = expected[0, 0, rows, columns].numel() / 1024
    assert torch.equal(images, expected)
    assert torch.equal(mixed, (1 - area) * targets + area * targets[partner])


@pytest.mark.parametrize("batch", [None, 4])
def test_cutmix_leaves_whole_batches_alone_with_the_probability_given(named, targets, batch):
    size, mixed = batch or N, []
    for seed in range(200):
        images, shares = mix.cutmix(generator(seed), named, targets, batch=batch, p=0.3)
        plain = [torch.equal(*pair) for pair in zip(shares.split(size), targets.split(size), strict=True)]
        pairs = zip(images.split(size), named.split(size), plain, strict=True)
        assert all(torch.equal(after, before) for after, before, same in pairs if same)
        mixed.append(torch.tensor(plain).logical_not().double())
    mixed = torch.stack(mixed)
    assert abs(mixed.mean() - 0.3) < 4 * (0.3 * 0.7 / mixed.numel()) ** 0.5
    assert batch is None or (mixed.var(1) > 0).double().mean() > 0.5  # each batch has a draw of its own


def test_cutmix_at_the_ends_of_the_probability(named, targets):
    images, shares = mix.cutmix(generator(2), named, targets, batch=4, p=0.0)
    assert torch.equal(images, named) and torch.equal(shares, targets)
    first, second = generator(2), generator(2)
    always, as_before = mix.cutmix(first, named, targets, p=1.0), mix.cutmix(second, named, targets)
    assert all(torch.equal(*pair) for pair in zip(always, as_before, strict=True))
    assert torch.equal(first.get_state(), second.get_state())


# ---- mixup ----


def test_mixup_is_the_weighted_sum(targets):
    images = torch.randn(N, 3, 32, 32, generator=generator(2))
    mixed_images, mixed = mix.mixup(generator(5), images, targets)
    draws = generator(5)
    weight, partner = mix._beta(draws, 1.0, 1), torch.rand(1, N, generator=draws).argsort(1)[0]
    for n in range(N):
        m = partner[n]
        expected = weight * images[n] + (1 - weight) * images[m]
        torch.testing.assert_close(mixed_images[n], expected)
        torch.testing.assert_close(mixed[n], weight * targets[n] + (1 - weight) * targets[m])


def test_mixup_of_bytes_is_not_rounded_and_may_come_before_normalization(named, targets):
    from augment.basic import normalize

    exact, weights = mix.mixup(generator(5), named.float(), targets)
    mixed, same = mix.mixup(generator(5), named, targets)
    assert torch.equal(mixed, exact) and torch.equal(weights, same)
    after, _ = mix.mixup(generator(5), normalize(named), targets)
    torch.testing.assert_close(normalize(mixed), after, atol=1e-5, rtol=0)


# ---- what all of them promise ----


def test_none_returns_its_arguments(named, targets):
    images, same = mix.none(generator(), named, targets)
    assert images is named and same is targets


@pytest.mark.parametrize("function", COPIES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_copies_work_on_any_dtype_and_memory_format(named, targets, function, dtype, format):
    images, _ = function(generator(1), named.to(dtype).to(memory_format=format), targets)
    reference, _ = function(generator(1), named, targets)
    assert images.dtype == dtype and torch.equal(images, reference.to(dtype))


@pytest.mark.parametrize("name", ["ricap", "cutmix", "mixup"])
def test_the_input_stays_and_the_generator_decides(named, targets, name):
    images, copies = named.float(), (named.float(), targets.clone())
    first = MIXES[name](generator(7), images, targets)
    again = MIXES[name](generator(7), images, targets)
    other = MIXES[name](generator(8), images, targets)
    assert torch.equal(images, copies[0]) and torch.equal(targets, copies[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", MIXES)
def test_a_batch_of_one_and_no_targets(named, targets, name):
    images, target = MIXES[name](generator(), named[:1], targets[:1])
    torch.testing.assert_close(target, targets[:1])
    assert images.shape == (1, 3, 32, 32)
    assert len(MIXES[name](generator(), named)) == 1


@pytest.mark.parametrize("name", (*MIXES, "cutmix:1:0.5"))
def test_nothing_is_read_back_to_the_host(name):
    """A fake tensor has no values: whatever asks for one raises."""
    with FakeTensorMode():
        images, targets = torch.empty(8, 3, 32, 32), torch.empty(8, K)
        mixed, soft = mixing(name)(torch.Generator(), images, targets, batch=3)
        assert mixed.shape == images.shape and soft.shape == targets.shape
