"""`train/report.py`: what it writes and where, that a repeat costs nothing, and what it leaves out."""

import io
import json
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from train import report
from train.engine import checkpoint, data, predict
from train.engine.command import UserError
from train.engine.results import Scorer
from untrained import accuracy_of, add, blank, folder, logits_of, no_pass, run  # noqa: F401

PICTURES = {"curves.png", "landscape.png", "cost.png", "confusion.png", "reliability.png"}


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
    code, out, err = run("--picture", folder / "weights/cost.png")
    report_folder = folder / "weights/report"
    picture = (folder / "weights/cost.png").read_bytes()
    assert picture == (report_folder / "cost.png").read_bytes() and len(picture) < 100_000
    assert (code, err) == (0, "") and PICTURES | {"report.html", "results.md", "results.csv"} <= {
        file.name for file in report_folder.iterdir()}
    text = (report_folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == [] and len(page.references) == 5
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.references)
    assert "url(" not in text and "@import" not in text and "http" not in text and str(folder) not in text
    table = pd.read_csv(report_folder / "results.csv").set_index("n")
    expected = np.mean([accuracy_of(folder / f"weights/net-fold0-s{s}.pt", folder) for s in (0, 1)])
    assert sorted(table.index) == [1, 2] and table.loc[2, "top1"] == pytest.approx(expected)
    assert f"{expected:.2f}" in " ".join(page.cells) and "net-noval" not in json.dumps(page.references)
    # The commands stand below the table on the page, in results.md and in the CSV, and not on the screen.
    command = "python train/baseline.py --seed 0"
    assert command in page.cells and command not in out and table.loc[2, "command"] == command
    written = (report_folder / "results.md").read_text("utf-8")
    assert written.startswith(out[:out.index("\n\n")]) and command in written


def test_the_curves_of_a_run_that_went_on_begin_where_the_one_before_ended(folder, run, blank, monkeypatch):
    file = add(folder, "net-fold0")
    content = checkpoint.load(file)
    content["provenance"]["before"] = [
        {"weights": mark, "recipe": content["recipe"] | {"epochs": epochs}, "command": mark, "seconds": 1.0,
         "trained_on": 10, "hardware": "abacus"} for mark, epochs in (("b", 20), ("a", 5))]
    checkpoint.save(file, content)
    drawn = []
    monkeypatch.setattr(report.plots, "curves", lambda file, logs: (drawn.append(logs), file.write_bytes(b"x")))
    assert run()[0] == 0
    assert [list(log["epoch"]) for logs in drawn[0].values() for log in logs] == [[26, 27, 28]]


def test_a_repeat_makes_no_pass_and_does_not_even_load_the_images(folder, run, blank, no_pass):
    add(folder, "net-fold0")
    first = run()
    no_pass(images=True)
    assert run() == first and first[0] == 0


def test_other_weights_under_the_same_name_are_scored_anew(folder, run, blank):
    add(folder, "net-fold0")
    before = run()[1]
    file = add(folder, "net-fold0", seed=3)
    _, after, err = run()
    assert err == "report.py: weights/results/net-fold0.json was the result of other weights of that name, and is " \
                  "replaced\n" and run()[2] == ""
    assert before != after and f"{accuracy_of(file, folder):.2f}" in after
    result = json.loads((folder / "weights/results/net-fold0.json").read_text())
    assert result["top1"] == accuracy_of(file, folder)
    assert (result["torch"], result["commit"], result["threads"]) == ("2.11.0", "0123456789ab", 1)


def test_what_older_weights_do_not_say_of_themselves_is_left_open(folder, run, blank):
    file = add(folder, "net-fold0")
    content = checkpoint.load(file)
    for name in ("command", "torch", "commit", "threads", "unlabelled"):
        del content["provenance"][name]
    del content["log"]
    checkpoint.save(file, content)
    code, out, err = run()
    assert (code, err) == (0, "") and "| resnet18-2 (net) |" in out


def test_kept_answers_serve_a_lost_summary_and_damaged_ones_are_replaced(folder, run, blank, no_pass, monkeypatch):
    add(folder, "net-fold0")
    first = run()
    [kept] = (folder / "weights/report/answers").iterdir()
    (folder / "weights/results/net-fold0.json").write_text("{")
    logits = predict.logits
    no_pass()
    assert run() == first
    monkeypatch.setattr(predict, "logits", logits)
    (folder / "weights/results/net-fold0.json").unlink()
    kept.write_bytes(kept.read_bytes()[:200])
    assert run() == first and checkpoint.load(kept)["logits"].shape == (20, 10)


