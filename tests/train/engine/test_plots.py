"""`train.engine.plots`, and what the report draws: what would make a picture lie or unreadable."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from train import report
from train.engine import plots
from untrained import blank  # noqa: F401


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are before they are written; they are not closed."""
    sheets = []
    monkeypatch.setattr(plots.plt, "close", sheets.append)
    yield sheets
    monkeypatch.undo()
    for sheet in sheets:
        plt.close(sheet)


def log(losses, val=True):
    epochs = np.arange(1, len(losses) + 1)
    return pd.DataFrame({"epoch": epochs, "train_loss": losses, "val_loss": losses if val else None,
                         "train_accuracy": 20.0 + epochs, "val_accuracy": 20.0 + epochs if val else None})


def test_curves_of_one_epoch_and_without_validation_are_drawn(tmp_path):
    plots.curves(tmp_path / "x.png", {"one": [log([2.0], val=False)], "two": [log([2.0])] * 2})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_many_runs_never_look_alike(tmp_path, drawn):
    plots.curves(tmp_path / "x.png", {f"run {k}": [log([2.0, 1.0, 0.5])] for k in range(20)})
    lines = drawn[0].axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 20
    assert len(drawn[0].legends[0].texts) == 20


def test_a_spike_does_not_flatten_the_loss(tmp_path, drawn):
    losses = 2.3 * np.exp(-np.arange(30) / 8)
    plots.curves(tmp_path / "x.png", {"steady": [log(losses)]})
    losses[12] = 1500
    plots.curves(tmp_path / "y.png", {"spiked": [log(losses)]})
    steady, spiked = (sheet.axes[0] for sheet in drawn)
    assert 2.3 < steady.get_ylim()[1] < 3 and "cut" not in steady.get_title("left")
    assert 2.3 < spiked.get_ylim()[1] < 3 and "it reaches 1,500" in spiked.get_title("left")


def test_a_landscape_names_every_point_and_holds_all_intervals(tmp_path, drawn):
    ours = [("ours", 3e6, 96.0, 95.6, 96.4), ("ours", 3e6, 96.2, 95.8, 96.6), ("other", 4e6, 97.0, 96.6, 97.4)]
    known = [("theirs", 2e6, 95.0), ("best", 4e6, 98.0)]
    plots.landscape(tmp_path / "x.png", ours, known, "title", "parameters, millions", 1e6, 5_000_000)
    [sheet] = drawn
    axes = sheet.axes[0]
    names = [text.get_text() for text in sheet.legends[0].texts]
    assert names == ["ours", "other", "1  theirs", "2  best"] and {"1", "2"} <= {t.get_text() for t in axes.texts}
    low, high = axes.get_ylim()[1], axes.get_ylim()[0]
    assert low < 100 - 98.0 and high > 100 - 95.0 and axes.get_xlim()[1] > 5_000_000
    plots.landscape(tmp_path / "y.png", ours[2:], [], "title", "training, PFLOP")
    axes = drawn[1].axes[0]
    assert axes.get_ylim()[1] < 100 - 97.4 and axes.get_ylim()[0] > 100 - 96.6


def test_a_landscape_fits_a_readme(tmp_path):
    ours = [(f"network {k}", 10.0**(k / 8), 90 + k / 4, 89 + k / 4, 91 + k / 4) for k in range(24)]
    plots.landscape(tmp_path / "x.png", ours, [("theirs", 1.4, 95.0)] * 2, "title", "training, PFLOP")
    assert (tmp_path / "x.png").stat().st_size < 100_000


# ---------------------------------------------------------------- what the report draws


def test_the_published_facts_are_whole():
    table = pd.read_csv(report.PUBLISHED)
    assert len(table) >= 15 and table[["model", "parameters", "test_accuracy_percent", "source"]].notna().all(axis=None)
    assert table["parameters"].between(1e6, 5e6).all() and table["test_accuracy_percent"].between(90, 99).all()
    best = report.published().drop_duplicates("model").set_index("model")
    assert best.index.is_unique and best.loc["CCT-7/3x1", "test_accuracy_percent"] == 98.0
    assert best["training_pflop"].dropna().to_dict() == {"airbench95": 1.4, "airbench94": 0.36}


@pytest.mark.parametrize("official", [True, False])
def test_published_figures_stand_beside_those_on_the_official_images_only(tmp_path, blank, monkeypatch, official):
    def row(name, top1, over_budget=False, pflop=1.0):
        return {"name": name, "protocol": "noval, TTA" if name == "a" else "noval", "parameters": 3, "top1": top1,
                "low": top1 - 1, "high": top1 + 1, "over_budget": over_budget, "contaminated": False, "networks": 1,
                "pflop": pflop, "weights": name, "tta": name == "a"}

    rows = [row("b", 98.0, over_budget=True, pflop=None), row("a", 97.0), row("a", 96.0), row("c", 95.0)]
    runs = [row | {"run": row["name"], "images": 10_000, "confusion": [], "reliability": [], "ece": 0} for row in rows]
    drawn, titles = {}, []
    monkeypatch.setattr(plots, "landscape", lambda file, *arguments: drawn.update({file.name: arguments}))
    monkeypatch.setattr(plots, "confusion", lambda file, counts, classes, title: titles.append(title))
    report.draw(tmp_path, pd.DataFrame(rows), runs, {}, official)
    ours, known, _, _, unit, budget = drawn["landscape.png"]
    assert [(name, top1) for name, _, top1, *_ in ours] == [("b", 98), ("a, TTA", 97), ("a, TTA", 96), ("c", 95)]
    assert (unit, budget) == (1e6, 5_000_000)
    assert len(known) == (report.published()["model"].nunique() if official else 0)
    ours, known, *_ = drawn["cost.png"]
    assert len(ours) == 3 and len(known) == (2 if official else 0)
    assert titles == ["a, TTA: 97.00 % of 10,000 images"], "the best within the budget"


def test_logs_come_from_weights_and_of_runs_without_from_their_csv(tmp_path):
    rows = pd.DataFrame({"epoch": [1], "train_loss": [2.0], "val_loss": [None], "train_accuracy": [20.0],
                         "val_accuracy": [None]})
    weights = {name: tmp_path / f"{name}.csv" for name in ("net-fold0", "net-fold1", "going-on")}
    for file in weights.values():
        rows.to_csv(file, index=False)
    own = {weights["net-fold0"].with_suffix(".pt"): rows.assign(train_loss=1.0)}
    logs = report.read_logs(own, [*weights.values(), tmp_path / "none.csv"])
    assert {name: len(runs) for name, runs in logs.items()} == {"net (2 runs)": 2, "going-on": 1}
    assert [run["train_loss"].item() for run in logs["net (2 runs)"]] == [1.0, 2.0]


def test_a_picture_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_, handle, **__):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots.plt.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left on device.*matrix.png"):
        plots.confusion(tmp_path / "matrix.png", [[1] * 10] * 10, "abcdefghij", "title")
    assert not list(tmp_path.iterdir())
