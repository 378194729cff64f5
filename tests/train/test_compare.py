"""What `train/report.py` says of several weights: ensembles, comparisons, differences, and what teachers gain."""

import json
from math import comb

import numpy as np
import pytest
import torch

from train.engine import checkpoint, compare, data, predict
from untrained import accuracy_of, add, blank, folder, logits_of, no_pass, run  # noqa: F401

# ---------------------------------------------------------------- ensembles


def test_an_ensemble_is_a_row_and_stays_one(folder, run, blank):
    files = [add(folder, f"net-fold{fold}", fold=fold, seed=fold) for fold in (0, 1, 2)]
    code, out, _ = run("--ensemble", "teachers", *files)
    mean = torch.stack([logits_of(file, folder) for file in files]).mean(0)
    test = data.load(folder / "data", "test")
    result = json.loads((folder / "weights/results/teachers.json").read_text())
    assert code == 0 and result["nll"] == predict.nll(mean, test.labels) and result["images"] == len(test)
    one = json.loads((folder / "weights/results/net-fold0.json").read_text())
    assert (result["params"], result["macs"], result["seconds"]) == (3 * one["params"], 3 * one["macs"], 183.0)
    [row] = [line for line in out.splitlines() if "(teachers)" in line]
    assert row.startswith("| 3 resnet18-2 (teachers) | 8,964 |") and "| mean of 3 |" in row
    assert f"| {predict.accuracy(mean, test.labels):.2f} | 1 |" in row
    command = "python train/evaluate.py weights/net-fold0.pt weights/net-fold1.pt weights/net-fold2.pt"
    work = 2 * 3 * one["macs"] * (40 + 50 + 50) * 2  # of the folds, fold 0 holds 20 images out and the others 10
    assert result["command"] == command and result["pflop"] == pytest.approx(work / 1e15)
    assert row in run()[1]
    # With mirrored images it is a row beside it; both are figures of the past once a member has been trained anew.
    _, out, _ = run(folder / "weights", "--tta", "--ensemble", "teachers", *reversed(files))
    assert "| mean of 3, TTA |" in out and row in out
    mirrored = torch.stack([logits_of(file, folder, tta=True) for file in files]).mean(0)
    result = json.loads((folder / "weights/results/teachers-tta.json").read_text())
    assert result["nll"] == pytest.approx(predict.nll(mirrored, test.labels), rel=1e-6)
    assert result["command"].endswith("net-fold0.pt --tta")
    add(folder, "net-fold1", fold=1, seed=7)
    for words in ((), ("--tta",)):
        assert "(teachers)" not in run(*words)[1]


def test_ensembles_are_never_averaged(folder, run, blank):
    a, b, c = (add(folder, f"net-noval-s{seed}", fold=None, seed=seed) for seed in (0, 1, 2))
    _, out, _ = run("--ensemble", "one", a, b, "--ensemble", "two", b, c, "--ensemble", "same", b, a)
    rows = [line.split("|") for line in out.splitlines() if "mean of 2" in line]
    assert len(rows) == 2 and all(row[7].strip() == "1" and "±" not in row[6] for row in rows)


def test_an_ensemble_does_not_replace_the_result_of_other_weights(folder, run, blank):
    a, b, c, single = (add(folder, f"net-noval-s{seed}", fold=None, seed=seed) for seed in (0, 1, 2, 3))
    assert run("--teachers", a, b)[0] == 0 and run(single)[0] == 0
    single.unlink()
    kept = [folder / "weights/results" / name for name in ("ensemble.json", "net-noval-s3.json")]
    before = [file.read_bytes() for file in kept]
    for words in (("--teachers", b, c), ("--ensemble", "net-noval-s3", b, c)):
        code, _, err = run(*words)
        assert code == 2 and err.count("\n") == 1 and "is the result of other weights" in err
    assert run("--teachers", b, c, "--ensemble", "other", b, c)[0] == 0  # under a name of its own it is there once
    assert [file.read_bytes() for file in kept] == before
    assert (folder / "weights/results/other.json").exists()
    add(folder, "net-noval-s1", fold=None, seed=7)  # the same ensemble, of which one was trained anew
    assert run("--teachers", a, b)[0] == 0 and kept[0].read_bytes() != before[0]


def test_an_ensemble_that_cannot_be_is_one_line_before_any_pass(folder, run, blank, no_pass):
    no_pass()
    file, other = add(folder, "net-fold0"), add(folder, "other-fold0", include_test=True, seed=2)
    more = add(folder, "more-fold0", seed=1)
    for words, told in [(("mean",), "two weights files"), (("mean", file), "two weights files"),
                        (("mean", file, file), "a network counts once"), (("mean", file, other), "test images"),
                        (("mean", file, folder / "none.pt"), "does not exist"), ((file, more, file), "takes a name"),
                        (("net-fold0", file, more), "weights of that name"),
                        (("a", file, more, "--ensemble", "a", file, more), "a different one")]:
        code, out, err = run("--ensemble", *words)
        assert code in (2, 3) and out == "" and told in err and err.count("\n") == 1
    assert not (folder / "weights/results").exists()


