"""The pictures of the report and of `evaluate --mistakes`, in one style: thin lines, and a legend that hides nothing.

Each function draws one figure and writes it as a PNG, whole or not at all. Nothing needs a screen.
"""

from contextlib import contextmanager
from itertools import cycle, product

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from train.engine.checkpoint import write

INK, GREY, PALE = "#22303c", "#7d8b99", "#e6eaee"
COLOURS = ("#1f6fb2", "#d1662a", "#2e8b6a", "#8a55a8", "#b5892b", "#c2405f", "#4aa3b8", "#6b7a3a")
ERRORS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)  # percent, for the ticks
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe0ef", COLOURS[0]])
STYLE = {
    "figure.dpi": 150, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": PALE, "grid.linewidth": 0.8,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}
DASHES = ("-", (0, (5, 1.6)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vP"
LEGEND = {"fontsize": 8, "frameon": False, "labelspacing": 0.35}


@contextmanager
def figure(file, size, *shape):
    """(figure, axes) of `size` inches in our style, written to `file` as a PNG at the end."""
    with plt.rc_context(STYLE):
        sheet, axes = plt.subplots(*shape, figsize=size)
        try:
            yield sheet, axes
            write(file, lambda handle: sheet.savefig(handle, format="png", metadata={"Software": None}))
        finally:
            plt.close(sheet)


def curves(file, logs):
    """Loss and accuracy per epoch. logs: {name: [DataFrame of a run's log, ...]}; a name stands for one look."""
    columns = (("train_loss", "val_loss", "loss"), ("train_accuracy", "val_accuracy", "accuracy in percent"))
    looks = list(product(DASHES, COLOURS)) * (1 + len(logs) // 32)  # no two alike of the first 32
    with figure(file, (11, 4.2), 1, 2) as (sheet, panels):
        for axes, (train, val, title) in zip(panels, columns):
            for (dash, colour), runs in zip(looks, logs.values()):
                for run in runs:
                    look = {"color": colour, "linestyle": dash, "marker": "." if len(run) < 3 else None}
                    axes.plot(run["epoch"], run[train], lw=0.8, alpha=0.75, **look)
                    axes.plot(run["epoch"], run[val].astype(float), lw=1.9, **look)
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.02)
        # The loss ends at what is usual, three times the 90 % quantile, and its title says how far the rest goes.
        drawn = np.concatenate([line.get_ydata() for line in panels[0].lines])
        drawn = drawn[np.isfinite(drawn)]
        usual = drawn[drawn <= 3 * np.quantile(drawn, 0.9, method="lower")]
        if 0 < len(usual) < len(drawn):
            low, high = usual.min(), usual.max()
            panels[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            panels[0].set_title(f"loss (cut: it reaches {drawn.max():,.{0 if drawn.max() > 100 else 1}f})")
        handles = [Line2D([], [], color=colour, linestyle=dash) for (dash, colour), _ in zip(looks, logs)]
        sheet.legend(handles, logs, loc="outside right upper", handlelength=3.2, **LEGEND)
        sheet.supxlabel("thick: validation fold      thin: training images, as augmented", color=GREY, fontsize=8.5)


def confusion(file, counts, classes, title):
    """Counts (10, 10), row the true class; the colours are scaled to the mistakes, the right answers stand apart."""
    counts = np.asarray(counts)
    right = np.eye(len(counts), dtype=bool)
    worst = max(1, counts[~right].max())
    with figure(file, (6.4, 5.9)) as (_, axes):
        axes.imshow(np.where(right, 0, counts), cmap=BLUES, vmax=worst)
        for (row, column), count in np.ndenumerate(counts):
            strong = count > 0.7 * worst and row != column
            axes.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", fontsize=8.5,
                      color="white" if strong else INK if count else GREY, weight="bold" if row == column else "normal")
        axes.set(title=title, xlabel="answer", ylabel="true class")
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)


def reliability(file, bins, title):
    """How often answers of each confidence are right. bins: (images, mean confidence, share right), 0..1."""
    bins = [row for row in bins if row[0]]
    images, confidence, right = (np.array(column, dtype=float) for column in zip(*bins))
    with figure(file, (5.6, 5.6)) as (_, axes):
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.9, linestyle=(0, (4, 3)))
        axes.annotate("as right as confident", (0.72, 0.72), xytext=(-4, 4), textcoords="offset points", rotation=45,
                      rotation_mode="anchor", color=GREY, fontsize=8.5)
        axes.vlines(confidence, confidence, right, color=COLOURS[1], lw=1.2, alpha=0.7)
        axes.plot(confidence, right, color=COLOURS[0], alpha=0.35)
        axes.scatter(confidence, right, s=20 + 380 * images / images.sum(), color=COLOURS[0], zorder=3, lw=0,
                     clip_on=False)
        axes.set(title=title, xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")


def landscape(file, ours, published, title, xlabel, unit=1, budget=None):
    """Test accuracy, on a scale of the error, against what it costs: parameters, or the work of training.

    ours: [(name, cost, top1, low, high)], in percent, equal names share a look; published: [(name, cost, top1)], drawn
    as numbered circles; unit: what the axis counts the cost in; budget: the cost not to exceed, a line.
    """
    names = list(dict.fromkeys(row[0] for row in ours))
    looks = dict(zip(names, cycle(product(MARKERS, COLOURS))))
    with figure(file, (10.5, 5.6)) as (sheet, axes):
        axes.set(xscale="log", yscale="log", title=title, xlabel=xlabel)
        for number, (_, cost, top1) in enumerate(published, 1):
            axes.scatter(cost, 100 - top1, s=62, facecolor="white", edgecolor=GREY, lw=0.6, zorder=2)
            axes.annotate(number, (cost, 100 - top1), ha="center", va="center_baseline", fontsize=5.5, zorder=2.5)
        for name, cost, top1, low, high in ours:
            marker, colour = looks[name]
            axes.vlines(cost, 100 - high, 100 - low, color=colour, lw=1.4, zorder=3)
            axes.scatter(cost, 100 - top1, s=44, color=colour, marker=marker, zorder=4, lw=0)
        if budget:
            axes.axvline(budget, color=COLOURS[1], lw=1, linestyle=(0, (4, 3)))
            axes.annotate(" the budget", (budget, 0.01), None, ("data", "axes fraction"), color=COLOURS[1], fontsize=8)
        # The y axis is upside down; costs that differ little have more ticks.
        costs = [row[1] for row in (*ours, *published)] + [budget] * bool(budget)
        errors = [100 - top1 for row in (*ours, *published) for top1 in row[2:]]
        lowest, highest = max(0.05, min(errors) / 1.15), min(99.9, max(errors) * 1.15)
        ticks = [error for error in ERRORS if lowest <= error <= highest]
        axes.set(xlim=(min(costs) / 1.35, max(costs) * 1.35), ylim=(highest, lowest))
        axes.set_yticks(ticks, [f"{100 - error:g} %" for error in ticks])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 100 * min(costs) else (1,)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        dots = [Line2D([], [], color=colour, marker=marker, lw=0, ms=6.5, mew=0) for marker, colour in looks.values()]
        circles = [Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, ms=5, mew=0.7) for _ in published]
        numbered = [f"{number}  {name}" for number, (name, *_) in enumerate(published, 1)]
        sheet.legend(dots + circles, names + numbered, loc="outside right upper", handlelength=1, **LEGEND)


def mistakes(file, dataset, logits, rows=5, columns=8):
    """The wrong answers of the highest confidence: each image with its class, the answer and the confidence."""
    confidence, answer = logits.double().softmax(1).max(1)
    wrong = (answer != dataset.labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:rows * columns].tolist()
    with figure(file, (1.3 * columns, 1.68 * rows), rows, columns) as (sheet, panels):
        title = f"The most confident of {len(wrong):,} mistakes: true class, answer in orange"
        sheet.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        for axes in panels.flat:
            axes.axis("off")
        for axes, index in zip(panels.flat, worst):
            axes.imshow(dataset.images[index].permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(dataset.classes[dataset.labels[index]], fontsize=8.5, loc="center", pad=3)
            axes.text(0.5, -0.04, f"{dataset.classes[answer[index]]} {100 * confidence[index]:.0f} %", color=COLOURS[1],
                      transform=axes.transAxes, ha="center", va="top", fontsize=8.5)
