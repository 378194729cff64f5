"""`train/report.py`: its statistics against textbook ones, its table, its page, and that a repeat costs nothing."""

import json
import re
from fractions import Fraction
from html.parser import HTMLParser
from itertools import product
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from train import data, plots, predict, report
from train.recipe import UserError
from untrained import write_weights

PICTURES = {"curves.png", "landscape.png", "confusion.png", "reliability.png"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository's root with the toy set in data/ and weights/; the pictures are left undrawn unless asked for."""
    toy.use(monkeypatch.setattr)
    toy.write_npz(tmp_path / "data")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def blank(monkeypatch):
    """Pictures are files of one byte: drawing them is slow, and tested once."""
    for name in ("curves", "landscape", "confusion", "reliability"):
        monkeypatch.setattr(plots, name, lambda file, *_: file.write_bytes(b"x"))


@pytest.fixture
def run(folder, typed):
    """run(*words) -> (exit code, stdout, stderr) of the command."""
    return lambda *words: typed(report.main, *words, "--device", "cpu")


def add(folder, name, log=True, **recipe):
    """A weights file, and its log."""
    file = folder / "weights" / f"{name}.pt"
    file.parent.mkdir(exist_ok=True)
    content = write_weights(file, folder / "data", **recipe)
    if log:
        rows = [{"epoch": epoch, "lr": 0.1, "train_loss": 2 / epoch, "train_accuracy": 40.0 + epoch, "seconds": 1.0,
                 "val_loss": None if content["recipe"]["fold"] is None else 3 / epoch,
                 "val_accuracy": None if content["recipe"]["fold"] is None else 30.0 + epoch} for epoch in (1, 2, 3)]
        pd.DataFrame(rows).to_csv(file.with_suffix(".csv"), index=False)
    return file


def logits_of(file, folder):
    return predict.logits(predict.load_model(file)[0], data.load(folder / "data", "test").images)


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("right, total", [(9712, 10_000), (1, 20), (10, 20), (9_999, 10_000)])
def test_wilsons_bounds_are_where_the_score_test_just_rejects(right, total):
    for bound in report.wilson(right, total):
        score = (right / total - bound) / np.sqrt(bound * (1 - bound) / total)
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


def test_wilson_by_hand_and_at_the_ends():
    assert report.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert report.wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert report.wilson(20, 20) == pytest.approx((0.8389, 1), abs=1e-4)


@pytest.mark.parametrize("total", [1, 2, 7, 10])
def test_mcnemar_counts_the_outcomes_at_least_as_lopsided(total):
    """All 2^n equally likely outcomes, one by one."""
    sizes = [sum(outcome) for outcome in product((0, 1), repeat=total)]
    for first in range(total + 1):
        extreme = sum(abs(2 * size - total) >= abs(2 * first - total) for size in sizes)
        assert report.mcnemar(first, total - first) == pytest.approx(extreme / 2**total)


def test_mcnemar_of_many_is_exact_and_of_none_is_one():
    assert report.mcnemar(0, 0) == 1
    exact = 2 * sum(Fraction(comb(2100, k), 2**2100) for k in range(1001))
    assert report.mcnemar(1000, 1100) == pytest.approx(float(exact), rel=1e-12)
    assert report.mcnemar(10, 2) == report.mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)


# ---------------------------------------------------------------- the table


def summary(run, top1, seed=0, **changes):
    recipe = {"fold": 0, "limit": None, "epochs": 300, "seed": seed, "lr": 0.1} | changes.pop("recipe", {})
    return {"format": report.FORMAT, "weights": f"{run} {top1}", "data": "d", "tta": False, "run": run, "model": "m",
            "params": 2_488_378, "macs": 248_000_000, "over_budget": False, "include_test": False, "recipe": recipe,
            "training_data": "t", "hardware": "abacus", "seconds": 100.0 + seed, "command": "a | b", "top1": top1,
            "images": 10_000} | changes


