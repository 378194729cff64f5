"""`train.engine.results`, `compare` and `page`: statistics against textbook ones, and how runs become rows in words."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from train.engine import compare, loop, page, predict, results


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("right, total", [(9712, 10_000), (1, 20), (10, 20), (9_999, 10_000)])
def test_wilsons_bounds_are_where_the_score_test_just_rejects(right, total):
    for bound in results.wilson(right, total):
        bound /= 100
        score = (right / total - bound) / np.sqrt(bound * (1 - bound) / total)
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


def test_wilson_by_hand_and_at_the_ends():
    assert results.wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)  # Newcombe 1998, table I, method 3
    assert results.wilson(0, 20) == pytest.approx((0, 16.11), abs=0.01)
    assert results.wilson(20, 20) == pytest.approx((83.89, 100), abs=0.01)


@pytest.mark.parametrize("total", [1, 2, 7, 10])
def test_mcnemar_counts_the_outcomes_at_least_as_lopsided(total):
    """All 2^n equally likely outcomes, one by one."""
    sizes = [sum(outcome) for outcome in product((0, 1), repeat=total)]
    for first in range(total + 1):
        extreme = sum(abs(2 * size - total) >= abs(2 * first - total) for size in sizes)
        assert compare.mcnemar(first, total - first) == pytest.approx(extreme / 2**total)


def test_mcnemar_of_many_is_exact_and_of_none_is_one():
    assert compare.mcnemar(0, 0) == 1
    exact = 2 * sum(Fraction(comb(2100, k), 2**2100) for k in range(1001))
    assert compare.mcnemar(1000, 1100) == pytest.approx(float(exact), rel=1e-12)
    assert compare.mcnemar(10, 2) == compare.mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_students_quantiles_are_those_of_the_printed_tables():
    table = {(1, 0.975): 12.706, (2, 0.975): 4.303, (4, 0.975): 2.776, (10, 0.975): 2.228, (30, 0.975): 2.042,
             (10, 0.8): 0.879, (2, 0.8): 1.061, (120, 0.975): 1.980, (2.5, 0.5): 0, (10**7, 0.975): 1.960}
    for (freedom, share), value in table.items():
        assert compare.t_quantile(share, freedom) == pytest.approx(value, abs=6e-4)


def test_welch_by_hand():
    """Means 3 and 2, variances 2.5 and 1, n 5 and 3: error^2 = 1/2 + 1/3, freedom = (5/6)^2 / (1/16 + 1/18) = 5.88."""
    difference, low, high = compare.welch([1, 2, 3, 4, 5], [1, 2, 3])
    half = 2.4590 * np.sqrt(5 / 6)  # between t(0.975) of 5 and 6 degrees, 2.571 and 2.447
    assert difference == 1 and (low, high) == pytest.approx((1 - half, 1 + half), abs=2e-3)
    assert compare.welch([2, 2], [1, 1]) == (1, 1, 1)
    assert compare.welch([93.1, 93.3], [93.0, 93.4])[0] == 0  # whose means differ in the last bit


def test_an_interval_of_95_percent_holds_the_truth_so_often():
    random = np.random.default_rng(0)
    held = [low < 1 < high for _ in range(400) for _, low, high in [
        compare.welch(random.normal(1, 2, 3), random.normal(0, 1, 5))]]
    assert 0.92 < np.mean(held) < 0.98


def test_seeds_needed_as_in_cohens_tables_and_as_simulated():
    assert [compare.seeds_needed(d, (1, 1)) for d in (1, 0.8, 0.5, 0.2)] == [17, 26, 64, 394]
    assert compare.seeds_needed(0, (1, 1)) is None and compare.seeds_needed(-1e3, (1, 1)) == 2
    random, count = np.random.default_rng(0), compare.seeds_needed(0.9, (0.5, 1))
    shown = [low > 0 for _ in range(400) for _, low, _ in [
        compare.welch(random.normal(0.9, 0.5, count), random.normal(0, 1, count))]]
    assert 0.74 < np.mean(shown) < 0.88


def test_comparisons_say_what_they_are_about():
    right = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    text = compare.compare_networks("a", "b", *right)
    assert text.startswith("a is right on 3 and b on 1 of 4 test images: 2 only a, 0 only b;")
    assert "p = 0.5." in text and "says nothing of seeds" in text


# ---------------------------------------------------------------- the table


def summary(run, top1, seed=0, **changes):
    recipe = {"fold": 0, "limit": None, "epochs": 300, "seed": seed, "lr": 0.1} | changes.pop("recipe", {})
    return {"format": results.FORMAT, "folder": Path("/w"), "weights": f"{run} {top1}", "data": "d", "tta": False,
            "run": run, "model": "m", "params": 2_488_378, "macs": 248_000_000, "over_budget": False,
            "include_test": False, "recipe": recipe, "training_data": "t", "trained_on": 40_000, "hardware": "abacus",
            "seconds": 100.0 + seed, "command": "a | b", "make": "net", "top1": top1, "images": 10_000} | changes


def test_runs_that_differ_by_their_seed_only_are_one_row():
    table = results.group([summary("a-s2", 97.4, 2), summary("a-s0", 97.0, 0), summary("a-s1", 97.2, 1)])
    [row] = table.to_dict("records")
    assert row["n"] == 3 and row["top1"] == pytest.approx(97.2) and row["deviation"] == pytest.approx(0.2)
    assert row["seconds"] == 101 and row["runs"] == "a-s0 a-s1 a-s2"
    assert (row["low"], row["high"]) == pytest.approx(results.wilson(9720, 10_000))
    words = page.in_words(table).iloc[0]
    assert words["test top-1 %"] == "97.20 ± 0.20" and words["n"] == "3" and words["95 % interval"] == "96.86 to 97.51"


def test_a_copy_in_half_precision_is_no_further_seed():
    copy = summary("a-s0", 96.9, weights="h", whole="a-s0 97.0")
    table = results.group([copy, summary("a-s0", 97.0), summary("a-s1", 97.2, 1)])
    [row] = table.to_dict("records")
    assert row["n"] == 2 and row["top1"] == pytest.approx(97.1) and row["runs"] == "a-s0 a-s1"
    assert results.group([copy]).iloc[0]["top1"] == 96.9


def test_a_run_repeated_with_its_seed_is_no_further_seed():
    """On another machine it has other last bits."""
    table = results.group([summary("a-s0", 97.0), summary("b-s0", 97.3), summary("a-s1", 97.2, 1)])
    assert sorted(zip(table["runs"], table["n"])) == [("a-s0 a-s1", 2), ("b-s0", 1)]


@pytest.mark.parametrize("run, kin", [
    ("seresnet164-fold3", "seresnet164"), ("student-s12", "student"), ("resnet18-basic-noval", "resnet18-basic"),
    ("shakeshake26-64-se-fold0-seed2", "shakeshake26-64-se"), ("seresnet164", "seresnet164"), ("net-s1-noval", "net")])
def test_a_family_is_a_run_without_fold_and_seed(run, kin):
    assert results.family(run) == kin


def test_words_are_told_once():
    assert results.join_distinct(["a, 2 threads; b", None, "b", "a, 2 threads"]) == "a, 2 threads; b"


def before(weights, epochs, place="abacus", **recipe):
    return {"run": weights, "weights": weights, "seconds": 50.0, "trained_on": 40_000, "hardware": place,
            "command": weights, "recipe": {"fold": 0, "limit": None, "epochs": epochs, "seed": 0} | recipe}


def test_a_run_that_began_with_weights_counts_what_those_took():
    """6 x 2 MACs x 40,000 images x (10 + 20 whole epochs + 10 of which half are at 20x20 pixels), by hand."""
    runs = [summary(f"a-s{seed}", 97.0 + seed, seed, macs=2, recipe={"epochs": 10, "init": "b"},
                    before=[before("b", 20, "slate"), before("c", 10, small=0.5)]) for seed in (0, 1)]
    [row] = results.group(runs).to_dict("records")
    assert row["n"] == 2 and row["epochs"] == 40 and row["seconds"] == pytest.approx(100.5 + 100)
    assert row["pflop"] == pytest.approx(6 * 2 * 40_000 * (30 + 10 * (1 + 0.390625) / 2) / 1e15)
    assert row["protocol"] == "fold 0, from weights of 30 epochs" and row["hardware"] == "abacus; slate"
    assert row["command"] == "c && b && a | b"
    other = summary("a-s2", 97.0, 2, macs=2, recipe={"epochs": 10, "init": "d"}, before=[before("d", 20)])
    assert results.group([*runs, other])["n"].tolist() == [2, 1]


def test_time_is_told_from_the_fastest_run_to_the_slowest_with_the_precision():
    recipe = {"precision": "float32"}
    runs = [summary(f"a-s{seed}", 97.0, seed, recipe=recipe, seconds=seconds, hardware=place)
            for seed, seconds, place in ((0, 2700.0, "abacus"), (1, 5820.0, "slate"), (2, 2760.0, "abacus"))]
    table = results.group([*runs, summary("b", 96.0, recipe={"precision": "bfloat16"},
                                          before=[before("c", 1, "slate", precision="float32")])])
    words = page.in_words(table)
    assert words["time"].tolist() == ["45 min to 1 h 37 min", "2 min"] and table["seconds"].tolist() == [3760.0, 150.0]
    assert words["hardware"].tolist() == ["float32 on abacus; slate", "bfloat16; float32 on abacus; slate"]


@pytest.mark.parametrize("limits, unlabelled, told", [
    ((20, None), (0, 7), "fold 0, 7 unlabelled images, from weights of 5 epochs"),
    ((20, 40), (3, 0), "fold 0, 40 images, 3 unlabelled images, from weights of 5 epochs")])
def test_the_protocol_tells_of_all_images_that_were_learned(limits, unlabelled, told):
    start = before("b", 5, limit=limits[1]) | {"unlabelled": unlabelled[1]}
    run = summary("a", 97.0, recipe={"limit": limits[0]}, unlabelled=unlabelled[0], before=[start])
    assert results.group([run])["protocol"].tolist() == [told]


def test_members_that_began_with_the_same_weights_did_that_work_once():
    """One went on for 10 epochs from the other's 20."""
    kept = dict.fromkeys(("torch", "commit", "threads", "unlabelled", "date"), "") | {"macs": 2}
    first = summary("b", 97.0, recipe={"epochs": 20}) | kept
    second = summary("a", 98.0, recipe={"epochs": 10}, before=[before("b 97.0", 20) | {"seconds": 100.0}]) | kept
    both = results.combine([first, second])
    assert both["seconds"] == 200 and both["recipe"]["epochs"] == 30
    assert both["pflop"] == pytest.approx(6 * 2 * 40_000 * 30 / 1e15) == pytest.approx(results.pflop(second))