def test_results_without_weights_stay_in_the_table(folder, run, blank):
    file = add(folder, "net-fold0")
    first = run()
    file.unlink()
    (folder / "weights/report/answers").rename(folder / "gone")
    assert run() == first
    ours = json.loads((folder / "weights/results/net-fold0.json").read_text())
    foreign = json.dumps(ours | {"data": "other", "run": "other", "weights": "w", "model": "stranger"})
    (folder / "weights/results/other.json").write_text(foreign)
    _, out, err = run()
    assert "stranger" not in out and err == "report.py: left out: 1 result on other test images\n"


def test_tta_is_a_row_of_its_own(folder, run, blank):
    file = add(folder, "net-fold0")
    run()
    _, out, _ = run("--tta")
    labels, mirrored = data.load(folder / "data", "test").labels, logits_of(file, folder, tta=True)
    assert {path.name for path in (folder / "weights/results").iterdir()} == {"net-fold0.json", "net-fold0-tta.json"}
    assert len(re.findall(r"^\| resnet18-2", out, re.M)) == 2
    [row] = [line for line in out.splitlines() if "fold 0, TTA" in line]
    assert f" {predict.accuracy(mirrored, labels):.2f} " in row
    result = json.loads((folder / "weights/results/net-fold0-tta.json").read_text())
    assert result["nll"] == predict.nll(mirrored, labels) and result["tta"]
    add(folder, "net-fold0", seed=4)
    assert "fold 0, TTA" not in run()[1], "weights trained anew leave no row of the old ones"


def test_contaminated_weights_are_listed_without_an_accuracy(folder, run, blank, no_pass):
    file = add(folder, "net-fold0", include_test=True)
    no_pass()
    code, out, err = run("--picture", folder / "cost.png")
    assert code == 0 and "| contaminated |" in out and not (folder / "cost.png").exists()
    assert err == f"report.py: --picture {folder / 'cost.png'}: not drawn, there is no accuracy on the official images\n"
    assert "top1" not in json.loads((folder / "weights/results/net-fold0.json").read_text())
    for words in (("--compare", file, file), ("--student", file)):
        code, _, err = run(*words)
        assert code == 3 and "trained with the test images" in err and err.startswith(f"report.py: {words[0]}: ")


def test_what_cannot_be_read_is_named_and_left_out(folder, run, blank):
    file = add(folder, "net-fold0")
    (folder / "weights/damaged.pt").write_bytes(b"PK" + bytes(100))
    (folder / "weights/net-fold1.last.pt").write_bytes(b"a state, not weights")
    (folder / "weights/empty.csv").write_text("")
    code, out, err = run()
    assert code == 0 and "resnet18-2" in out and err.count("\n") == 1 and "damaged.pt" in err
    code, _, err = run(folder / "weights/damaged.pt")
    assert code == 2 and err.count("\n") == 1 and "damaged.pt" in err
    code, out, err = run(file, folder / "weights/net-fold1.last.pt")  # as the shell makes of weights/*.pt
    assert code == 0 and "net-fold1.last.pt is a resume state" in err


def test_weights_of_the_synthetic_set_are_not_scored_on_the_real_one(folder, run, blank):
    add(folder, "net-fold0", source="synthetic")
    code, _, err = run()
    assert code == 2 and "was trained on other images" in err and "no finished weights" in err
    code, out, err = run(folder / "weights/net-fold0.pt", add(folder, "other-fold0"))
    assert (code, out) == (2, "") and "was trained on other images" in err and err.count("\n") == 1


def test_a_name_with_a_space_is_a_name(folder, run, blank):
    add(folder, "my net")
    assert run()[0] == 0


def test_a_folder_stands_for_its_runs_and_their_summaries(folder, run, blank):
    add(folder, "net-fold0")
    file = add(folder, "study/other-fold0", seed=1)
    gone = add(folder, "study/gone-noval", seed=2, fold=None)
    assert run(gone)[0] == 0
    gone.unlink()
    code, out, _ = run(folder / "weights/study")
    assert code == 0 and re.findall(r"^\| \S+ \((\S+)\)", out, re.M) in (["other", "gone"], ["gone", "other"])
    assert (file.parent / "results/other-fold0.json").exists()


def test_runs_of_one_name_are_told_apart_by_their_folder(folder, run, blank):
    for name, seed in (("demo", 0), ("full", 1)):
        add(folder, f"{name}/net-fold0", seed=seed)
    code, out, _ = run(folder / "weights/demo", folder / "weights/full")
    assert code == 0 and {"(demo/net)", "(full/net)"} == set(re.findall(r"\(\S+/net\)", out))
    assert len(re.findall(r"^\| resnet18-2", out, re.M)) == 2


# ---------------------------------------------------------------- where it writes


def test_another_place_leaves_the_folder_of_the_weights_alone(folder, run, blank, no_pass):
    add(folder, "net-fold0")
    out = folder / "elsewhere"
    assert run("--out", out)[0] == 0
    assert {path.name for path in (folder / "weights").iterdir()} == {"net-fold0.pt"}
    assert [path.name.split("-")[:2] for path in (out / "results").iterdir()] == [["net", "fold0"]]
    no_pass(images=True)
    assert run("--out", out)[0] == 0