def test_runs_that_differ_by_their_seed_only_are_one_row():
    table = report.group([summary("a-s2", 97.4, 2), summary("a-s0", 97.0, 0), summary("a-s1", 97.2, 1)])
    [row] = table.to_dict("records")
    assert row["n"] == 3 and row["top1"] == pytest.approx(97.2) and row["deviation"] == pytest.approx(0.2)
    assert row["seconds"] == 101 and row["runs"] == "a-s0 a-s1 a-s2"
    assert (row["low"], row["high"]) == pytest.approx([100 * bound for bound in report.wilson(9720, 10_000)])
    words = report.in_words(table).iloc[0]
    assert words["test top-1 %"] == "97.20 ± 0.20" and words["n"] == "3" and words["95 % interval"] == "96.86 to 97.51"


@pytest.mark.parametrize("changes", [{"recipe": {"lr": 0.2}}, {"recipe": {"fold": 1}}, {"recipe": {"limit": 5}},
                                     {"tta": True}, {"training_data": "other labels"}, {"model": "n"}])
def test_any_other_difference_makes_another_row(changes):
    assert len(report.group([summary("a", 97.0), summary("b", 96.0, 1, **changes)])) == 2


def test_the_same_weights_twice_count_once():
    twice = summary("a", 97.0), summary("copy", 97.0, weights="a 97.0")
    assert report.group(twice)["n"].tolist() == [1]
    assert report.group([twice[0], twice[1] | {"tta": True}])["n"].tolist() == [1, 1]


def test_the_best_comes_first_and_the_contaminated_last():
    tested = summary("c", None, include_test=True, recipe={"lr": 3})
    del tested["top1"], tested["images"]
    rows = [tested, summary("a", 95.0), summary("b", 96.0, recipe={"lr": 2})]
    words = report.in_words(report.group(rows))
    assert words["test top-1 %"].tolist() == ["96.00", "95.00", "contaminated"]
    assert words["95 % interval"].iloc[2] == "" and words["protocol"].iloc[2] == "fold 0, with the test images"


def test_a_row_says_what_the_design_asks_for():
    big = summary("wide-noval", 97.5, over_budget=True, params=11_743_802, tta=True,
                  recipe={"fold": None, "limit": 5000})
    words = report.in_words(report.group([big])).iloc[0]
    assert words.to_dict() == {
        "model": "m (wide, teacher)", "parameters": "11,743,802", "MACs": "248 M", "epochs": "300",
        "protocol": "noval, 5,000 images, TTA", "test top-1 %": "97.50", "n": "1", "95 % interval": "97.18 to 97.79",
        "hardware": "abacus", "time": "2 min", "command": "`a | b`"}


def test_a_run_of_which_no_command_is_known_has_an_empty_cell():
    rows = [summary("a", 95.0, command=None), summary("b", 96.0, recipe={"lr": 2})]
    assert report.in_words(report.group(rows))["command"].tolist() == ["`a | b`", ""]


def test_markdown_has_one_line_a_row_and_escapes_its_bars():
    lines = report.markdown(pd.DataFrame({"model": ["a|b"], "n": [1]})).splitlines()
    assert lines == ["| model | n |", "| --- | ---: |", "| a\\|b | 1 |"]


def test_the_published_facts_are_whole():
    table = pd.read_csv(report.PUBLISHED)
    assert len(table) >= 15 and table[["model", "parameters", "test_accuracy_percent", "source"]].notna().all(axis=None)
    assert table["parameters"].between(1e6, 5e6).all() and table["test_accuracy_percent"].between(90, 99).all()
    best = report.published().set_index("model")["test_accuracy_percent"]
    assert best.index.is_unique and best["CCT-7/3x1"] == 98.0


# ---------------------------------------------------------------- the whole command


class Page(HTMLParser):
    """Collects what a page refers to, and the texts of its table cells."""

    def __init__(self, text):
        super().__init__()
        self.references, self.cells, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "td" in self.open:
            self.cells.append(text)