def test_what_weights_began_with_reaches_the_table(toy_set, tmp_path):
    recipe = toy.Toy(data=str(toy_set), out=str(tmp_path / "a.pt"))
    begun = replace(recipe, out=str(tmp_path / "b.pt"), init=loop.run(recipe), epochs=3)
    networks = predict.load([recipe.out, loop.run(begun)])
    scorer = results.Scorer(str(toy_set), "cpu", False, tmp_path / "report", False)
    table = results.group([*(scorer.result([network]) for network in networks), scorer.result(networks, "both")])
    rows = {row["name"]: row for row in table.to_dict("records")}
    assert [rows[name]["epochs"] for name in ("a", "b", "both")] == [2, 5, 5]
    assert rows["b"]["pflop"] == rows["both"]["pflop"] == pytest.approx(rows["a"]["pflop"] * 5 / 2)
    assert rows["b"]["seconds"] == rows["both"]["seconds"] > rows["a"]["seconds"]


@pytest.mark.parametrize("changes", [{"recipe": {"lr": 0.2}}, {"recipe": {"fold": 1}}, {"recipe": {"limit": 5}},
                                     {"tta": True}, {"training_data": "other labels"}, {"model": "n"}])
def test_any_other_difference_makes_another_row(changes):
    assert len(results.group([summary("a", 97.0), summary("b", 96.0, 1, **changes)])) == 2


