"""Is it real: McNemar's test of two networks, Welch's interval of two groups of seeds, how two runs differ, and what
teachers gain."""

import glob
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from train.engine import checkpoint, predict
from train.engine.command import UserError, count_of
from train.engine.results import facts, same_but_seed, tell_apart

# What of the provenance may make two runs differ; the recipe and the model's options come first.
SECTIONS = {"data": ("source", "images", "unlabelled", "include_test", "train_digest"),
            "versions": ("commit", "torch", "python", "threads", "hardware"), "command": ("make", "command")}


def mcnemar(first, second):
    """The exact two-sided p of McNemar's test for two answerers of equal accuracy.

    first, second: how many images only the one and only the other answered right. Under the null hypothesis each of
    them is as likely to be of either kind, so the smaller count is binomial.
    """
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**total)


def t_quantile(share, freedom, cells=20_000):
    """The value below which Student's t of 1 or more degrees of freedom lies with a probability `share` of 0.5 to 1.

    With t = sqrt(freedom) tan(angle) the density of the angle is cos(angle)^(freedom - 1), which is summed up.
    """
    if freedom > 100_000:
        return NormalDist().inv_cdf(share)
    edges = np.linspace(0, math.pi / 2, cells + 1)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1))
    angle = np.interp((2 * share - 1) * mass[-1], [0, *mass], edges)
    return math.sqrt(freedom) * math.tan(angle)


def welch(first, second):
    """(difference of the means, low, high) of two lists of two values or more, with the 95 % interval of Welch 1947."""
    errors = [np.var(values, ddof=1) / len(values) for values in (first, second)]
    difference, error = np.mean(first) - np.mean(second), sum(errors)
    if error == 0:
        return difference, difference, difference
    freedom = error**2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (first, second)))
    half = t_quantile(0.975, freedom) * math.sqrt(error)
    return difference, difference - half, difference + half


def seeds_needed(difference, deviations, power=0.8):
    """How many values a group show a difference of means at 5 %, two-sided, with this power; None for no difference.

    deviations: of the two groups. By the usual approximation n = (t(0.975) + t(power))^2 (s1^2 + s2^2) / difference^2.
    """
    if difference == 0:
        return None
    spread = sum(deviation**2 for deviation in deviations) / difference**2
    normal = NormalDist().inv_cdf
    count = max(2, math.ceil((normal(0.975) + normal(power))**2 * spread))
    while (t_quantile(0.975, 2 * count - 2) + t_quantile(power, 2 * count - 2))**2 * spread > count:
        count += 1
    return count


# ---------------------------------------------------------------- in words


def compare(patterns, scorer):
    """What is known of the difference of two weights files, or of two groups of seeds, in sentences.

    patterns: two texts, each a file or a pattern such as `weights/student-seed*.pt`. Raises UserError.
    """
    sides = [scorer.load(matching(pattern), "--compare: ") for pattern in patterns]
    short = tell_apart([Path(pattern).absolute().with_suffix("") for pattern in patterns])
    names = [short[Path(pattern).absolute().with_suffix("")] for pattern in patterns]
    if len(sides[0]) == len(sides[1]) == 1:
        return compare_networks(names, [scorer.right(network) for network, in sides])
    for pattern, side in zip(patterns, sides):
        if len(side) < 2:
            raise UserError(f"--compare {pattern}: one file against several; a group has two seeds or more")
    return compare_groups(names, sides, scorer)


def matching(pattern):
    """The finished weights files of a path or a pattern of paths, in order."""
    if Path(pattern).exists():
        return [Path(pattern)]
    files = [Path(file) for file in sorted(glob.glob(pattern)) if not file.endswith(".last.pt")]
    if not files:
        raise UserError(f"--compare {pattern}: there is no such weights file")
    return files


def compare_networks(names, right):
    """McNemar's test. right: of each network which images it answers right, bool (N,)."""
    first, second = (right[0] & ~right[1]).sum().item(), (right[1] & ~right[0]).sum().item()
    a, b = names
    return (f"{a} is right on {right[0].sum():,} and {b} on {right[1].sum():,} of {len(right[0]):,} test images: "
            f"{first:,} only {a}, {second:,} only {b}; McNemar's exact test p = {mcnemar(first, second):.3g}. "
            f"It compares these two networks and says nothing of seeds: for that, name groups of them.")