def test_everything_is_written_and_the_page_needs_nothing_else(folder, run):
    for seed in (0, 1):
        add(folder, f"net-fold0-s{seed}", seed=seed)
    add(folder, "net-noval", fold=None, width=3)
    code, out, err = run("--data", folder / "data")
    report_folder = folder / "weights/report"
    assert (code, err) == (0, "") and PICTURES | {"report.html", "results.md", "results.csv"} <= {
        file.name for file in report_folder.iterdir()}
    text = (report_folder / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and len(page.references) == 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.references)
    assert "url(" not in text and "@import" not in text and "http" not in text and str(folder) not in text
    table = pd.read_csv(report_folder / "results.csv")
    assert sorted(table["n"]) == [1, 2] and (report_folder / "results.md").read_text() in out
    expected = np.mean([predict.accuracy(logits_of(folder / f"weights/net-fold0-s{s}.pt", folder), data.load(
        folder / "data", "test").labels) for s in (0, 1)])
    assert table.set_index("n").loc[2, "top1"] == pytest.approx(expected)
    assert f"{expected:.2f}" in " ".join(page.cells) and "net-noval" not in json.dumps(page.references)


def test_a_repeat_makes_no_pass_and_does_not_even_load_the_images(folder, run, blank, monkeypatch):
    add(folder, "net-fold0")
    first = run("--data", folder / "data")
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("a second test pass"))
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("the images were loaded"))
    assert run("--data", folder / "data") == first and first[0] == 0


def test_other_weights_under_the_same_name_are_scored_anew(folder, run, blank):
    add(folder, "net-fold0")
    before = run("--data", folder / "data")[1]
    file = add(folder, "net-fold0", seed=3)
    after = run("--data", folder / "data")[1]
    top1 = predict.accuracy(logits_of(file, folder), data.load(folder / "data", "test").labels)
    assert before != after and f"{top1:.2f}" in after
    assert json.loads((folder / "weights/results/net-fold0.json").read_text())["top1"] == top1


def test_kept_answers_serve_a_lost_summary_and_damaged_ones_are_replaced(folder, run, blank, monkeypatch):
    add(folder, "net-fold0")
    first = run("--data", folder / "data")
    [kept] = (folder / "weights/report/answers").iterdir()
    (folder / "weights/results/net-fold0.json").write_text("{")
    with monkeypatch.context() as patch:
        patch.setattr(predict, "logits", lambda *_: pytest.fail("a second test pass"))
        assert run("--data", folder / "data") == first
    (folder / "weights/results/net-fold0.json").unlink()
    kept.write_bytes(kept.read_bytes()[:200])
    assert run("--data", folder / "data") == first and np.load(kept)["logits"].shape == (20, 10)


def test_results_without_weights_stay_in_the_table(folder, run, blank):
    file = add(folder, "net-fold0")
    first = run("--data", folder / "data")
    file.unlink()
    (folder / "weights/report/answers").rename(folder / "gone")
    assert run("--data", folder / "data") == first
    ours = json.loads((folder / "weights/results/net-fold0.json").read_text())
    foreign = json.dumps(ours | {"data": "other", "run": "other", "weights": "w", "model": "stranger"})
    (folder / "weights/results/other.json").write_text(foreign)
    assert "stranger" not in run("--data", folder / "data")[1], "results on other test images do not mix in"


def test_tta_is_a_row_of_its_own(folder, run, blank):
    file = add(folder, "net-fold0")
    run("--data", folder / "data")
    _, out, _ = run("--data", folder / "data", "--tta")
    test = data.load(folder / "data", "test")
    mirrored = predict.logits(predict.load_model(file)[0], test.images, tta=True)
    assert {path.name for path in (folder / "weights/results").iterdir()} == {"net-fold0.json", "net-fold0-tta.json"}
    assert len(re.findall(r"^\| resnet18-2", out, re.M)) == 2
    [row] = [line for line in out.splitlines() if "fold 0, TTA" in line]
    assert f" {predict.accuracy(mirrored, test.labels):.2f} " in row
    result = json.loads((folder / "weights/results/net-fold0-tta.json").read_text())
    assert result["nll"] == predict.nll(mirrored, test.labels) and result["tta"]


