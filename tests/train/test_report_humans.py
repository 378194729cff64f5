"""`train/report.py --humans`: a column pair of what people say, which stays when the CSV is gone."""

import json

import numpy as np
import pandas as pd
import pytest

from train.engine import data, people
from untrained import add, blank, folder, logits_of, no_pass, run  # noqa: F401


@pytest.fixture
def humans(folder):
    """The CSV of what people say of the toy test images: five labels undecided, five others changed, four twins."""
    test = data.load(folder / "data", "test")
    labels = test.labels.numpy()
    table = pd.DataFrame(np.eye(10, dtype=int)[labels], columns=people.VOTES)
    table = table.assign(id=test.ids, official_index=range(20), label=labels, corrected=labels.copy(), duplicate=None)
    table.loc[:4, "corrected"], table.loc[5:9, "corrected"], table.loc[16:, "duplicate"] = -1, 7, 1
    table[people.COLUMNS].to_csv(folder / "humans.csv", index=False)
    return folder / "humans.csv"


def cells(out, name):
    """{heading: cell} of the printed row of a name."""
    lines = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if line.startswith("|")]
    [row] = [line for line in lines if f"({name})" in line[1]]
    return dict(zip(lines[0], row))


def test_networks_and_ensembles_are_scored_by_what_people_say(folder, run, blank, humans):
    files = [add(folder, "a-fold0"), add(folder, "b-fold0", seed=4, lr=0.2)]
    assert "corrected" not in run()[1]
    code, out, err = run(folder / "weights", "--humans", humans, "--ensemble", "both", *files)
    test = data.load(folder / "data", "test")
    logits = [logits_of(file, folder) for file in files]
    for name, answers in (("a", logits[0]), ("b", logits[1]), ("both", sum(logits))):
        right = (answers.argmax(1) == test.labels).numpy()
        corrected = [*(answers.argmax(1)[5:10].numpy() == 7), *right[10:]]
        row = cells(out, name)
        assert row["corrected %"] == f"{100 * np.mean(corrected):.2f}"
        assert row["without twins %"] == f"{100 * np.mean(right[:16]):.2f}"
    kept = json.loads((folder / "weights/results/both.json").read_text())["humans"]
    assert (code, err) == (0, "") and (kept["undecided"], kept["twins"]) == (5, 4) and "Corrected is top-1 on" in out


def test_what_people_say_stays_without_the_csv_and_is_left_open_where_nobody_asked(folder, run, blank, humans):
    file = add(folder, "a-fold0")
    out = run("--humans", humans)[1]
    humans.unlink()
    (folder / "weights/report/answers").rename(folder / "gone")
    assert run()[1] == out and "corrected %" in out
    file.unlink()
    assert run()[1] == out
    add(folder, "b-noval", seed=1, fold=None)
    out = run()[1]
    assert cells(out, "b")["corrected %"] == "" and cells(out, "a")["corrected %"] != ""
    assert {"top1_corrected", "top1_apart"} <= set(pd.read_csv(folder / "weights/report/results.csv"))


def test_a_row_of_seeds_has_what_people_say_of_all_of_them(folder, run, blank, humans):
    add(folder, "a-fold0-s0")
    run("--humans", humans)
    add(folder, "a-fold0-s4", seed=4)
    assert "corrected %" not in run()[1]
    out = run("--humans", humans)[1]
    each = [json.loads((folder / f"weights/results/a-fold0-s{seed}.json").read_text())["humans"] for seed in (0, 4)]
    assert cells(out, "a")["corrected %"] == f"{np.mean([scores['top1_corrected'] for scores in each]):.2f}"


def test_a_csv_of_others_is_refused_before_any_pass(folder, run, no_pass, humans):
    no_pass()
    add(folder, "a-fold0")
    humans.write_text(humans.read_text().replace("\n", "\n0", 1))
    code, out, err = run("--humans", humans)
    assert (code, out) == (2, "") and "not of a test image" in err and err.count("\n") == 1
