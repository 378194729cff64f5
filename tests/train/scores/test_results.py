"""`train.scores.results` and `page`: what a result file holds, and how results become rows and words."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import models
from train import ROOT, UserError
from train.data import cifar10
from train.engine import checkpoint, metrics
from train.scores import page, results
from train.scores.statistics import wilson

NONE = dict.fromkeys(("torch", "commit", "threads", "precision"))


def result(run, top1, seed=0, folder="/w", before=(), config=(), provenance=(), **changes):
    """A result of 10,000 images, as `read_result` gives it."""
    config = {"fold": 0, "limit": None, "epochs": 300, "seed": seed, "lr": 0.1, "low_res": 0.0} | dict(config)
    about = NONE | {"images": 40_000, "unlabelled": 0, "source": "data", "hardware": "abacus", "seconds": 100.0 + seed,
                    "command": "a | b", "date": "2026-01-01", "before": list(before)} | dict(provenance)
    return {"format": results.FORMAT, "file": Path(folder) / f"{run}.json", "run": run, "model": "m",
            "params": 2_488_378, "macs": 248_000_000, "images": 10_000, "tta": False, "test_digest": "d",
            "fingerprint": f"{run} {top1}", "metrics": {"top1": top1}, "config": config, "options": {}, "data": "t",
            "log": None, "provenance": about} | changes


def before(mark, epochs, place="abacus", provenance=(), **config):
    """A run whose weights another began with."""
    config = {"fold": 0, "limit": None, "epochs": epochs, "seed": 0, "low_res": 0.0} | config
    return NONE | {"run": mark, "fingerprint": mark, "command": mark, "images": 40_000, "unlabelled": 0,
                   "hardware": place, "seconds": 50.0, "date": "2025-12-31", "config": config} | dict(provenance)


@pytest.fixture
def kept(toy_set, tmp_path):
    """A result file a.json with its logits, as `evaluate` writes them: (file, test set, logits)."""
    test = cifar10.load(toy_set, "test")
    logits = torch.randn(len(test), 10, generator=torch.Generator().manual_seed(0))
    about = {name: value for name, value in result("a", 10.0).items() if name != "file"}
    results.write_result(tmp_path / "a.json", about, test, logits)
    return tmp_path / "a.json", test, logits


def test_what_is_written_is_read_again(kept):
    file, test, logits = kept
    found = results.read_result(results.result_file(file.with_suffix(".pt")))
    assert found == result("a", 10.0) | {"file": file}
    ids, same, labels = results.kept_logits(found)
    assert list(ids) == list(test.ids) and torch.equal(same, logits) and torch.equal(labels, test.labels)
    assert same.dtype == torch.float32


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"format": "result/1"}',
                                  '{"format": "result/2", "run": "a"}'], ids=range(5))
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="is no result of"):
        results.read_result(tmp_path / "a.json")
    for name, command in (("b.json", "b.pt`"), ("b.tta.json", "b.pt --tta`")):
        with pytest.raises(UserError, match=rf"evaluate.py .*{command} writes it"):
            results.read_result(tmp_path / name)


def test_logits_that_are_missing_damaged_or_of_other_weights_are_refused(kept):
    found = results.read_result(kept[0])
    with pytest.raises(UserError, match="logits of other weights"):
        results.kept_logits(found | {"fingerprint": "another"})
    npz = results.logits_file(kept[0])
    for damage, words in ((lambda: npz.write_bytes(npz.read_bytes()[:300]), "does not hold"),
                          (npz.unlink, "does not exist")):
        damage()
        with pytest.raises(UserError, match=words):
            results.kept_logits(found)


@pytest.mark.parametrize("name", ["a.json", "a.tta.json"])
def test_weights_that_are_newer_than_their_result_are_told(kept, capsys, name):
    file = kept[0].rename(kept[0].with_name(name))
    file.with_name("a.pt").touch()
    os.utime(file, (1e9, 1e9))
    assert results.read_result(file)["run"] == "a" and "a.pt: evaluate it again" in capsys.readouterr().err
    os.utime(file.with_name("a.pt"), (1e9, 1e9))
    assert results.read_result(file)["run"] == "a" and not capsys.readouterr().err


def members(folder, test, count=2, **changes):
    """Results of several runs with their logits, and the sum of these."""
    found, total = [], 0
    for seed in range(count):
        logits = torch.randn(len(test), 10, generator=torch.Generator().manual_seed(seed))
        about = result(f"net{seed}", 10.0, seed, folder, **changes)
        results.write_result(about["file"], {k: v for k, v in about.items() if k != "file"}, test, logits)
        found, total = [*found, about], total + logits
    return found, total


def test_an_ensemble_answers_by_the_mean_of_kept_logits(toy_set, tmp_path):
    test = cifar10.load(toy_set, "test")
    found, total = members(tmp_path, test, 3)
    both = results.mean_of_kept(tmp_path / "all.json", found)
    assert both["metrics"] == metrics.summary(total / 3, test.labels) and both["images"] == 20
    assert both["params"] == 3 * 2_488_378 and both["run"] == "all" and both["provenance"]["over_budget"]
    assert both["provenance"]["command"] == "python train/evaluate.py net0.pt net1.pt net2.pt"
    [row] = results.group([both]).to_dict("records")
    assert (row["protocol"], row["n"], row["model"]) == ("mean of 3", 1, "3 m") and row["over_budget"]
    assert row["pflop"] == pytest.approx(3 * 6 * 248e6 * 40_000 * 300 / 1e15) and row["seconds"] == 303.0


def test_an_ensemble_of_what_does_not_fit_is_refused(toy_set, tmp_path):
    test = cifar10.load(toy_set, "test")
    [first, second], _ = members(tmp_path, test)
    (tmp_path / "part").mkdir()
    [other], _ = members(tmp_path / "part", test.select(slice(7)), 1)
    for some, words in (([first, second, second], "each network once"), ([second, other], "mixes test images")):
        with pytest.raises(UserError, match=words):
            results.mean_of_kept(tmp_path / "x.json", some)


def test_members_that_began_with_the_same_weights_did_that_work_once():
    """One went on for 10 epochs from the other's 20."""
    first = result("b", 97.0, config={"epochs": 20}, macs=2)
    second = result("a", 98.0, config={"epochs": 10}, macs=2,
                    before=[before("b 97.0", 20, provenance={"seconds": 100.0})])
    both = results.combine("both", [first, second], "", torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
    assert both["provenance"]["seconds"] == 200 and both["config"]["epochs"] == 30
    assert both["pflop"] == pytest.approx(6 * 2 * 40_000 * 30 / 1e15) == pytest.approx(results.pflop(second))


def test_runs_that_differ_by_their_seed_only_are_one_row():
    table = results.group([result("a-seed2", 97.4, 2), result("a-seed0", 97.0, 0), result("a-seed1", 97.2, 1)])
    [row] = table.to_dict("records")
    assert row["n"] == 3 and row["top1"] == pytest.approx(97.2) and row["std"] == pytest.approx(0.2)
    assert row["seconds"] == 101 and row["runs"] == "a-seed0 a-seed1 a-seed2" and row["name"] == "a"
    assert (row["low"], row["high"]) == pytest.approx(wilson(9720, 10_000))
    words = page.in_words(table).iloc[0]
    assert words["test top-1 %"] == "97.20 ± 0.20" and words["n"] == "3" and words["95 % interval"] == "96.86 to 97.51"


def test_seeds_in_folders_of_their_own_are_one_row():
    folders = ["/w/quick", "/w/quick/seed1", "/w/quick/seed12", "/w/quick/images-a", "/w/quick/seed1/images-a"]
    runs = [result("student", 97.0, seed, folder) for seed, folder in enumerate(folders)]
    table = results.group([run | {"fingerprint": str(k)} for k, run in enumerate(runs)])
    assert sorted(zip(table["name"], table["n"], strict=True)) == [("images-a/student", 2), ("quick/student", 3)]


def test_the_same_weights_twice_count_once_a_copy_in_half_precision_too():
    twice = result("a", 97.0), result("copy", 96.9, fingerprint="a 97.0")
    assert results.group(twice)[["n", "top1"]].values.tolist() == [[1, 97.0]]
    assert results.group([twice[0], twice[1] | {"tta": True}])["n"].tolist() == [1, 1]


def test_a_run_repeated_with_its_seed_is_no_further_seed():
    """On another machine it has other last bits."""
    table = results.group([result("a-seed0", 97.0), result("b-seed0", 97.3), result("a-seed1", 97.2, 1)])
    assert sorted(zip(table["runs"], table["n"], strict=True)) == [("a-seed0 a-seed1", 2), ("b-seed0", 1)]


@pytest.mark.parametrize("changes", [
    {"config": {"lr": 0.2}}, {"config": {"fold": 1}}, {"config": {"limit": 5}}, {"config": {"precision": "bfloat16"}},
    {"tta": True}, {"data": "other labels"}, {"model": "n"}, {"folder": "/elsewhere"}])
def test_any_other_difference_makes_another_row(changes):
    assert len(results.group([result("a", 97.0), result("b", 96.0, 1, **changes)])) == 2


@pytest.mark.parametrize("run, kin", [
    ("seresnet164-fold3", "seresnet164"), ("student-seed12", "student"), ("net-seed1-noval", "net"),
    ("resnet18-basic-noval", "resnet18-basic"), ("shakeshake26-64-se-fold0-seed2", "shakeshake26-64-se"),
    ("teacher-all", "teacher-all")])
def test_a_family_is_a_run_without_fold_and_seed(run, kin):
    assert results.family(run) == kin


def test_a_run_that_began_with_weights_counts_what_those_took():
    """6 x 2 MACs x 40,000 images x (10 + 20 whole epochs + 10 of which half are at 20x20 pixels), by hand."""
    runs = [result(f"a-seed{seed}", 97.0 + seed, seed, macs=2, config={"epochs": 10, "init": "b"},
                   before=[before("b", 20, "slate"), before("c", 10, low_res=0.5)]) for seed in (0, 1)]
    [row] = results.group(runs).to_dict("records")
    assert row["n"] == 2 and row["epochs"] == 40 and row["seconds"] == pytest.approx(100.5 + 100)
    assert row["pflop"] == pytest.approx(6 * 2 * 40_000 * (30 + 10 * (1 + 0.390625) / 2) / 1e15)
    assert row["protocol"] == "fold 0, from weights of 30 epochs" and row["hardware"] == "abacus; slate"
    assert row["command"] == "c && b && a | b"
    other = result("a-seed2", 97.0, 2, macs=2, config={"epochs": 10, "init": "d"}, before=[before("d", 20)])
    assert results.group([*runs, other])["n"].tolist() == [2, 1]


def test_a_student_is_marked_whose_work_is_without_that_of_its_teachers():
    kd = {"objective": "kd", "alpha": 0.9}
    rows = [result("a", 1.0, config=kd), result("b", 2.0, config=kd | {"alpha": 0.0}),
            result("c", 3.0, before=[before("s", 5, **kd)]), result("d", 4.0, config={"lr": 2})]
    assert results.group(rows)["taught"].tolist() == [False, True, False, True]
    for members, taught in ((rows[:2], True), (rows[1::2], False)):
        both = results.combine("both", members, "", torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
        assert results.group([both | {"file": Path("/w/both.json")}])["taught"].tolist() == [taught]


def test_time_is_told_from_the_fastest_run_to_the_slowest_with_the_precision():
    runs = [result(f"a-seed{seed}", 97.0, seed,
                   provenance={"seconds": seconds, "hardware": place, "precision": "float32"})
            for seed, seconds, place in ((0, 2700.0, "abacus"), (1, 5820.0, "slate"), (2, 2760.0, "abacus"))]
    table = results.group(runs)
    words = page.in_words(table).iloc[0]
    assert words["time"] == "45 min to 1 h 37 min" and table["seconds"].tolist() == [3760.0]
    assert words["hardware"] == "float32 on abacus; slate"


@pytest.mark.parametrize("limits, unlabelled, told", [
    ((20, None), (0, 7), "fold 0, 7 unlabelled images, from weights of 5 epochs"),
    ((20, 40), (3, 0), "fold 0, 40 images, 3 unlabelled images, from weights of 5 epochs"),
    ((20, 100_000), (0, 0), "fold 0, from weights of 5 epochs")])
def test_the_protocol_tells_of_all_images_that_were_learned(limits, unlabelled, told):
    start = before("b", 5, limit=limits[1], provenance={"unlabelled": unlabelled[1]})
    run = result("a", 97.0, config={"limit": limits[0]}, provenance={"unlabelled": unlabelled[0]}, before=[start])
    assert results.group([run])["protocol"].tolist() == [told]


def test_the_work_of_training():
    """6 x MACs x images x epochs; half a run at 20 of 32 pixels is 1 - 0.5 (1 - 0.390625) of it."""
    run = result("a", 95.0, macs=100_000_000, config={"epochs": 10})
    assert results.pflop(run) == pytest.approx(6 * 1e8 * 40_000 * 10 / 1e15) == pytest.approx(0.24)
    run["config"]["low_res"] = 0.5
    assert results.pflop(run) == pytest.approx(0.24 * 0.6953125)
    assert results.pflop(run | {"members": [], "pflop": 7.0}) == 7.0


def test_a_row_says_what_the_design_asks_for():
    big = result("wide-noval", 97.5, params=11_743_802, tta=True, config={"fold": None, "limit": 5000})
    words = page.in_words(results.group([big])).iloc[0]
    assert words.to_dict() == {
        "model": "m (wide, over budget)", "parameters": "11,743,802", "MACs": "248 M", "epochs": "300",
        "protocol": "noval, 5,000 images, TTA", "test top-1 %": "97.50", "n": "1", "95 % interval": "97.18 to 97.79",
        "PFLOP": "17.9", "time": "2 min", "hardware": "abacus"}


def test_a_name_in_two_folders_is_told_apart_and_never_averaged():
    rows = [result("net-fold0", 95.0, folder="/x/demo/w"), result("net-fold0", 96.0, 1, "/x/full/w"),
            result("other-fold0", 94.0, folder="/x/full/w", config={"lr": 2})]
    table = results.group(rows)
    assert table["name"].tolist() == ["full/w/net", "demo/w/net", "other"] and table["n"].tolist() == [1, 1, 1]
    assert page.in_words(table)["model"].iloc[1] == "m (demo/w/net)"


def test_markdown_has_one_line_a_row_and_escapes_its_bars():
    lines = page.markdown(pd.DataFrame({"model": ["a|b\n<!-- c"], "n": [1]})).splitlines()
    assert lines == ["| model | n |", "| --- | ---: |", "| a\\|b &lt;!-- c | 1 |"]


def test_the_published_results_are_whole():
    files = sorted((ROOT / "weights" / "results").glob("*.json"))
    found = [results.read_result(file) for file in files]
    assert len(found) >= 30 and {run["test_digest"] for run in found} == {cifar10.OFFICIAL["test"]}
    for run in found:
        right = np.trace(run["metrics"]["confusion"])
        assert right / 100 == pytest.approx(run["metrics"]["top1"]) and not run["provenance"]["include_test"]
        if "members" not in run:
            model = models.build(run["config"]["model"], **run["options"])
            assert (model.name, models.parameter_count(model)) == (run["model"], run["params"])
            assert models.macs(model) == run["macs"]
    ensemble = next(run for run in found if "members" in run)
    assert checkpoint.digest(ensemble["members"])[:16] == ensemble["fingerprint"]
    table = results.group(found).set_index("runs")
    row = table.loc["fastnet-m-noval fastnet-m-noval-seed1 fastnet-m-noval-seed2 fastnet-m-noval-seed3"]
    assert f"{row['top1']:.2f} ± {row['std']:.2f}" == "94.11 ± 0.17" and f"{row['pflop']:.2f}" == "0.69"