def test_the_same_weights_twice_count_once():
    twice = summary("a", 97.0), summary("copy", 97.0, weights="a 97.0")
    assert results.group(twice)["n"].tolist() == [1]
    assert results.group([twice[0], twice[1] | {"tta": True}])["n"].tolist() == [1, 1]


def test_the_best_comes_first_and_the_contaminated_last():
    tested = summary("c", None, include_test=True, recipe={"lr": 3})
    del tested["top1"], tested["images"]
    rows = [tested, summary("a", 95.0), summary("b", 96.0, recipe={"lr": 2})]
    words = page.in_words(results.group(rows))
    assert words["test top-1 %"].tolist() == ["96.00", "95.00", "contaminated"]
    assert words["95 % interval"].iloc[2] == "" and words["protocol"].iloc[2] == "fold 0, with the test images"


def test_a_row_says_what_the_design_asks_for():
    big = summary("wide-noval", 97.5, over_budget=True, params=11_743_802, tta=True,
                  recipe={"fold": None, "limit": 5000})
    words = page.in_words(results.group([big])).iloc[0]
    assert words.to_dict() == {
        "model": "m (wide, teacher)", "parameters": "11,743,802", "MACs": "248 M", "epochs": "300",
        "protocol": "noval, 5,000 images, TTA", "test top-1 %": "97.50", "n": "1", "95 % interval": "97.18 to 97.79",
        "PFLOP": "17.9", "time": "2 min", "hardware": "abacus", "command": "`make net`"}


