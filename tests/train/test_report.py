"""`train/report.py`: what it makes of results and logs alone, where it writes, what it leaves out."""

import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from untrained import log, write_weights

import models
from train import evaluate, report
from train.data import cifar10
from train.engine import checkpoint, command, metrics
from train.scores import plots
from train.scores.results import kept_logits, read_result

PICTURES = {"curves.png", "landscape.png", "cost.png", "confusion.png", "reliability.png"}
KD = {"objective": "kd", "temperature": 4.0, "alpha": 0.9, "labels": "0123", "teachers": [], "images": None}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository's root with the toy set in data/ and a folder weights/."""
    toy.use(monkeypatch.setattr)
    toy.write_npz(tmp_path / "data")
    (tmp_path / "weights").mkdir()
    for module in (report, command):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def blank(monkeypatch):
    """Pictures are files of one byte: drawing them is slow, and tested once."""
    for name in ("curves", "landscape", "confusion", "reliability"):
        monkeypatch.setattr(plots, name, lambda file, *_: file.write_bytes(b"x"))


@pytest.fixture
def run(folder, typed, monkeypatch):
    """run(*words) -> (exit code, stdout, stderr) of the report, which loads no network and no images."""

    def call(*words):
        with monkeypatch.context() as patch:
            for module, name in ((torch, "load"), (checkpoint, "load"), (cifar10, "load")):
                patch.setattr(module, name, lambda *_, **__: pytest.fail("a network or images were loaded"))
            return typed(report.main, *words)

    return call


@pytest.fixture
def add(folder, typed):
    """add(name, *flags of evaluate, **changes): weights/name.json of an untrained network; returns its path."""

    def call(name, *words, **changes):
        file = folder / "weights" / f"{name}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(file, folder / "data", **changes)
        assert typed(evaluate.main, file, "--data", folder / "data", "--device", "cpu", *words)[0] == 0
        return file.with_suffix(".json")

    return call


def top1(file):
    return read_result(file)["metrics"]["top1"]


