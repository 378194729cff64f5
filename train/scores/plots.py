"""The pictures of the report, of `evaluate --mistakes` and of preview, in one style. No function needs a screen.

Each draws one figure and writes it as a PNG, completely or not at all.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from train.data.cifar10 import Dataset
from train.engine.checkpoint import write

INK, GREY, PALE = "#22303c", "#7d8b99", "#e6eaee"
COLOURS = ("#1f6fb2", "#d1662a", "#2e8b6a", "#8a55a8", "#b5892b", "#c2405f", "#4aa3b8", "#6b7a3a")
ERRORS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)  # ticks, in percent
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe0ef", COLOURS[0]])
STYLE = {
    "figure.dpi": 150, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": PALE, "grid.linewidth": 0.8,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}
DASHES = ("-", (0, (5, 1.6)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))


@contextmanager
def figure(file: Path, size: tuple[float, float], *shape: int) -> Iterator[tuple]:
    """(figure, axes) of `size` inches in our style, written to `file` as a PNG at the end."""
    with plt.rc_context(STYLE):
        sheet, axes = plt.subplots(*shape, figsize=size)
        try:
            yield sheet, axes
            write(file, lambda handle: sheet.savefig(handle, format="png", metadata={"Software": None}))
        finally:
            plt.close(sheet)


def curves(file: Path, logs: dict[str, list[pd.DataFrame]]) -> None:
    """Loss and accuracy per epoch. logs: {name: [log of a run, ...]}; runs of one name share a line style.

    A distillation loss, whose parts are in the log, is not a cross entropy: it has its own axes.
    """
    kinds = ["distillation loss" if "train_soft" in runs[0] else "cross entropy" for runs in logs.values()]
    titles = ["cross entropy", *["distillation loss"] * ("distillation loss" in kinds), "accuracy in percent"]
    looks = [{"linestyle": dash, "color": colour}  # the first 32 all differ
             for _, (dash, colour) in zip(logs, cycle(product(DASHES, COLOURS)), strict=False)]
    thin, note = 1.6, "training images, as augmented"
    if any(run["val_loss"].notna().any() for runs in logs.values() for run in runs):
        thin, note = 0.8, f"thick: validation fold      thin: {note}"
    with figure(file, (5.5 * len(titles), 4.2), 1, len(titles)) as (sheet, panels):
        axes_of = dict(zip(titles, panels, strict=True))
        for kind, look, runs in zip(kinds, looks, logs.values(), strict=True):
            for run in runs:
                for title, column, width in ((kind, "train_loss", thin), ("cross entropy", "val_loss", 1.9),
                                             (titles[-1], "train_accuracy", thin), (titles[-1], "val_accuracy", 1.9)):
                    axes_of[title].plot(run["epoch"], run[column].astype(float), lw=width,
                                        marker="." if len(run) < 3 else None, **look)
        for title, axes in axes_of.items():
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            # Values above three times the 90 % quantile are cut off; the title then gives the maximum.
            drawn = pd.Series(np.concatenate([line.get_ydata() for line in axes.lines])).dropna()
            usual = drawn[drawn <= 3 * drawn.quantile(0.9, "lower")]
            if 0 < len(usual) < len(drawn):
                margin = 0.05 * np.ptp(usual)
                axes.set_ylim(usual.min() - margin, usual.max() + margin)
                axes.set_title(f"{title} (cut: it reaches {drawn.max():,.4g})")
        sheet.legend([Line2D([], [], **look) for look in looks], logs, loc="outside right upper", handlelength=3.2,
                     fontsize=8, frameon=False, labelspacing=0.35)
        sheet.supxlabel(note, color=GREY, fontsize=8.5)


def confusion(file: Path, counts: Sequence, classes: Sequence[str], title: str) -> None:
    """Counts (10, 10), row the true class; the colours are scaled to the mistakes alone."""
    counts = np.asarray(counts)
    right = np.eye(len(counts), dtype=bool)
    worst = max(1, counts[~right].max())
    with figure(file, (6.4, 5.9)) as (_, axes):
        axes.imshow(np.where(right, 0, counts), cmap=BLUES, vmax=worst)
        for (row, column), count in np.ndenumerate(counts):
            strong = count > 0.7 * worst and row != column
            axes.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", fontsize=8.5,
                      color="white" if strong else INK if count else GREY, weight="bold" if row == column else "normal")
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)


def reliability(file: Path, bins: Sequence, title: str) -> None:
    """Accuracy of the predictions of each confidence. bins: (images, mean confidence, accuracy), 0..1."""
    images, confidence, right = np.array([row for row in bins if row[0]]).T
    with figure(file, (5.6, 5.6)) as (_, axes):
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.9, linestyle=(0, (4, 3)))
        axes.annotate("perfect calibration", (0.72, 0.72), xytext=(-4, 4), textcoords="offset points", rotation=45,
                      rotation_mode="anchor", color=GREY, fontsize=8.5)
        axes.vlines(confidence, confidence, right, color=COLOURS[1], lw=1.2, alpha=0.7)
        axes.plot(confidence, right, color=COLOURS[0], alpha=0.35)
        axes.scatter(confidence, right, s=20 + 380 * images / images.sum(), color=COLOURS[0], zorder=3, lw=0,
                     clip_on=False)
        axes.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")


def landscape(file: Path, points: pd.DataFrame, title: str, xlabel: str, unit: float = 1,
              budget: float | None = None) -> None:
    """Accuracy, on a scale of the error, against its cost: parameters, or the work of training.

    points: columns label, cost, top1, low, high (NaN: no interval, a grey point of others) and hollow, a bool; points
    without a label are small. unit: of the cost axis; budget: the maximum cost, drawn as a line.
    """
    with figure(file, (8.4, 5)) as (sheet, axes):
        axes.set(xscale="log", yscale="log", title=title, xlabel=xlabel)
        axes.set_ylabel("test accuracy (log scale of the error)")
        for row in points.itertuples():
            colour = GREY if np.isnan(row.low) else COLOURS[0]
            axes.plot([row.cost] * 2, [100 - row.high, 100 - row.low], color=colour, lw=1.4 if row.label else 0.3)
            axes.scatter(row.cost, 100 - row.top1, s=36 if row.label else 9, edgecolor=colour, lw=1.2, zorder=3,
                         facecolor="white" if row.hollow else colour)
        if budget and budget < 100 * points["cost"].max():  # else it is far away
            axes.axvline(budget, color=COLOURS[1], lw=1, linestyle=(0, (4, 3)))
            axes.annotate(" the budget", (budget, 0.01), None, ("data", "axes fraction"), color=COLOURS[1], fontsize=8)
        # The y axis is inverted; costs that differ little have more ticks.
        costs = [line.get_xdata()[0] for line in axes.lines]
        errors = 100 - points[["top1", "low", "high"]].stack()
        lowest, highest = max(0.05, errors.min() / 1.15), min(99.9, errors.max() * 1.15)
        ticks = [error for error in ERRORS if lowest <= error <= highest]
        axes.set(xlim=(min(costs) / 1.5, max(costs) * 1.5), ylim=(highest, lowest))
        axes.set_yticks(ticks, [f"{100 - error:g} %" for error in ticks])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 100 * min(costs) else (1,)))
        axes.minorticks_off()
        sheet.draw_without_rendering()  # lays out the axes, on which the positions of the labels depend
        put_labels(axes, [(row.label, row.cost, 100 - row.top1) for row in points.itertuples()])


def put_labels(axes: plt.Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the labels of points (label, x, y), each at the nearest free place, over no point and no other label."""
    scale, frame = axes.figure.dpi / 72, axes.get_window_extent()
    taken = [Bbox.from_bounds(*(spot - 5 * scale), 10 * scale, 10 * scale)
             for spot in axes.transData.transform([point for _, *point in points])]
    # Distances to the right or left, and up, in points of 1/72 inch.
    shifts = sorted(product((9, -9, 24, -24, 48, -48, 90, -90), range(-99, 100, 11)), key=lambda s: math.hypot(*s))
    for label, *point in points:
        if not label:
            continue
        text = axes.annotate(label, point, (0, 0), textcoords="offset points", va="center_baseline", fontsize=8,
                             in_layout=False, path_effects=[withStroke(linewidth=2, foreground="white")],
                             arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 3})
        for right, up in shifts:
            text.set(position=(right, up), ha="left" if right > 0 else "right")
            text.update_positions(axes.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # without the line to the point
            if all(frame.contains(*corner) for corner in box.corners()) and not box.count_overlaps(taken):
                break
        text.arrow_patch.set_visible(math.hypot(right, up) > 15)
        taken.append(box)


def mistakes(file: Path, dataset: Dataset, logits: torch.Tensor, rows: int = 5, columns: int = 8) -> None:
    """The most confident wrong predictions: each image with its class, the predicted one and the confidence."""
    confidence, answer = logits.double().softmax(1).max(1)
    wrong = (answer != dataset.labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:rows * columns].tolist()
    with figure(file, (1.3 * columns, 1.68 * rows), rows, columns) as (sheet, panels):
        title = f"The most confident of {len(wrong):,} mistakes: true class, prediction in orange"
        sheet.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        for axes in panels.flat:
            axes.axis("off")
        for axes, index in zip(panels.flat, worst, strict=False):
            axes.imshow(dataset.images[index].permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(dataset.classes[dataset.labels[index]], fontsize=8.5, loc="center", pad=3)
            axes.text(0.5, -0.04, f"{dataset.classes[answer[index]]} {100 * confidence[index]:.0f} %", color=COLOURS[1],
                      transform=axes.transAxes, ha="center", va="top", fontsize=8.5)