def test_a_command_is_a_target_of_make_or_stands_apart():
    rows = [summary("a", 95.0, command=None), summary("b", 96.0, make=None, recipe={"lr": 2})]
    table = results.group(rows)
    assert page.in_words(table)["command"].tolist() == ["", "`make net`"]
    assert page.commands(table)["command"].tolist() == ["a | b"]
    assert "command" not in page.in_words(results.group(rows[1:]))


def test_unlabelled_images_are_part_of_the_protocol():
    table = results.group([summary("a", 95.0, unlabelled=1500)])
    assert table["protocol"].tolist() == ["fold 0, 1,500 unlabelled images"] and table["unlabelled"].tolist() == [1500]


def test_a_name_in_two_folders_is_told_apart_and_never_averaged():
    demo, full = Path("/x/demo/w"), Path("/x/full/w")
    rows = [summary("net-fold0", 95.0, folder=demo), summary("net-fold0", 96.0, 1, folder=full),
            summary("other-fold0", 94.0, folder=full, recipe={"lr": 2})]
    table = results.group(rows)
    assert table["name"].tolist() == ["full/w/net", "demo/w/net", "other"] and table["n"].tolist() == [1, 1, 1]
    assert page.in_words(table)["model"].iloc[1] == "m (demo/w/net)"


def test_where_and_with_what_a_run_was_made_is_kept_and_may_be_missing():
    new = summary("a", 95.0, torch="2.11.0", commit="abc", threads=2)
    [row] = results.group([new, summary("b", 96.0, 1, torch="2.12.0")]).to_dict("records")
    assert (row["torch"], row["commit"], row["threads"]) == ("2.11.0; 2.12.0", "abc", "2")


def test_the_work_of_training():
    """6 x MACs x images x epochs; half a run at 20 of 32 pixels is 1 - 0.5 (1 - 0.390625) of it."""
    run = summary("a", 95.0, macs=100_000_000, recipe={"epochs": 10})
    assert results.pflop(run) == pytest.approx(6 * 1e8 * 40_000 * 10 / 1e15) == pytest.approx(0.24)
    run["recipe"]["small"] = 0.5
    assert results.pflop(run) == pytest.approx(0.24 * 0.6953125)
    del run["trained_on"], run["recipe"]["small"]  # as older summaries are
    assert results.pflop(run) == pytest.approx(0.24)
    assert results.pflop(run | {"recipe": run["recipe"] | {"limit": 10_000, "fold": None}}) == pytest.approx(0.06)
    assert results.pflop(run | {"members": [], "pflop": 7.0}) == 7.0 and results.pflop(run | {"members": []}) is None
    words = page.in_words(results.group([run, summary("b", 1.0, members=[["a", "b"]], recipe={"lr": 9})]))
    assert words["PFLOP"].tolist() == ["0.24", ""]


def test_markdown_has_one_line_a_row_and_escapes_its_bars():
    lines = page.markdown(pd.DataFrame({"model": ["a|b"], "n": [1]})).splitlines()
    assert lines == ["| model | n |", "| --- | ---: |", "| a\\|b | 1 |"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": "result/0"}', '{"format": "result/1"}'])
def test_what_is_no_result_is_left_out(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert results.read_result(tmp_path / "a.json") is None
