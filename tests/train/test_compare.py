"""`train/compare.py`: two results, two groups of seeds, and how two runs differ."""

import json
from math import comb

import numpy as np
import pytest
import torch
from untrained import write_weights

from train import compare, evaluate
from train.data import cifar10
from train.engine.network import load, logits
from train.scores.statistics import paired, welch


@pytest.fixture
def add(toy_set, tmp_path, typed):
    """add(name, **changes): the weights name.pt of an untrained network, with its result; returns their path."""

    def call(name, **changes):
        file = tmp_path / f"{name}.pt"
        write_weights(file, toy_set, **changes)
        assert typed(evaluate.main, file, "--data", toy_set, "--device", "cpu")[0] == 0
        return file

    return call


@pytest.fixture
def run(typed, monkeypatch):
    """run(*words) -> (exit code, stdout, stderr) of the command, which loads no network."""

    def call(*words):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *_, **__: pytest.fail("a network was loaded"))
            return typed(compare.main, *words)

    return call


def top1(file):
    return json.loads(file.with_suffix(".json").read_text())["metrics"]["top1"]


def test_a_network_twice_in_a_group_is_refused_and_a_group_may_begin_with_a_tilde(run, add, tmp_path, monkeypatch):
    for seed, name in enumerate("abcd"):
        add(name, seed=seed)
    code, out, err = run(f"{tmp_path}/a.pt {tmp_path}/a.json {tmp_path}/b.pt", f"{tmp_path}/c.pt {tmp_path}/d.pt")
    assert (code, out) == (2, "") and "names the same weights twice" in err and err.count("\n") == 1
    code, out, err = run(f"{tmp_path}/a.pt {tmp_path}/b.pt", f"{tmp_path}/b.pt {tmp_path}/c.pt")
    assert (code, out) == (2, "") and "is in both groups" in err and err.count("\n") == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("~/[ab].json", "~/[cd].json")[0] == 0


def test_logits_of_other_images_are_not_compared(run, add):
    a, b = add("a"), add("b", seed=7)
    file = b.with_name("b.logits.npz")
    kept = dict(np.load(file))
    for changed, told in (({"ids": kept["ids"][::-1]}, "of a and b are of different images"),
                          ({"labels": kept["labels"] + 1}, "of a and b are of different images"),
                          ({name: kept[name][:1] for name in ("ids", "logits", "labels")}, "are of different images"),
                          ({"logits": kept["logits"][:1]}, "does not hold the logits"),
                          ({"logits": np.full_like(kept["logits"], np.nan)}, "does not hold the logits")):
        np.savez(file, **kept | changed)
        code, out, err = run(a, b)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_two_results_are_counted_image_by_image(toy_set, run, add):
    a, b = add("a"), add("b", seed=7)
    test = cifar10.load(toy_set, "test")
    right = [(logits(load(file).model, test.images).argmax(1) == test.labels).tolist() for file in (a, b)]
    first, second = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in (right, right[::-1]))
    assert first != second
    p = min(1, sum(comb(first + second, k) for k in range(min(first, second) + 1)) / 2 ** (first + second - 1))
    for words in ((a, b), (a.with_suffix(".json"), b)):
        code, out, err = run(*words)
        assert (code, err) == (0, "") and out.count("\n") == 1 and "says nothing of seeds" in out
        assert f"a is right on {sum(right[0])} and b on {sum(right[1])} of 20 test images" in out
        assert f"{first} only a, {second} only b; McNemar's exact test p = {p:.3g}; " in out
        assert f"a difference of {100 * (sum(right[0]) - sum(right[1])) / 20:+.2f} points, 95 % interval " in out
        assert "interval {1:+.2f} to {2:+.2f}. ".format(*paired(*right)) in out


def test_the_verdict_follows_from_the_interval():
    def group(*scores):
        return [{"metrics": {"top1": top1}, "config": {"seed": k}, "model": "m", "tta": False, "data": "d"}
                for k, top1 in enumerate(scores)]

    assert "more than chance" in compare.compare_groups(["a", "b"], group(90.0, 90.1), group(95.0, 95.2))
    assert "more than chance" in compare.compare_groups(["a", "b"], group(95.0, 95.2), group(90.0, 90.1))
    assert "which may be chance" in compare.compare_groups(["a", "b"], group(90.0, 95.0), group(90.1, 95.1))