def rewrite(file, **changes):
    """Change a result file at its top level."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class Page(HTMLParser):
    """Collects what a page refers to, and the texts of its table cells and headings."""

    def __init__(self, text):
        super().__init__()
        self.references, self.cells, self.headings, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.cells += [text] * ("td" in self.open)
        self.headings += [text] * ("h2" in self.open)


def test_everything_is_written_and_the_page_needs_nothing_else(folder, run, add):
    files = [add(f"net-fold0-seed{seed}", seed=seed) for seed in (0, 1)]
    add("net-noval", fold=None, width=3)
    code, out, err = run("--picture", folder / "weights/cost.png")
    report_folder = folder / "weights/report"
    picture = (folder / "weights/cost.png").read_bytes()
    assert picture == (report_folder / "cost.png").read_bytes() and len(picture) < 120_000
    assert (code, err) == (0, "") and PICTURES | {"report.html", "results.md", "results.csv"} == {
        file.name for file in report_folder.iterdir()}
    text = (report_folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == [] and len(page.references) == 5 and "Published by others" in page.headings
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.references)
    assert "url(" not in text and "@import" not in text and "http" not in text and str(folder) not in text
    table = pd.read_csv(report_folder / "results.csv").set_index("n")
    expected = np.mean([top1(file) for file in files])
    assert sorted(table.index) == [1, 2] and table.loc[2, "top1"] == pytest.approx(expected)
    assert f"{expected:.2f}" in " ".join(page.cells) and table.loc[2, "folder"] == "weights"
    # The commands stand below the table on the page, in results.md and in the CSV, and not on the screen.
    typed = "python train/baseline.py --seed 0"
    assert typed in page.cells and typed not in out and table.loc[2, "command"] == typed
    written = (report_folder / "results.md").read_text("utf-8")
    assert written.startswith(out[:out.index("\n\n")]) and typed in written


def test_a_folder_stands_for_its_results_the_published_ones_and_those_of_its_seeds(folder, run, add, blank):
    add("study/net")
    for seed in (1, 2):
        add(f"study/seed{seed}/net", seed=seed)
    add("study/results/gone", seed=5, width=3)
    add("study/trial-3-epochs/trial", seed=7, width=4)
    code, out, err = run(folder / "weights/study")
    assert (code, err) == (0, "") and {"net", "gone"} == set(re.findall(r"^\| \S+ \((\S+)\)", out, re.M))
    assert re.search(r"\(net\).*± \S+ \| 3 \|", out) and (folder / "weights/study/report/report.html").exists()
    again = run(folder / "weights/study", folder / "weights/study/seed1", "--out", folder / "weights/study/report")
    assert again == (0, out, "")  # a folder within another is read once


def test_results_are_named_one_by_one_or_by_their_weights(folder, run, add, blank):
    a, b = add("a/net"), add("b/net", seed=3)
    code, out, _ = run(a, b.with_suffix(".pt"))
    assert code == 0 and {"a/net", "b/net"} == set(re.findall(r"\((./net)\)", out))
    assert (folder / "weights/report/report.html").exists()
    code, out, err = run(folder / "weights/none.pt")
    assert (code, out) == (2, "") and "none.json does not exist" in err and err.count("\n") == 1


def test_what_cannot_be_read_is_named_and_left_out(folder, run, add, blank):
    add("net-fold0")
    (folder / "weights/damaged.json").write_text("{")
    (folder / "weights/empty.csv").write_text("")
    code, out, err = run()
    assert code == 0 and "resnet18-2" in out and err.count("\n") == 1 and "left out: " in err and "damaged.json" in err
    code, _, err = run(folder / "weights/damaged.json")
    assert code == 2 and err.count("\n") == 1 and "damaged.json is no result" in err


def test_a_table_of_words_is_no_log(tmp_path):
    for name, row, logs in (("run", "1,2.3,,20,", 1), ("notes", "1,high,,low,", 0)):
        (tmp_path / f"{name}.csv").write_text(f"epoch,train_loss,val_loss,train_accuracy,val_accuracy\n{row}\n")
        assert len(report.read_logs([], [tmp_path / f"{name}.csv"])) == logs


def test_results_on_other_images_are_told_and_left_out(folder, run, add, blank):
    add("net-fold0")
    rewrite(add("other", seed=2, width=3), test_digest="another")
    _, out, err = run()
    assert "(other)" not in out and err.endswith("1 result on other test images left out\n")


def test_the_generated_images_have_a_report_without_the_figures_of_others(folder, run, add, blank):
    file = add("net-fold0")
    rewrite(file, test_digest="that of the generated ones",
            provenance=read_result(file)["provenance"] | {"source": "synthetic"})
    code, out, err = run()
    assert (code, err) == (0, "") and "Top-1 accuracy on the 20 generated test images" in out
    page = (folder / "weights/report/report.html").read_text("utf-8")
    assert "1 result on generated test images" in page and "Published by others" not in page


def test_a_part_of_the_test_images_is_called_so(folder, run, add, blank):
    rewrite(add("net-fold0"), test_digest="that of a part")
    code, out, _ = run()
    assert code == 0 and "on the 20 test images" in out and "1 result on a part of the test images" in out


def test_tta_is_a_row_of_its_own(folder, run, add, blank):
    add("net-fold0")
    add("net-fold0", "--tta")
    _, out, _ = run()
    [row] = [line for line in out.splitlines() if "fold 0, TTA" in line]
    assert len(re.findall(r"^\| resnet18-2", out, re.M)) == 2
    assert f" {top1(folder / 'weights/net-fold0.tta.json'):.2f} " in row
    for digest in (cifar10.OFFICIAL["test"], "that of a part"):
        rewrite(folder / "weights/net-fold0.tta.json", test_digest=digest)
        code, _, err = run(folder / "weights/net-fold0.tta.json", "--picture", folder / "cost.png")
        assert code == 0 and "not drawn" in err and not (folder / "cost.png").exists()


def test_the_curves_of_a_run_that_went_on_begin_where_the_one_before_ended(folder, run, add, blank, monkeypatch):
    file = add("net-fold0")
    result = json.loads(file.read_text())
    start = result["provenance"] | {"config": result["config"]}
    starts = [start | {"fingerprint": mark, "config": start["config"] | {"epochs": epochs}}
              for mark, epochs in (("b", 20), ("a", 5))]
    rewrite(file, provenance=result["provenance"] | {"before": starts})
    drawn = []
    monkeypatch.setattr(plots, "curves", lambda file, logs: (drawn.append(logs), file.write_bytes(b"x")))
    assert run()[0] == 0
    assert [list(log["epoch"]) for logs in drawn[0].values() for log in logs] == [[26, 27, 28]]


def test_logs_come_from_results_and_of_runs_without_from_their_csv(tmp_path):
    rows = pd.DataFrame(log())
    files = [tmp_path / f"{name}.csv" for name in ("net-fold0", "net-fold1", "going-on")]
    for file in files:
        rows.to_csv(file, index=False)
    own = {"file": tmp_path / "net-fold0.json", "run": "net-fold0", "provenance": {"before": []},
           "log": [row | {"train_loss": 9.0} for row in log()]}
    logs = report.read_logs([own, own | {"run": "none", "log": None}], files)
    assert {name: len(runs) for name, runs in logs.items()} == {"net (2 runs)": 2, "going-on": 1}
    assert [run["train_loss"][0] for run in logs["net (2 runs)"]] == [9.0, 2.0]


@pytest.mark.parametrize("name, shown", [("student", "student"), ("zebra", "best")])
def test_confusion_and_calibration_are_those_of_the_student_or_of_the_best(folder, run, add, blank, monkeypatch, name,
                                                                           shown):
    scores = sorted((top1(file), file) for file in (add("a", seed=9), add("b", seed=1)))
    worse, better = (file for _, file in scores)
    assert scores[0][0] < scores[1][0]
    for file, run_name in ((worse, name), (better, "best")):
        rewrite(file, run=run_name)
    titles = []
    for function in ("confusion", "reliability"):
        monkeypatch.setattr(plots, function, lambda file, *given: (titles.append(given[-1]), file.write_bytes(b"x")))
    assert run()[0] == 0
    assert [title.split(":")[0] for title in titles] == [shown, shown]


def test_of_several_students_the_one_with_the_smallest_seed_is_shown(folder, run, add, blank, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "confusion", lambda file, *given: (titles.append(given[-1]), file.write_bytes(b"x")))
    for seed in (2, 0, 1):
        file = add(f"seed{seed}/student", seed=seed)
        rewrite(file, metrics=read_result(file)["metrics"] | {"top1": 50.0 + seed})
    assert run(folder / "weights")[0] == 0
    assert titles == ["student: 50.00 % of 20 images"]


def rows_of(*rows):
    """A table as `results.group` gives it: (name, top1, pflop, taught, TTA)."""
    table = pd.DataFrame(rows, columns=["name", "top1", "pflop", "taught", "tta"])
    return table.assign(low=table["top1"] - 1, high=table["top1"] + 1, parameters=3e6, epochs=5, protocol="fold 1, TTA")


def test_of_many_points_those_are_labelled_that_no_cheaper_one_beats():
    few = rows_of(("a", 95.0, 1.0, False, False), ("b", 94.0, 2.0, False, False), ("tta", 99.0, 1.0, False, True))
    none = report.published()[:0]
    assert report.points_of(few, none, "pflop")["label"].tolist() == ["a, fold 1", "b, fold 1"], "all of a few"
    worse = [(f"w{k}", 80.0 - k, 2.0 + k, False, False) for k in range(12)]
    many = rows_of(("cheap", 90.0, 1.0, False, False), ("student", 93.0, 2.0, True, False),
                   ("best", 95.0, 9.0, True, False), ("alone", 92.0, 2.5, False, False), *worse)
    points = report.points_of(many, none, "pflop")
    assert set(points["label"]) - {""} == {"cheap, fold 1", "student, fold 1", "alone, fold 1", "best, fold 1"}
    assert points.set_index("label").loc["student, fold 1", "hollow"]


def test_the_figures_of_others_are_of_a_single_view_as_ours_are(folder, run, add, monkeypatch, blank):
    drawn = {}
    monkeypatch.setattr(plots, "landscape", lambda file, *given: (drawn.update({file.name: given}), file.touch()))
    add("net", fold=None)
    assert run()[0] == 0
    points, title, label, unit, budget = drawn["cost.png"]
    assert not points["theirs"].any() and "published by others" not in label  # of six views, or of unknown cost
    assert f"{top1(folder / 'weights/net.json'):.2f} % for" in title
    assert (unit, budget) == (1, None) and drawn["landscape.png"][3:] == (1e6, 5_000_000)
    assert drawn["landscape.png"][0]["theirs"].sum() > 12 and "published by others" in drawn["landscape.png"][2]
    best = add("wide", fold=None, width=3)  # above the budget, so the title is about the other
    rewrite(best, metrics=read_result(best)["metrics"] | {"top1": 99.0})
    monkeypatch.setattr(models, "BUDGET", 3000)  # of width 2 are 2,988
    assert run()[0] == 0
    assert drawn["landscape.png"][1] == f"{top1(folder / 'weights/net.json'):.2f} % for 0.003 million parameters"


def test_the_published_facts_are_whole():
    table = pd.read_csv(report.PUBLISHED)
    assert len(table) >= 15 and table[["model", "parameters", "test_accuracy_percent", "source"]].notna().all(axis=None)
    assert table["parameters"].between(1e6, 5e6).all() and table["test_accuracy_percent"].between(90, 99).all()
    best = report.published().drop_duplicates("model").set_index("model")
    assert best.loc["CCT-7/3x1", "test_accuracy_percent"] == 98.0
    assert best["views"].to_dict() == dict.fromkeys(best.index, 1) | dict.fromkeys(
        ("airbench95", "airbench94", "airbench94_muon"), 6)


def pipeline(add, **students):
    """Results of a baseline, three teachers, a control and a student, by their file names."""
    add("base/baseline-basic", width=3, epochs=6, fold=None)
    add("base/teacher-fold0", epochs=8, seed=4)
    add("base/teacher-all", epochs=8, seed=7, fold=None)
    add("base/teacher-wide", epochs=8, seed=2, width=4)
    add("base/control", seed=3, fold=None, epochs=5, kd=KD | {"alpha": 0.0})
    return add("base/student", **{"seed": 9, "fold": None, "epochs": 5, "kd": KD} | students)


def test_the_mean_of_the_teachers_counts_each_role_once(folder, run, add, blank):
    pipeline(add)
    add("base/seed1/teacher-all", epochs=8, seed=1, fold=None)  # a further seed of teacher-all, as of make quick
    out, base = run(folder / "weights/base")[1], folder / "weights/base"
    pooled = (top1(base / "teacher-all.json") + top1(base / "seed1/teacher-all.json")) / 2
    mean = np.mean([pooled, *(top1(base / f"teacher-{name}.json") for name in ("fold0", "wide"))])
    assert f"mean of the 3 teachers: {mean:.2f} %" in out


def test_what_teachers_give_comes_first_and_names_the_same_network_on_all_images(folder, run, add, blank):
    pipeline(add)
    base = folder / "weights/base"
    code, out, err = run(base)
    score = {file.stem: top1(file) for file in base.glob("*.json")}
    logits = [kept_logits(read_result(base / f"teacher-{name}.json"))[1] for name in ("all", "fold0", "wide")]
    ensemble = metrics.accuracy(sum(logits) / 3, cifar10.load(folder / "data", "test").labels)
    assert (code, err) == (0, "")
    text = out[out.index("role "):out.rindex("\n", 0, out.index("report.html"))].strip()
    rows = {tuple(line.split()[:3:2]): line.split()[-2] for line in text.splitlines() if "(" in line}
    assert [line.split()[0] for line in text.splitlines()[:9]] == ["role", "baseline", *["teacher"] * 3, "ensemble",
                                                                   "control", "student", "mean"]
    assert rows["teacher", "(teacher-all)"] == f"{score['teacher-all']:.2f}"
    assert f"{ensemble:.2f}" in next(line for line in text.splitlines() if line.startswith("ensemble"))
    mean = np.mean([score[f"teacher-{name}"] for name in ("all", "fold0", "wide")])
    assert f"mean of the 3 teachers: {mean:.2f} %" in text
    student = score["student"]
    told = {"baseline-basic": "another network; 6 epochs, not 5", "control": "the same network",
            "teacher-all": "the same network; 8 epochs, not 5"}
    assert text.splitlines()[-3:] == [f"student {student - score[name]:+.2f} points against {name} ({words})"
                                      for name, words in told.items()]
    page = (base / "report/report.html").read_text("utf-8")
    assert Page(page).headings[:2] == ["What teachers give", "Results"] and "mean of the 3 teachers" in page


def test_a_control_that_is_the_same_run_as_a_teacher_has_both_roles(folder, run, add, blank):
    pipeline(add)
    base = folder / "weights/base"
    for suffix in (".json", ".logits.npz"):
        shutil.copyfile(base / f"teacher-all{suffix}", base / f"control{suffix}")
    rewrite(base / "control.json", run="control")
    out = run(base)[1]
    assert "mean of the 3 teachers" in out and "points against control" in out and "points against teacher-all" in out


def test_an_ensemble_of_the_teachers_that_was_scored_too_is_no_teacher(folder, run, add, blank, typed):
    pipeline(add)
    base = folder / "weights/base"
    before = run(base)[1]
    for name in ("teacher-ensemble", "mine"):
        assert typed(evaluate.main, *base.glob("teacher-*.pt"), "--data", folder / "data", "--device", "cpu", "--json",
                     base / f"{name}.json")[0] == 0
        assert run(base)[1] == before.replace("7 results", "8 results")
        (base / f"{name}.json").unlink()


def test_students_of_several_seeds_share_the_teachers_of_the_folder(folder, run, add, blank):
    files = [pipeline(add), add("base/seed1/student", seed=1, fold=None, epochs=5, kd=KD)]
    out = run(folder / "weights/base")[1]
    mean, control = np.mean([top1(file) for file in files]), top1(folder / "weights/base/control.json")
    assert f"student {mean - control:+.2f} points against control" in out and "| mean of 3 |" in out
    add("base/seed1/control", seed=5, fold=None, epochs=5, kd=KD | {"alpha": 0.0})
    points = top1(files[1]) - top1(folder / "weights/base/seed1/control.json")
    assert f"student {points:+.2f} points against control" in run(folder / "weights/base/seed1")[1]


def test_two_folders_of_one_name_have_a_table_each(folder, run, add, blank):
    for seed, place in enumerate(("one/quick", "two/quick")):
        add(f"{place}/student", seed=seed, fold=None, epochs=5, kd=KD)
        add(f"{place}/control", seed=seed + 5, fold=None, epochs=4)
    out = run(folder / "weights/one/quick", folder / "weights/two/quick")[1]
    page = (folder / "weights/one/quick/report/report.html").read_text("utf-8")
    titles = [f"What teachers give: {place}/quick" for place in ("one", "two")]
    assert out.count(" points against ") == 2 and Page(page).headings[:2] == titles


def test_roles_may_be_missing(folder, run, add, blank):
    add("base/student", fold=None)
    assert "points" not in run(folder / "weights/base")[1]
    old = [folder / "weights/base/report" / name for name in ("cost.png", "mine.png")]
    for file in old:
        file.touch()
    rewrite(read := folder / "weights/base/student.json", tta=True)  # alone it has no picture of the cost
    run(read, "--out", folder / "weights/base/report")
    assert [file.exists() for file in old] == [False, True]
    rewrite(read, tta=False)
    rewrite(add("base/control", fold=None), fingerprint="of another network")
    assert "student +0.00 points against control (the same network)\n" in run(folder / "weights/base")[1]


def test_teachers_whose_logits_are_not_kept_have_no_mean(folder, run, add, blank):
    pipeline(add)
    (folder / "weights/base/teacher-fold0.logits.npz").unlink()
    code, out, err = run(folder / "weights/base")
    assert code == 0 and "ensemble" not in out and "no row for the mean of teacher-" in err


def test_the_ladder_has_a_line_for_each_documented_row_and_ours_beside_it(folder, run, add, blank):
    rows = pd.read_csv(report.DOCUMENTED, index_col="run").iloc[:10]  # two more are neither documented nor trained
    names = ("shakeshake26-40-se", "seresnet164", "resnet20x4")
    files = [add(f"ladder/{row}", seed=k, fold=None) for k, row in enumerate(names)]
    rewrite(files[1], config=read_result(files[1])["config"] | {"augment": ["crop", "cutout:12"], "mix": "ricap"})
    rewrite(files[2], config=read_result(files[2])["config"] | {"mix": "mixup"})  # they are rows, not seeds of one
    readme = folder / "README.md"
    readme.write_text("a\n<!-- ladder -->\nold\n<!-- /ladder -->\nb\n")
    code, _, err = run(folder / "weights/ladder", "--readme", readme)
    page = (folder / "weights/ladder/report/report.html").read_text()
    assert (code, err) == (0, "") and "The documented ladder" in page
    text = readme.read_text()
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:-2] if line]
    lines = [dict(zip(head, line, strict=True)) for line in lines]
    assert text.startswith("a\n<!-- ladder -->\n| network |") and text.endswith("\n<!-- /ladder -->\nb\n")
    assert text.splitlines()[3] == "| --- | ---: | ---: | ---: | ---: | --- | ---: |"
    assert [line["network"] for line in lines] == list(rows["network"]) and len(lines) == 10
    told = [float(line["documented %"] or "nan") for line in lines]
    assert told == pytest.approx([*rows["documented %"]], nan_ok=True)
    tested = {name: line["ours %"] for name, line in zip(rows.index, lines, strict=True)}
    trained = {name: f"{top1(file):.2f}" for name, file in zip(names, files, strict=True)}
    mean = sum(kept_logits(read_result(file))[1] for file in files[:2])
    trained["mean"] = f"{metrics.accuracy(mean, cifar10.load(folder / 'data', 'test').labels):.2f}"
    assert tested == dict.fromkeys(rows.index, "not trained") | trained
    assert [line["augmentation"] for line in lines[5:]] == ["none", "crop, cutout:12, ricap", "various", "", "mixup"]
    assert [line["epochs"] for line in lines[5:8]] == ["2"] * 3 and all(line["time"] for line in lines[5:8])
    assert lines[7]["parameters"] == "7,085,388" and lines[8]["time"] == ""


def test_a_ladder_keeps_its_rows_where_another_folder_has_the_same_weights(folder, run, add, blank):
    file = add("base/teacher-all", fold=None)
    (folder / "weights/base/ladder").mkdir()
    for kind in (".pt", ".json", ".logits.npz"):
        twin = folder / "weights/base/ladder" / f"seresnet164{kind}"
        twin.write_bytes(file.with_name(f"teacher-all{kind}").read_bytes())
    rewrite(twin.with_name("seresnet164.json"), run="seresnet164")
    out = run(folder / "weights/base", folder / "weights/base/ladder")[1]
    [line] = [line for line in out.splitlines() if line.strip().startswith("SEResNet-164  ")]
    assert f"{top1(file):.2f}" in line


def test_a_readme_of_which_a_table_is_missing_is_told(folder, run, add, blank):
    add("net-fold0")
    readme = folder / "README.md"
    readme.write_text("<!-- ladder -->\nold\n<!-- /ladder -->\n<!-- results -->\nold\n<!-- /results -->\n")
    code, _, err = run("--readme", readme)
    assert code == 0 and "its ladder is as it was" in err and err.count("\n") == 1
    assert readme.read_text().startswith("<!-- ladder -->\nold\n<!-- /ladder -->\n<!-- results -->\n| model |")


def test_the_documented_rows_have_the_parameters_of_our_networks():
    rows = pd.read_csv(report.DOCUMENTED, index_col="run", thousands=",")["parameters"]
    for name in ("shakeshake26-32", "shakeshake26-40", "shakeshake26-40-se", "seresnet164", "resnet20x4", "pyramidnet",
                 "flatse"):
        assert rows[name] == models.parameter_count(models.build(name)), name
    plain = models.parameter_count(models.build("resnet18"))
    assert all(rows[f"resnet18-{stage}"] == plain for stage in ("basic", "optimized", "augmented"))
    assert rows["mean"] == rows["shakeshake26-40-se"] + rows["seresnet164"]
    assert rows["seresnet164-distilled"] == rows["seresnet164"]


def test_another_place_leaves_the_folder_of_the_results_alone(folder, run, add, blank):
    add("net-fold0")
    assert run("--out", folder / "elsewhere")[0] == 0 and not (folder / "weights/report").exists()
    assert (folder / "elsewhere/report.html").exists()


def test_files_are_utf8_and_the_screen_takes_what_it_knows(folder, run, add, blank, monkeypatch):
    for seed in (0, 1):
        add(f"net-fold0-seed{seed}", seed=seed)
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", screen)
    assert run()[0] == 0 and b" \\xb1 " in screen.buffer.getvalue()
    assert " ± " in (folder / "weights/report/results.md").read_text("utf-8")


def test_nothing_to_report_is_one_line(folder, run):
    code, out, err = run()
    assert (code, out) == (2, "") and "there is no result yet" in err and err.count("\n") == 1


@pytest.mark.parametrize("flag, target, words", [
    ("--out", "no/where", "a folder that exists"), ("--picture", "no/cost.png", "no does not exist"),
])
def test_a_target_that_cannot_be_is_refused_before_any_work(folder, run, monkeypatch, flag, target, words):
    monkeypatch.setattr(report, "gather", lambda *_: pytest.fail("worked before it refused"))
    code, out, err = run(flag, folder / target)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_the_readme_keeps_all_but_its_table(folder, run, add, blank):
    add("net-fold0")
    readme = folder / "README.md"
    readme.write_text("# Title ±\n\n<!-- results -->\nbefore\n<!-- /results -->\n\nend\n", "utf-8")
    assert run("--readme", readme)[0] == 0
    text = readme.read_text("utf-8")
    assert text.startswith("# Title ±\n\n<!-- results -->\n| model |") and "before" not in text
    assert text.endswith("\n<!-- /results -->\n\nend\n") and "train/baseline.py" not in text  # commands are too wide
    run("--readme", readme)
    assert readme.read_text("utf-8") == text
    readme.write_bytes(text.replace("\n", "\r\n").encode())
    run("--readme", readme)
    assert readme.read_bytes() == text.replace("\n", "\r\n").encode(), "its line ends stay"


def test_a_folder_of_other_results_stays_as_it_is(folder, run, add, blank):
    add("net-fold0")
    for name in ("results.csv", "results.md", "report.html"):
        (folder / "mine").mkdir(exist_ok=True)
        (folder / "mine" / name).write_text("of another program")
        code, out, err = run("--out", folder / "mine")
        assert (code, out) == (2, "") and f"{name} exists and holds something else" in err
        assert [file.read_text() for file in (folder / "mine").iterdir()] == ["of another program"]
        (folder / "mine" / name).unlink()
    for _ in range(2):
        assert run("--out", folder / "mine")[0] == 0


def test_a_readme_of_another_encoding_is_refused(folder, run):
    (folder / "README.md").write_text("f\u00fcr <!-- results -->\n<!-- /results -->", "latin1")
    code, out, err = run("--readme", folder / "README.md")
    assert (code, out) == (2, "") and "it should be text in UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize("text", ["<!-- results -->", "<!-- /results --><!-- results -->"])
def test_a_readme_without_its_markers_is_refused_before_any_work_and_kept(folder, run, text):
    (folder / "README.md").write_text(text)
    code, out, err = run("--readme", folder / "README.md")
    assert (code, out) == (2, "") and "it should hold <!-- results -->" in err and err.count("\n") == 1
    assert (folder / "README.md").read_text() == text
