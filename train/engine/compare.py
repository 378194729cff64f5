"""Is it real: McNemar's test of two networks, Welch's interval of two groups of seeds, how two runs differ, and what
teachers gain."""

import glob
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from train.engine import checkpoint, predict
from train.engine.command import UserError, count_of
from train.engine.results import describe, key_without_seed, shortest_unique_names

# What of the provenance may make two runs differ; the recipe and the model's options come first.
SECTIONS = {"data": ("source", "images", "unlabelled", "include_test", "train_digest"),
            "versions": ("commit", "torch", "python", "threads", "hardware"), "command": ("make", "command", "before")}


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
    difference, error = round(np.mean(first) - np.mean(second), 9), sum(errors)  # a tie is a tie, to the last bit
    if error == 0:
        return difference, difference, difference
    freedom = error**2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (first, second)))
    half = t_quantile(0.975, freedom) * math.sqrt(error)
    return difference, difference - half, difference + half


def seeds_needed(difference, deviations):
    """How many values a group show a difference of means at 5 %, two-sided, with 80 % power; None for no difference.

    deviations: of the two groups. The smallest n >= (t(0.975) + t(0.8))^2 (s1^2 + s2^2) / difference^2.
    """
    if difference == 0:
        return None
    spread = sum(deviation**2 for deviation in deviations) / difference**2
    normal = NormalDist().inv_cdf  # whose quantiles are below those of t: the search begins there
    count = max(2, math.ceil((normal(0.975) + normal(0.8))**2 * spread))
    while (t_quantile(0.975, 2 * count - 2) + t_quantile(0.8, 2 * count - 2))**2 * spread > count:
        count += 1
    return count


# ---------------------------------------------------------------- in words


def compare(patterns, scorer):
    """What is known of the difference of two weights files, or of two groups of seeds, in sentences.

    patterns: two texts, each a file, or files and patterns such as `weights/a.pt weights/a-seed*.pt`. Raises UserError.
    """
    sides = []
    for pattern in patterns:
        words = [pattern] if Path(pattern).exists() or glob.glob(pattern) else pattern.split() or [pattern]
        files = []
        for word in words:
            several = sorted(file for file in glob.glob(word) if not checkpoint.is_state(file))
            found = [word] if Path(word).exists() else several
            if not found:
                raise UserError(f"--compare {word}: there is no such weights file")
            files += found
        sides.append(scorer.load(files, "--compare: "))
    a, b = shortest_unique_names([Path(pattern.removesuffix(".pt")).absolute() for pattern in patterns])
    how = "With flip TTA, " if scorer.tta else ""
    if len(sides[0]) == len(sides[1]) == 1:
        right = (scorer.answers(side).argmax(1) == scorer.dataset.labels for side in sides)
        return how + compare_networks(a, b, *right)
    for pattern, side in zip(patterns, sides):
        if len(side) < 2:
            raise UserError(f"--compare {pattern}: one file against several; a group has two seeds or more")

    scores = [[scorer.accuracy([network]) for network in side] for side in sides]
    deviations = [np.std(values, ddof=1) for values in scores]
    difference, low, high = welch(*scores)
    text = how + ", ".join(f"{name} has {np.mean(values):.2f} ± {deviation:.2f} % ({count_of(len(values), 'seed')})"
                           for name, values, deviation in zip((a, b), scores, deviations))
    text += (f": a difference of {difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Welch), "
             f"{'that is more than chance' if low > 0 or high < 0 else 'which may be chance'}.")
    if needed := seeds_needed(difference, deviations):
        text += f" To show a difference of this size with 80 % power takes {count_of(needed, 'seed')} a group."
    for name, side in zip((a, b), sides):
        if len({key_without_seed(describe(network) | {"tta": False}) for network in side}) > 1:
            text += f" The runs of {name} differ by more than their seed."
        elif len({network.content["recipe"]["seed"] for network in side}) < len(side):
            text += f" Of the runs of {name} some have the same seed."
    return text


def compare_networks(a, b, right_a, right_b):
    """McNemar's test of the networks named a and b. right: which images each answers right, bool (N,)."""
    first, second = (right_a & ~right_b).sum().item(), (right_b & ~right_a).sum().item()
    return (f"{a} is right on {right_a.sum():,} and {b} on {right_b.sum():,} of {len(right_a):,} test images: "
            f"{first:,} only {a}, {second:,} only {b}; McNemar's exact test p = {mcnemar(first, second):.3g}. "
            f"It compares these two networks and says nothing of seeds: for that, name groups of them.")


def differences(files):
    """What differs between two weights files, in lines: recipe, data, versions, command."""
    contents = [checkpoint.load_weights(file) for file in files]
    parts = {"recipe": [{"model": c["model"], **c["options"], **c["recipe"]} for c in contents]}
    told = [about | {"before": [run["command"] for run in about.get("before", [])]}
            for about in (content["provenance"] for content in contents)]
    for title, names in SECTIONS.items():
        parts[title] = [{name: about[name] for name in names if name in about} for about in told]
    parts["data"] = [part | {"images and targets": c["data"]} for part, c in zip(parts["data"], contents)]
    lines = [f"{sign} {file}" for sign, file in zip("-+", files)]
    for title, (first, second) in parts.items():
        names = [name for name in first | second if first.get(name) != second.get(name)]
        lines.append(f"{title}: {'different' if names else 'the same'}")
        lines += [f"  {sign} {name}: {part.get(name, 'not known')}"
                  for name in names for sign, part in zip("-+", (first, second))]
    fingerprints = {checkpoint.digest(checkpoint.evaluated(content)) for content in contents}
    return "\n".join([*lines, f"weights: {'the same' if len(fingerprints) == 1 else 'different'}"])


def student_gains(roles, scorer):
    """Roles, runs, parameters and test accuracy in lines, and what the student gains. roles: {role: [Network, ...]}."""
    line = "{:10s} {:34s} {:>12s} {:>8s}".format
    lines, mean, gains = [line("role", "run", "parameters", "TTA %" if scorer.tta else "test %")], {}, []
    for role, networks in roles.items():
        params = [network.params for network in networks]
        scores = [scorer.accuracy([network]) for network in networks]
        mean[role] = sum(scores) / len(scores)
        lines += [line(role.removesuffix("s"), network.file.stem, f"{count:,}", f"{score:.2f}")
                  for network, count, score in zip(networks, params, scores)]
        if len(networks) > 1:
            lines.append(line(role, f"mean of the {len(networks)}", "", f"{mean[role]:.2f}"))
        if len(networks) > 1 and role == "teachers":
            together = scorer.accuracy(networks)
            lines.append(line("ensemble", "mean of their logits", f"{sum(params):,}", f"{together:.2f}"))
    if {"student", "baseline"} <= set(mean):
        gains.append(f"student {mean['student'] - mean['baseline']:+.2f} points against the baseline")
    if {"student", "control"} <= set(mean):
        points = round(mean["student"] - mean["control"], 9)
        pair = [*roles["student"], *roles["control"]]
        alike = len({(network.provenance["name"], predict.total_epochs(network.history)) for network in pair}) == 1
        verdict = "distillation is ahead" if points > 0 else "the control is ahead" if points < 0 else "a tie"
        gains.append(f"student {points:+.2f} points against the control, " +
                     (f"the same network and epochs without teachers: {verdict}" if alike else
                      "which differs by more than the teachers: in its network or its epochs"))
    return "\n".join([*lines, "", *gains] if gains else lines)