# ---------------------------------------------------------------- two networks, two groups


def test_comparison_counts_what_only_one_of_two_got_right(folder, run, blank):
    a, b = add(folder, "a-fold0"), add(folder, "b-fold0", seed=5)
    code, out, _ = run(a, b, "--compare", a, b)
    labels = data.load(folder / "data", "test").labels
    first, second = ((logits_of(file, folder).argmax(1) == labels).tolist() for file in (a, b))
    only = sum(x > y for x, y in zip(first, second)), sum(x < y for x, y in zip(first, second))
    assert code == 0 and f"{only[0]} only a-fold0, {only[1]} only b-fold0" in out and "TTA" not in out
    p = sum(comb(sum(only), k) for k in range(min(only) + 1)) / 2 ** (sum(only) - 1)
    page = (folder / "weights/report/report.html").read_text("utf-8")
    assert f"p = {min(1, p):.3g}." in out and f"p = {min(1, p):.3g}." in page and "says nothing of seeds" in out


def test_mirrored_answers_are_called_so(folder, run, blank):
    a, b = add(folder, "net-lr0.1-s0"), add(folder, "net-lr0.2-s0", seed=5)
    assert "\nWith flip TTA, net-lr0.1-s0 is right on" in run(a, b, "--tta", "--compare", a, b)[1]
    add(folder, "net-lr0.1-s1", seed=2), add(folder, "net-lr0.2-s1", seed=3)
    groups = [folder / f"weights/net-lr{lr}*" for lr in (0.1, 0.2)]
    out = run("--tta", "--compare", *groups)[1]
    assert out.startswith("With flip TTA, net-lr0.1* has ") and " net-lr0.2* has " in out
    assert "TTA %" in run("--tta", "--student", a)[1]


def test_a_comparison_alone_is_of_these_two_wherever_they_are(folder, run, blank):
    add(folder, "bystander-fold0", seed=9)
    a, b = add(folder, "../outside/net-fold0"), add(folder, "../other/net-fold0", seed=5)
    code, out, err = run("--compare", a, b)
    assert (code, err) == (0, "") and out.count("\n") == 1 and "only outside/net-fold0" in out
    assert "only other/net-fold0" in out and not (folder / "weights/report/report.html").exists()
    assert {path.name for path in a.parent.iterdir()} == {"net-fold0.pt"}


def test_two_patterns_are_two_groups_of_seeds(folder, run, blank):
    a = [add(folder, f"a-noval-seed{seed}", fold=None, seed=seed) for seed in (4, 7, 9)]
    b = [add(folder, f"b-noval-seed{seed}", fold=None, seed=seed) for seed in (0, 4)]
    code, out, _ = run("--compare", folder / "weights/a-*.pt", folder / "weights/b-*.pt")
    first, second = ([accuracy_of(file, folder) for file in files] for files in (a, b))
    difference, low, high = compare.welch(first, second)
    assert code == 0 and f"difference of {difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}" in out
    assert f"{np.mean(first):.2f} ± {np.std(first, ddof=1):.2f} % (3 seeds)" in out and "(2 seeds)" in out
    needed = compare.seeds_needed(difference, [np.std(values, ddof=1) for values in (first, second)])
    assert f"takes {needed} seeds a group" in out and "differ by more" not in out
    assert "the same seed" not in out
    words = " ".join(str(file) for file in reversed(a)), folder / "weights/b-*.pt"  # several, in any order
    assert f"difference of {difference:+.2f} points, 95 % interval {low:+.2f}" in run("--compare", *words)[1]
    content = checkpoint.load_weights(add(folder, "b-noval-seed5", fold=None, seed=5))
    content["recipe"]["seed"] = 4
    checkpoint.save(folder / "weights/b-noval-seed5.pt", content)
    out = run("--compare", folder / "weights/a-*.pt", folder / "weights/b-*.pt")[1]
    assert "Of the runs of b-* some have the same seed." in out
    add(folder, "b-noval-seed7", fold=None, seed=7, lr=0.7)
    out = run("--compare", folder / "weights/a-*.pt", folder / "weights/b-*.pt")[1]
    assert "The runs of b-* differ by more than their seed." in out