def test_a_report_in_the_folder_of_its_weights_keeps_summaries_beside_them(folder, run, blank):
    add(folder, "study/net-fold0")
    assert run(folder / "weights/study", "--out", folder / "weights/study/report")[0] == 0
    assert (folder / "weights/study/results/net-fold0.json").exists()


def test_nothing_is_written_into_a_folder_that_is_read_only(folder, run, blank, monkeypatch):
    file = add(folder, "shared/net-fold0")
    shared, may = file.parent, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and shared not in (path, *path.parents))
    assert run(shared)[0] == 0 and [path.name for path in shared.iterdir()] == ["net-fold0.pt"]
    assert (folder / "weights/report/report.html").exists()
    code, out, err = run(shared, "--out", shared)
    assert (code, out) == (2, "") and "not writable" in err and err.count("\n") == 1


def test_generated_images_have_a_report_and_summaries_of_their_own(folder, blank, typed, monkeypatch):
    add(folder, "net-fold0", source="synthetic")
    monkeypatch.setattr(data, "load", lambda path, part, load=data.load: load(folder / "data", part))
    monkeypatch.setattr(Scorer, "digest", "that of the generated ones")
    code, out, err = typed(report.main, "--data", "synthetic", "--device", "cpu", "--picture", folder / "cost.png")
    assert "not drawn" in err and not (folder / "cost.png").exists()
    assert code == 0 and "Top-1 on the 20 generated test images" in out
    assert {path.name for path in (folder / "weights").iterdir()} == {"net-fold0.pt", "report-synthetic"}
    page = (folder / "weights/report-synthetic/report.html").read_text("utf-8")
    assert "scored on generated test images" in page and "Published by others" not in page


def test_files_are_utf8_and_the_screen_takes_what_it_knows(folder, run, blank, monkeypatch):
    for seed in (0, 1):
        add(folder, f"net-fold0-s{seed}", seed=seed)
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert run()[0] == 0
    screen.flush()
    assert " +- " in screen.buffer.getvalue().decode("ascii")
    assert " ± " in (folder / "weights/report/results.md").read_text("utf-8")


def test_nothing_to_report_is_one_line(folder, run):
    code, out, err = run()
    assert (code, out) == (2, "") and "no finished weights" in err and err.count("\n") == 1


@pytest.mark.parametrize("flag, target, words", [
    ("--out", "no/where", "a folder that exists"), ("--picture", "no/cost.png", "no does not exist"),
    ("--picture", "cost.jpg", "should end in .png"),
])
def test_a_target_that_cannot_be_is_refused_before_any_pass(folder, run, no_pass, flag, target, words):
    add(folder, "net-fold0")
    no_pass()
    code, out, err = run(flag, folder / target)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


# ---------------------------------------------------------------- the README


def test_the_readme_keeps_all_but_the_table(folder, run, blank):
    add(folder, "net-fold0")
    readme = folder / "README.md"
    readme.write_text("# Title ±\n\n<!-- results -->\nbefore\n<!-- /results -->\n\nend\n", "utf-8")
    assert run("--readme", readme)[0] == 0
    text = readme.read_text("utf-8")
    assert text.startswith("# Title ±\n\n<!-- results -->\n| model |") and text.endswith(
        "\n<!-- /results -->\n\nend\n")
    assert "before" not in text and "train/baseline.py" not in text, "commands would make the table too wide"
    run("--readme", readme)
    assert readme.read_text("utf-8") == text


def test_a_section_has_markers_of_its_own(folder, run, blank):
    add(folder, "net-fold0")
    readme = folder / "README.md"
    readme.write_text("<!-- results -->\nkept\n<!-- /results -->\n<!-- study -->\nbefore\n<!-- /study -->\n")
    assert run("--readme", readme, "--section", "study")[0] == 0
    text = readme.read_text("utf-8")
    assert "kept" in text and "before" not in text and "<!-- study -->\n| model |" in text


@pytest.mark.parametrize("text", ["", "<!-- results -->", "<!-- /results --><!-- results -->",
                                  "<!-- results --><!-- results --><!-- /results -->"])
def test_a_readme_without_its_markers_is_refused_before_any_pass_and_kept(folder, run, no_pass, text):
    add(folder, "net-fold0")
    no_pass()
    (folder / "README.md").write_text(text)
    code, out, err = run("--readme", folder / "README.md")
    assert (code, out) == (2, "") and "once each" in err and "<!-- results -->" in err and err.count("\n") == 1
    assert (folder / "README.md").read_text() == text
    with pytest.raises(UserError, match="once each"):
        report.into_readme(folder / "README.md", "table")
