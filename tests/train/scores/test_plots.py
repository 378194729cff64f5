"""`train.scores.plots`: what would make a picture lie or unreadable."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch.nn.functional as F

from train.data import cifar10
from train.scores import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are before they are written; they are not closed."""
    sheets = []
    monkeypatch.setattr(plots.plt, "close", sheets.append)
    yield sheets
    monkeypatch.undo()
    for sheet in sheets:
        plt.close(sheet)


def log(losses, val=True, **columns):
    epochs = np.arange(1, len(losses) + 1)
    return pd.DataFrame({"epoch": epochs, "train_loss": losses, "val_loss": losses if val else None,
                         "train_accuracy": 20.0 + epochs, "val_accuracy": 50.0 + epochs if val else None, **columns})


def test_many_runs_never_look_alike_and_may_lack_validation(tmp_path, drawn):
    plots.curves(tmp_path / "x.png", {f"run {k}": [log([2.0, 1.0, 0.5][:k + 1], val=k != 0)] for k in range(20)})
    lines = drawn[0].axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 20
    assert len(drawn[0].legends[0].texts) == 20 and "thick" in drawn[0].get_supxlabel()
    plots.curves(tmp_path / "y.png", {"noval": [log([2.0, 1.0, 0.5], val=False)]})
    assert drawn[1].get_supxlabel() == "training images, as augmented"


def test_a_distillation_loss_has_axes_of_its_own(tmp_path, drawn):
    student = log([9.0, 8.0, 7.0], val=False, train_soft=[10.0, 9.0, 8.0], train_hard=[1.0, 0.9, 0.8])
    plots.curves(tmp_path / "x.png", {"teacher": [log([2.0, 1.0, 0.5])], "student": [student]})
    hard, soft, accuracy = drawn[0].axes
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["cross entropy", "distillation loss",
                                                                  "accuracy in percent"]
    assert hard.get_ylim()[1] < 3 and soft.get_ylim()[0] > 6 and len(accuracy.lines) == 4
    assert [(line.get_linewidth(), line.get_ydata()[0]) for line in accuracy.lines[:2]] == [(0.8, 21.0), (1.9, 51.0)]
    plots.curves(tmp_path / "y.png", {"teacher": [log([2.0, 1.0])]})
    assert len(drawn[1].axes) == 2


def test_a_spike_does_not_flatten_the_loss(tmp_path, drawn):
    losses = 2.3 * np.exp(-np.arange(30) / 8)
    plots.curves(tmp_path / "x.png", {"steady": [log(losses)]})
    losses[12] = 1500
    plots.curves(tmp_path / "y.png", {"spiked": [log(losses)]})
    steady, spiked = (sheet.axes[0] for sheet in drawn)
    assert 2.3 < steady.get_ylim()[1] < 3 and "cut" not in steady.get_title("left")
    assert 2.3 < spiked.get_ylim()[1] < 3 and "it reaches 1,500" in spiked.get_title("left")


def test_rows_of_a_confusion_are_the_true_classes(tmp_path, drawn):
    plots.confusion(tmp_path / "x.png", [[9, 2], [0, 7]], "ab", "title")
    axes = drawn[0].axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "9", (1, 0): "2", (0, 1): "·", (1, 1): "7"} and axes.get_ylabel() == "true class"
    assert axes.images[0].get_array().tolist() == [[0, 2], [0, 0]]


def test_confidence_is_to_the_right_and_accuracy_upwards(tmp_path, drawn):
    plots.reliability(tmp_path / "x.png", [(0, 0.0, 0.0), (30, 0.6, 0.5), (70, 0.9, 0.8)], "title")
    dots = drawn[0].axes[0].collections[-1]
    assert dots.get_offsets().tolist() == [[0.6, 0.5], [0.9, 0.8]] and dots.get_sizes().tolist() == [134, 286]


def points(*rows):
    """Points (label, cost, top1, low, high) of a picture; a label with a star is hollow."""
    table = pd.DataFrame(rows, columns=["label", "cost", "top1", "low", "high"])
    return table.assign(hollow=table["label"].str.endswith("*"))


def test_a_landscape_labels_its_points_and_holds_all_intervals(tmp_path, drawn):
    rows = [("ours", 3e6, 96.0, 95.6, 96.4), ("student*", 3e6, 96.2, 95.8, 96.6), ("", 4e6, 97.0, 96.6, 97.4),
            ("theirs", 2e6, 95.0, np.nan, np.nan)]
    plots.landscape(tmp_path / "x.png", points(*rows), "title", "parameters, millions", 1e6, 5_000_000)
    axes = drawn[0].axes[0]
    assert {"ours", "student*", "theirs", " the budget"} == {text.get_text() for text in axes.texts}
    low, high = axes.get_ylim()[1], axes.get_ylim()[0]
    assert low < 100 - 97.4 and high > 100 - 95.0 and axes.get_xlim()[1] > 5_000_000
    assert list(axes.lines[0].get_ydata()) == pytest.approx([100 - 96.4, 100 - 95.6])
    dots = axes.collections
    assert [tuple(dot.get_offsets()[0]) for dot in dots] == [(cost, 100 - top1) for _, cost, top1, *_ in rows]
    assert [bool((dot.get_facecolor()[0][:3] == 1).all()) for dot in dots] == [False, True, False, False]
    plots.landscape(tmp_path / "y.png", points(*rows[:1]), "title", "parameters, millions", 1e6, 500_000_000)
    assert drawn[1].axes[0].get_xlim()[1] < 1e7, "a budget far away leaves room for the points"


def test_labels_lie_on_no_point_and_on_no_other_label(tmp_path, drawn):
    """Eleven networks as those of the demo: of four costs, one right over the other."""
    rows = [(f"network {k}", 10.0 ** (k % 4), 60 + k // 3 / 4, 59, 62) for k in range(11)]
    plots.landscape(tmp_path / "x.png", points(*rows), "title", "training, PFLOP")
    [axes] = drawn[0].axes
    boxes = [plots.Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 11 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    spots = axes.transData.transform([(cost, 100 - top1) for _, cost, top1, *_ in rows])
    assert not any(box.contains(*spot) for box in boxes for spot in spots)


def test_a_landscape_fits_a_readme(tmp_path):
    rows = [(f"network {k}", 10.0**(k / 8), 90 + k / 4, 89 + k / 4, 91 + k / 4) for k in range(24)]
    plots.landscape(tmp_path / "x.png", points(*rows), "title", "training, PFLOP")
    assert (tmp_path / "x.png").stat().st_size < 120_000


def test_no_mistakes_are_a_picture_too(toy_set, tmp_path):
    test = cifar10.load(toy_set, "test")
    plots.mistakes(tmp_path / "none.png", test, F.one_hot(test.labels, 10).float())
    assert (tmp_path / "none.png").exists()


def test_a_picture_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_, handle, **__):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots.plt.Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device.*matrix.png"):
        plots.confusion(tmp_path / "matrix.png", [[1] * 10] * 10, "abcdefghij", "title")
    assert not list(tmp_path.iterdir())