def test_contaminated_weights_are_listed_without_an_accuracy(folder, run, blank, monkeypatch):
    file = add(folder, "net-fold0", include_test=True)
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("scored on images it was trained with"))
    code, out, err = run("--data", folder / "data")
    assert (code, err) == (0, "") and "| contaminated |" in out
    assert "top1" not in json.loads((folder / "weights/results/net-fold0.json").read_text())
    code, _, err = run(file, "--data", folder / "data", "--compare", file, file)
    assert code == 2 and "trained with the test images" in err


def test_what_cannot_be_read_is_named_and_left_out(folder, run, blank):
    add(folder, "net-fold0")
    (folder / "weights/damaged.pt").write_bytes(b"PK" + bytes(100))
    (folder / "weights/net-fold1.last.pt").write_bytes(b"a state, not weights")
    (folder / "weights/empty.csv").write_text("")
    code, out, err = run("--data", folder / "data")
    assert code == 0 and "resnet18-2" in out and err.count("\n") == 1 and "damaged.pt" in err
    code, _, err = run(folder / "weights/damaged.pt", "--data", folder / "data")
    assert code == 2 and err.count("\n") == 1 and "damaged.pt" in err


def test_weights_of_the_synthetic_set_are_not_scored_on_the_real_one(folder, run, blank):
    file = add(folder, "net-fold0")
    content = report.checkpoint.load(file)
    content["provenance"]["source"] = "synthetic"
    report.checkpoint.save(file, content)
    code, _, err = run("--data", folder / "data")
    assert code == 2 and "was trained on other images" in err and "no finished weights" in err


def test_comparison_counts_what_only_one_of_two_got_right(folder, run, blank):
    a, b = add(folder, "a-fold0"), add(folder, "b-fold0", seed=5)
    code, out, _ = run("--data", folder / "data", "--compare", a, b)
    labels = data.load(folder / "data", "test").labels
    first, second = ((logits_of(file, folder).argmax(1) == labels).tolist() for file in (a, b))
    only = sum(x > y for x, y in zip(first, second)), sum(x < y for x, y in zip(first, second))
    assert code == 0 and f"{only[0]} only a-fold0, {only[1]} only b-fold0" in out
    p = sum(comb(sum(only), k) for k in range(min(only) + 1)) / 2 ** (sum(only) - 1)
    page = (folder / "weights/report/report.html").read_text()
    assert f"p = {min(1, p):.3g}" in out and f"p = {min(1, p):.3g}" in page


def test_the_readme_keeps_all_but_the_table(folder, run, blank):
    add(folder, "net-fold0")
    readme = folder / "README.md"
    readme.write_text("# Title\n\n<!-- results -->\nbefore\n<!-- /results -->\n\nend\n")
    assert run("--data", folder / "data", "--readme", readme)[0] == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- results -->\n| model |") and text.endswith("\n<!-- /results -->\n\nend\n")
    assert "before" not in text
    run("--data", folder / "data", "--readme", readme)
    assert readme.read_text() == text


def test_a_section_has_markers_of_its_own(folder, run, blank):
    add(folder, "net-fold0")
    readme = folder / "README.md"
    readme.write_text("<!-- results -->\nkept\n<!-- /results -->\n<!-- study -->\nbefore\n<!-- /study -->\n")
    assert run("--data", folder / "data", "--readme", readme, "--section", "study")[0] == 0
    text = readme.read_text()
    assert "kept" in text and "before" not in text and "<!-- study -->\n| model |" in text


@pytest.mark.parametrize("text", ["", "<!-- results -->", "<!-- /results --><!-- results -->",
                                  "<!-- results --><!-- results --><!-- /results -->"])
def test_a_readme_without_its_markers_is_refused_and_kept(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="once each"):
        report.into_readme(tmp_path / "README.md", "table")
    assert (tmp_path / "README.md").read_text() == text


