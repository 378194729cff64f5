"""The policies draw what torchvision's draw, and do to each image what was drawn for it.

The expected probabilities are computed here from torchvision's own tables.
"""

import math
from collections import Counter
from itertools import combinations, product

import pytest
import torch
from torchvision.transforms import v2
from toy import generator, operation

from augment import policies

TORCHVISION = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
SKIPPED = ("Identity", 0.0)


def named(op, magnitude):
    """The draws of each image: a list of tuples ((name, magnitude), ...), one entry per step."""
    steps = [
        [(policies.NAMES[o], m) for o, m in zip(ops, magnitudes, strict=True)]
        for ops, magnitudes in zip(op.tolist(), magnitude.tolist(), strict=True)
    ]
    return list(zip(*steps, strict=True))


def strengths(policy, bins, name, indices):
    """{(name, magnitude): probability} of torchvision, the bin uniform over indices."""
    magnitudes_of, signed = policy._AUGMENTATION_SPACE[name]
    magnitudes = magnitudes_of(bins, 32, 32)
    found = Counter()
    for index in indices:
        strength = 0.0 if magnitudes is None else float(magnitudes[index])
        for sign in (1, -1) if signed else (1,):
            found[name, sign * strength] += 1 / len(indices) / (2 if signed else 1)
    return found


# ---- distributions ----


def check_counts(counts, probabilities):
    """Assert by chi square that counts fit probabilities, within four sigmas, and hold nothing impossible."""
    assert counts.keys() <= {k for k, p in probabilities.items() if p > 0}
    assert abs(sum(probabilities.values()) - 1) < 1e-9
    total = sum(counts.values())
    expected = {k: total * p for k, p in probabilities.items() if p > 0}
    statistic = sum((counts.get(k, 0) - e) ** 2 / e for k, e in expected.items())
    freedom = len(expected) - 1
    assert min(expected.values()) > 5 and statistic <= freedom + 4 * math.sqrt(2 * freedom)


def test_autoaugment_draws_the_25_sub_policies():
    expected = Counter()
    for line in TORCHVISION._policies:
        steps = []
        for name, probability, bin in line:
            step = Counter({SKIPPED: 1 - probability})
            for strength, share in strengths(v2.AutoAugment, 10, name, [bin]).items():
                step[strength] += probability * share
            steps.append(step)
        for first, second in product(*(step.items() for step in steps)):
            expected[first[0], second[0]] += first[1] * second[1] / len(TORCHVISION._policies)
    drawn = named(*policies.draw_autoaugment(generator(), 200_000))
    check_counts(Counter(drawn), expected)


def test_trivialaugment_draws_uniformly():
    names = list(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    expected = Counter()
    for name in names:
        for strength, share in strengths(v2.TrivialAugmentWide, 31, name, range(31)).items():
            expected[(strength,)] += share / len(names)
    check_counts(Counter(named(*policies.draw_trivialaugment(generator(), 200_000))), expected)


@pytest.mark.parametrize("severity", [1, 3, 10])
def test_augmix_draws_chains(severity):
    names = list(v2.AugMix._AUGMENTATION_SPACE)
    once = Counter()
    for name in names:
        for strength, share in strengths(v2.AugMix, 10, name, range(severity)).items():
            once[strength] += share / len(names)
    drawn = named(*policies.draw_augmix(generator(), 100_000, severity))

    lengths = [sum(step != SKIPPED for step in chain) for chain in drawn]
    assert all(SKIPPED not in chain[:n] for chain, n in zip(drawn, lengths, strict=True))
    check_counts(Counter(lengths), {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    for step in range(3):
        check_counts(Counter(chain[step] for chain in drawn if chain[step] != SKIPPED), once)


def test_steps_of_a_chain_are_independent():
    op, _ = policies.draw_augmix(generator(1), 600_000)
    longest = op[:, op[2] != policies.NAMES.index("Identity")]
    for one, other in combinations(longest.tolist(), 2):
        check_counts(Counter(zip(one, other, strict=True)), dict.fromkeys(product(range(13), repeat=2), 1 / 169))


def test_trivialaugment_leaves_a_share_of_the_images_alone():
    whole, half = (policies.draw_trivialaugment(generator(), 200_000, p) for p in (1.0, 0.5))
    alone = half[0] == policies.NAMES.index("Identity")
    # A fourteenth of the others draw Identity: 0.5 + 0.5 / 14, with a standard deviation of 0.0011.
    assert abs(alone.double().mean() - (0.5 + 0.5 / 14)) < 0.005
    assert torch.equal(half[0][~alone], whole[0][~alone]) and torch.equal(half[1][~alone], whole[1][~alone])
    used, wanted = generator(), generator()
    policies.draw_trivialaugment(used, 20)
    torch.rand(3, 1, 20, generator=wanted)
    assert torch.equal(used.get_state(), wanted.get_state()), "nothing more is drawn at p = 1"


# ---- each image gets what was drawn for it ----


@pytest.mark.parametrize("name", ["autoaugment", "trivialaugment"])
def test_the_draws_are_applied_in_order(name, pictures):
    out, draw = getattr(policies, name)(pictures, generator(2)), getattr(policies, f"draw_{name}")
    for image, result, steps in zip(pictures, out, named(*draw(generator(2), len(pictures))), strict=True):
        for name, magnitude in steps:
            image = operation(image, name, magnitude)
        assert torch.equal(result, image), steps


def test_augmix_mixes_its_chains_as_torchvision_does(pictures):
    some = pictures[::8]
    n, g = len(some), generator(4)
    out = policies.augmix(some, generator(4))
    drawn = named(*policies.draw_augmix(g, 3 * n))
    beta = torch._sample_dirichlet(torch.full((n, 2), 0.4), g)
    shares = torch._sample_dirichlet(torch.full((n, 3), 0.4), g) * beta[:, 1:]
    for i, image in enumerate(some):
        mixed = beta[i, 0] * image
        for chain in range(3):
            result = image
            for name, magnitude in drawn[chain * n + i]:
                result = operation(result, name, magnitude)
            mixed.add_(shares[i, chain] * result)
        assert torch.equal(out[i], mixed.to(torch.uint8))


@pytest.mark.parametrize("policy", (policies.autoaugment, policies.trivialaugment, policies.augmix))
def test_the_draws_come_to_the_host_at_once(policy, pictures, monkeypatch):
    """All draws are read by one .cpu(), so a GPU waits once per batch."""
    transfers, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(1) or cpu(tensor))
    policy(pictures, generator())
    assert len(transfers) == 1