def test_a_group_that_cannot_be_is_one_line(folder, run, blank):
    files = [add(folder, f"a-seed{seed}", seed=seed) for seed in (0, 1)]
    (folder / "weights/a-seed9.last.pt").write_bytes(b"a state, not weights")
    for words, told in (((files[0], folder / "weights/a-*.pt"), "two seeds or more"),
                        ((files[0], folder / "weights/z-*.pt"), "no such weights file"),
                        ((files[0], " "), "no such weights file"),
                        ((files[0], f"{files[1]} none.pt"), "none.pt: there is no such weights file")):
        code, out, err = run("--compare", *words)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_what_differs_between_two_runs(folder, run):
    a, b = add(folder, "a-fold0"), add(folder, "b-fold0", seed=1, lr=0.5)
    content = checkpoint.load(b)
    content["provenance"]["threads"] = 4
    del content["provenance"]["commit"]
    checkpoint.save(b, content)
    code, out, _ = run("--diff", a, b)
    assert code == 0 and out.splitlines() == [
        f"- {a}", f"+ {b}", "recipe: different", "  - lr: 0.1", "  + lr: 0.5", "  - seed: 0", "  + seed: 1",
        "data: the same", "versions: different", "  - commit: 0123456789ab", "  + commit: not known", "  - threads: 1",
        "  + threads: 4", "command: different", "  - command: python train/baseline.py --seed 0",
        "  + command: python train/baseline.py --seed 1", "weights: different"]
    assert "different" not in run("--diff", a, a)[1] and not (folder / "weights/report").exists()
    code, more, _ = run("--diff", a, b, "--compare", a, b)
    assert code == 0 and more.startswith(out) and "McNemar" in more
    assert out in run(a, "--diff", a, b)[1] and (folder / "weights/report/report.html").exists()

    content["provenance"]["before"] = [{"command": "python train/baseline.py --seed 7"}]
    checkpoint.save(b, content)
    assert run("--diff", a, b)[1].splitlines()[-3:] == [
        "  - before: []", "  + before: ['python train/baseline.py --seed 7']", "weights: different"]


# ---------------------------------------------------------------- what teachers gain


def test_roles_are_compared_in_lines_and_the_teachers_are_a_row(folder, run, blank):
    names = {"baseline": ["base"], "teachers": ["t0", "t1"], "control": ["c0", "c1"], "student": ["s0", "s1"]}
    seeds = {"base": 0, "t0": 4, "t1": 7, "c0": 1, "c1": 2, "s0": 9, "s1": 3}
    files = {role: [add(folder, name, seed=seeds[name]) for name in names[role]] for role in names}
    words = [word for role in files for word in (f"--{role}", *files[role])]
    code, out, err = run(*words)
    score = {role: [accuracy_of(file, folder) for file in files[role]] for role in files}
    mean = {role: np.mean(values) for role, values in score.items()}
    table = (folder / "weights/report/pipeline.txt").read_text()
    assert (code, err) == (0, "") and table in out
    together = sum(logits_of(file, folder) for file in files["teachers"])
    ensemble = predict.accuracy(together, data.load(folder / "data", "test").labels)
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["role", "run", "parameters", "test", "%"] and rows[1] == [
        "baseline", "base", "2,988", f"{score['baseline'][0]:.2f}"]
    assert ["teacher", "t1", "2,988", f"{score['teachers'][1]:.2f}"] in rows
    assert ["teachers", "mean", "of", "the", "2", f"{mean['teachers']:.2f}"] in rows
    assert ["ensemble", "mean", "of", "their", "logits", "5,976", f"{ensemble:.2f}"] in rows
    assert ["student", "mean", "of", "the", "2", f"{mean['student']:.2f}"] in rows
    assert mean["student"] - mean["baseline"] == mean["student"] - mean["control"] == 2.5
    assert table.splitlines()[-2:] == [
        "student +2.50 points against the baseline",
        "student +2.50 points against the control, the same network and epochs without teachers: distillation is ahead"]
    assert "| 2 resnet18-2 (ensemble) | 5,976 |" in out
    assert "distillation is ahead" in (folder / "weights/report/report.html").read_text("utf-8")
    out = run("--student", *files["control"], "--control", *files["student"])[1]
    assert "student -2.50 points" in out and "the control is ahead" in out


def test_another_network_or_other_epochs_are_no_control(folder, run, blank):
    student, a, b = add(folder, "a"), add(folder, "b", epochs=9), add(folder, "c", width=3)
    for control in (a, b):
        out = run("--student", student, "--control", control)[1]
        assert "differs by more than the teachers" in out and "ahead" not in out and "a tie" not in out


def test_the_same_accuracy_is_a_tie_and_roles_may_be_missing(folder, run, blank):
    a, b = add(folder, "a"), add(folder, "b")
    code, out, _ = run("--student", a, "--control", b)
    assert code == 0 and "student +0.00 points against the control" in out and out.count(": a tie") == 1
    assert "against the baseline" not in out
    assert "points" not in run("--teachers", a)[1]