def compare_groups(names, sides, scorer):
    """Welch's interval of the difference, and the seeds that it would take to show it."""
    scores = [[predict.accuracy(scorer.answers(network), scorer.dataset.labels) for network in side] for side in sides]
    deviations = [np.std(values, ddof=1) for values in scores]
    difference, low, high = welch(*scores)
    a, b = (f"{name} has {np.mean(values):.2f} ± {deviation:.2f} % ({count_of(len(values), 'seed')})"
            for name, values, deviation in zip(names, scores, deviations))
    verdict = "that is more than chance" if low > 0 or high < 0 else "which may be chance"
    needed = seeds_needed(difference, deviations)
    text = (f"{a}, {b}: a difference of {difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Welch), "
            f"{verdict}.")
    if needed:
        text += f" To show a difference of this size with 80 % power takes {count_of(needed, 'seed')} a group."
    for name, side in zip(names, sides):
        if len({same_but_seed(facts(network) | {"tta": False}) for network in side}) > 1:
            text += f" The runs of {name} differ by more than their seed."
    return text


def differences(files):
    """What differs between two weights files, in lines: recipe, data, versions, command."""
    contents = [checkpoint.load_weights(file) for file in files]
    parts = {"recipe": [{"model": c["model"], **c["options"], **c["recipe"]} for c in contents]}
    parts |= {title: [{name: c["provenance"][name] for name in names if name in c["provenance"]}
                       for c in contents]
              for title, names in SECTIONS.items()}
    parts["data"] = [part | {"images and targets": c["data"]} for part, c in zip(parts["data"], contents)]
    lines = [f"{sign} {file}" for sign, file in zip("-+", files)]
    for title, (first, second) in parts.items():
        names = [name for name in first | second if first.get(name) != second.get(name)]
        lines.append(f"{title}: {'different' if names else 'the same'}")
        for name in names:
            lines += [f"  {sign} {name}: {part.get(name, 'not known')}" for sign, part in zip("-+", (first, second))]
    marks = {checkpoint.digest(content["ema"] or content["state"]) for content in contents}
    return "\n".join([*lines, f"weights: {'the same' if len(marks) == 1 else 'different'}"])


def pipeline(roles, scorer):
    """Roles, runs, parameters and test accuracy in lines, and what the student gains. roles: {role: [Network, ...]}."""
    lines, mean = [f"{'role':10s} {'run':34s} {'parameters':>12s} {'test %':>8s}"], {}

    def line(role, name, params, score):
        lines.append(f"{role:10s} {name:34s} {params:>12s} {score:8.2f}")

    for role, networks in roles.items():
        scores = [predict.accuracy(scorer.answers(network), scorer.dataset.labels) for network in networks]
        params = [network.provenance["params"] for network in networks]
        mean[role] = sum(scores) / len(scores)
        for network, count, score in zip(networks, params, scores):
            line(role.removesuffix("s"), network.file.stem, f"{count:,}", score)
        if len(networks) > 1:
            line(role, f"mean of the {len(networks)}", "", mean[role])
        if role == "teachers" and len(networks) > 1:
            together = predict.accuracy(sum(map(scorer.answers, networks)), scorer.dataset.labels)
            line("ensemble", "mean of their logits", f"{sum(params):,}", together)
    ahead = {role: mean["student"] - mean[role] for role in ("baseline", "control") if {role, "student"} <= set(mean)}
    lines += [""] * bool(ahead)
    if "baseline" in ahead:
        lines.append(f"student {ahead['baseline']:+.2f} points against the baseline")
    if "control" in ahead:
        points = round(ahead["control"], 9)
        verdict = "distillation is ahead" if points > 0 else "the control is ahead" if points < 0 else "a tie"
        lines.append(f"student {points:+.2f} points against the control, the same network and epochs without teachers: "
                     f"{verdict}")
    return "\n".join(lines)