def test_a_folder_stands_for_its_runs_and_their_summaries(folder, run, blank):
    add(folder, "net-fold0")
    file = add(folder, "study/other-fold0", seed=1)
    gone = add(folder, "study/gone-noval", seed=2, fold=None)
    assert run(gone, "--data", folder / "data")[0] == 0
    gone.unlink()
    code, out, _ = run(folder / "weights/study", "--data", folder / "data")
    assert code == 0 and re.findall(r"^\| \S+ \((\S+)\)", out, re.M) in (["other", "gone"], ["gone", "other"])
    assert (file.parent / "results/other-fold0.json").exists()


# ---------------------------------------------------------------- ensembles


def test_an_ensemble_is_a_row_and_stays_one(folder, run, blank):
    files = [add(folder, f"net-fold{fold}", fold=fold, seed=fold) for fold in (0, 1, 2)]
    code, out, _ = run("--data", folder / "data", "--ensemble", "teachers", *files)
    mean = torch.stack([logits_of(file, folder) for file in files]).mean(0)
    test = data.load(folder / "data", "test")
    result = json.loads((folder / "weights/results/teachers.json").read_text())
    assert code == 0 and result["nll"] == predict.nll(mean, test.labels) and result["images"] == len(test)
    one = json.loads((folder / "weights/results/net-fold0.json").read_text())
    assert (result["params"], result["macs"], result["seconds"]) == (3 * one["params"], 3 * one["macs"], 183.0)
    [row] = [line for line in out.splitlines() if "(teachers)" in line]
    assert row.startswith("| 3 resnet18-2 (teachers) | 8,964 |") and "| mean of 3 |" in row
    assert f"| {predict.accuracy(mean, test.labels):.2f} | 1 |" in row
    assert "`python train/evaluate.py weights/net-fold0.pt weights/net-fold1.pt weights/net-fold2.pt`" in row
    assert row in run("--data", folder / "data")[1]
    # With mirrored images it is a row beside it; both are figures of the past once a member has been trained anew.
    _, out, _ = run("--data", folder / "data", "--tta", "--ensemble", "teachers", *reversed(files))
    assert row in out and "| mean of 3, TTA |" in out and "net-fold0.pt --tta`" in out
    mirrored = torch.stack([predict.logits(predict.load_model(f)[0], test.images, tta=True) for f in files]).mean(0)
    result = json.loads((folder / "weights/results/teachers-tta.json").read_text())
    assert result["nll"] == pytest.approx(predict.nll(mirrored, test.labels), rel=1e-6)
    add(folder, "net-fold1", fold=1, seed=7)
    for words in ((), ("--tta",)):
        assert "(teachers)" not in run("--data", folder / "data", *words)[1]


def test_ensembles_are_never_averaged(folder, run, blank):
    a, b, c = (add(folder, f"net-noval-s{seed}", fold=None, seed=seed) for seed in (0, 1, 2))
    _, out, _ = run("--data", folder / "data", "--ensemble", "one", a, b, "--ensemble", "two", b, c,
                    "--ensemble", "same", b, a)
    rows = [line.split("|") for line in out.splitlines() if "mean of 2" in line]
    assert len(rows) == 2 and all(row[7].strip() == "1" and "±" not in row[6] for row in rows)


def test_an_ensemble_that_cannot_be_is_one_line_before_any_pass(folder, run, blank, monkeypatch):
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("a test pass"))
    file, other = add(folder, "net-fold0"), add(folder, "other-fold0", include_test=True)
    more = add(folder, "more-fold0", seed=1)
    for words, told in [(("mean",), "two weights files"), (("mean", file), "two weights files"),
                        (("mean", file, file), "there twice"), (("mean", file, other), "test images"),
                        (("mean", file, folder / "none.pt"), "does not exist"), ((file, more, file), "takes a name"),
                        (("net-fold0", file, more), "weights of that name"),
                        (("a", file, more, "--ensemble", "a", file, more), "a different one")]:
        code, out, err = run("--data", folder / "data", "--ensemble", *words)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1
    assert not (folder / "weights/results").exists()