def test_results_with_flip_tta_are_named_so(toy_set, tmp_path, run, add, typed):
    file = add("net-lr0.1")
    assert typed(evaluate.main, file, "--data", toy_set, "--device", "cpu", "--tta")[0] == 0
    out = run(file, tmp_path / "net-lr0.1.tta.json")[1]
    assert out.startswith("net-lr0.1 is right on ") and " and net-lr0.1.tta on " in out
    code, _, err = run(tmp_path / "*.json", tmp_path / "*.json")
    assert code == 2 and "mixes different test sets, or results with and without --tta" in err


def test_two_patterns_are_two_groups_of_seeds(tmp_path, run, add, monkeypatch):
    a = [add(f"a-seed{seed}", fold=None, seed=seed) for seed in (3, 8, 9)]
    b = [add(f"b-seed{seed}", fold=None, seed=seed) for seed in (0, 4)]
    code, out, err = run(tmp_path / "a-*.json", tmp_path / "b-*.pt")
    first, second = ([top1(file) for file in files] for files in (a, b))
    difference, low, high = welch(first, second)
    told = f"difference of {difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Welch)"
    assert (code, err) == (0, "") and told in out and "differ by more" not in out and "the same seed" not in out
    assert f"a-* has {np.mean(first):.2f} ± {np.std(first, ddof=1):.2f} % (3 seeds), b-* has" in out
    assert told in run(" ".join(str(file) for file in reversed(a)), tmp_path / "b-*.pt")[1]  # several, in any order
    monkeypatch.chdir(tmp_path)
    many = " ".join(file.name for file in a) + " " * 255  # longer than the name of a file may be
    assert told in run(many, "b-*.pt")[1]
    add("b-seed5", fold=None, seed=5)
    result = json.loads((tmp_path / "b-seed5.json").read_text())
    result["config"]["seed"] = 4
    (tmp_path / "b-seed5.json").write_text(json.dumps(result))
    assert "Of the runs of b-* some have the same seed." in run(tmp_path / "a-*.json", tmp_path / "b-*.json")[1]
    add("b-seed7", fold=None, seed=7, lr=0.7)
    assert "The runs of b-* differ by more than their seed." in run(tmp_path / "a-*.pt", tmp_path / "b-*.pt")[1]


def test_what_cannot_be_compared_is_one_line(tmp_path, run, add):
    files = [add(f"a-seed{seed}", seed=seed) for seed in (0, 1)]
    (tmp_path / "a-seed9.last.pt").write_bytes(b"a state, not weights")
    other = json.loads((tmp_path / "a-seed1.json").read_text()) | {"test_digest": "another"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    write_weights(tmp_path / "unscored.pt", tmp_path / "data", seed=3)
    for words, told in (((files[0], tmp_path / "a-*.pt"), "two seeds or more"),
                        ((files[0], tmp_path / "z-*.pt"), "does not exist"), ((files[0], " "), "names no result"),
                        ((files[0], ""), "names no result"),
                        ((files[0], tmp_path / "unscored.pt"), "evaluate.py"),
                        ((files[0], tmp_path / "other.json"), "different test images"),
                        ((files[0], tmp_path / "a-*.pt", "--diff"), "--diff takes two results")):
        code, out, err = run(*words)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_what_differs_between_two_runs(tmp_path, run, add):
    a, b = add("a"), add("b", seed=1, lr=0.5)
    result = json.loads((tmp_path / "b.json").read_text())
    result["provenance"] |= {"threads": "4", "commit": None, "before": [{"command": "python train/baseline.py"}]}
    (tmp_path / "b.json").write_text(json.dumps(result))
    code, out, err = run(a, b, "--diff")
    marks = [json.loads(file.with_suffix(".json").read_text())["fingerprint"] for file in (a, b)]
    assert (code, err) == (0, "") and out.splitlines() == [
        f"- {a.with_suffix('.json')}", f"+ {b.with_suffix('.json')}", "config: different", "  - lr: 0.1", "  + lr: 0.5",
        "  - seed: 0", "  + seed: 1", "data: the same", "versions: different", "  - commit: 0123456789ab",
        "  + commit: None", "  - threads: 1", "  + threads: 4", "command: different",
        "  - command: python train/baseline.py --seed 0", "  + command: python train/baseline.py --seed 1",
        "  - before: []", "  + before: ['python train/baseline.py']", "weights: different",
        f"  - fingerprint: {marks[0]}", f"  + fingerprint: {marks[1]}"]
    assert "different" not in run(a, a, "--diff")[1]