def test_weights_trained_anew_leave_no_row_of_the_old_ones(folder, run, blank):
    add(folder, "net-fold0", log=False)
    run("--data", folder / "data", "--tta")
    assert "fold 0, TTA" in run("--data", folder / "data")[1]
    add(folder, "net-fold0", log=False, seed=4)
    assert "fold 0, TTA" not in run("--data", folder / "data")[1]


def test_a_name_with_a_space_is_a_name(folder, run, blank):
    add(folder, "my net")
    assert run("--data", folder / "data")[0] == 0


def test_a_missing_section_is_told_before_any_pass(folder, run, blank, monkeypatch):
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("a test pass"))
    add(folder, "net-fold0")
    (folder / "README.md").write_text("<!-- results --><!-- /results -->")
    code, out, err = run("--data", folder / "data", "--readme", folder / "README.md", "--section", "studdy")
    assert (code, out) == (2, "") and "<!-- studdy -->" in err and err.count("\n") == 1


def test_nothing_to_report_is_one_line(folder, run):
    code, out, err = run("--data", folder / "data")
    assert (code, out) == (2, "") and "no finished weights" in err and err.count("\n") == 1


def test_a_report_folder_that_cannot_be_is_refused(folder, run):
    add(folder, "net-fold0")
    code, _, err = run("--data", folder / "data", "--out", folder / "no/where")
    assert code == 2 and "a folder that exists" in err


# ---------------------------------------------------------------- pictures


def test_landscape_labels_never_overlap_each_other_or_a_point(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    points = [(f"model number {k}", 10 ** random.uniform(6, 6.7), random.uniform(94, 98)) for k in range(25)]
    ours = [("ours", 3e6, 96.0, 95.6, 96.4), ("", 3e6, 96.2, 95.8, 96.6)]
    found = []
    original = plots.label_points

    def checked(axes, *arguments):
        original(axes, *arguments)
        names = {name for name, *_ in points} | {"ours"}
        texts = [text for text in axes.texts if text.get_text() in names]
        boxes = [text.get_window_extent() for text in texts]
        dots = [axes.transData.transform((size, 100 - top1)) for _, size, top1 in points]
        found.extend(boxes)
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
        assert not any(box.contains(*dot) for box in boxes for dot in dots)
        assert "ours" in [text.get_text() for text in texts]

    monkeypatch.setattr(plots, "label_points", checked)
    plots.landscape(tmp_path / "x.png", ours, points, 5_000_000, "title")
    assert len(found) > 15


@pytest.mark.parametrize("official", [True, False])
def test_published_figures_stand_beside_those_on_the_official_images_only(tmp_path, blank, monkeypatch, official):
    drawn = []
    monkeypatch.setattr(plots, "landscape", lambda file, *arguments: drawn.extend(arguments))
    more = {"confusion": [], "reliability": [], "ece": 0.1}
    results = [summary("a-fold0", 96.0, **more), summary("a-fold1", 97.0, recipe={"fold": 1}, **more),
               summary("b-fold0", 98.0, over_budget=True, recipe={"lr": 1}, **more)]
    titles = []
    monkeypatch.setattr(plots, "confusion", lambda file, counts, title: titles.append(title))
    report.draw(tmp_path, report.group(results), results, {}, official)
    ours, known, budget, _ = drawn
    assert [(name, top1) for name, _, top1, *_ in ours] == [("b", 98.0), ("a", 97.0), ("", 96.0)] and budget == 5_000_000
    assert len(known) == (len(report.published()) if official else 0)
    assert titles == ["a-fold1: 97.00 % of 10,000 images"], "the best within the budget"


def test_curves_of_one_epoch_and_without_validation_are_drawn(tmp_path):
    log = pd.DataFrame({"epoch": [1], "train_loss": [2.0], "val_loss": [None], "train_accuracy": [20.0],
                        "val_accuracy": [None]})
    plots.curves(tmp_path / "x.png", {"one": [log], "two": [log, log]})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
