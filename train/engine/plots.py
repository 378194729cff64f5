"""The pictures of the report and of `evaluate --mistakes`, in one style: thin lines, labels where the data is.

Each function draws one figure and writes it as a PNG to a path or an open file. Nothing needs a screen.
"""

from contextlib import contextmanager
from itertools import product

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from train.engine.data import CLASSES

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
HALO = [withStroke(linewidth=2.5, foreground="white")]
PLACES = [(7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top")]
PLACES += [(distance * right, distance * up, ha, va) for distance in (6, 14)  # points from the dot to its name
           for right, ha in ((1, "left"), (-1, "right")) for up, va in ((1, "bottom"), (-1, "top"))]


@contextmanager
def figure(file, size, *shape):
    """(figure, axes) of `size` inches in our style, written to `file` as a PNG at the end."""
    with plt.rc_context(STYLE):
        sheet, axes = plt.subplots(*shape, figsize=size)
        try:
            yield sheet, axes
            sheet.savefig(file, format="png", metadata={"Software": None})
        finally:
            plt.close(sheet)


def curves(file, logs):
    """Loss and accuracy per epoch. logs: {name: [DataFrame of a run's CSV, ...]}; a name stands for one colour."""
    columns = (("train_loss", "val_loss", "loss"), ("train_accuracy", "val_accuracy", "accuracy in percent"))
    with figure(file, (10, 4.2), 1, 2) as (sheet, panels):
        for axes, (train, val, title) in zip(panels, columns):
            ends = []
            for colour, (group, runs) in zip(COLOURS * len(logs), logs.items()):
                for run in runs:
                    mark = {"color": colour, "marker": "." if len(run) < 3 else None}
                    held_out = run[val].notna().any()
                    axes.plot(run["epoch"], run[train], alpha=0.4 if held_out else 1, linestyle=(0, (4, 1.5)), lw=1.2,
                              **mark)
                    axes.plot(run["epoch"], run[val], **mark)
                ends.append((run["epoch"].iloc[-1], run[val if held_out else train].iloc[-1], group, colour))
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.02)
            label_ends(axes, ends)
        sheet.supxlabel("solid: validation fold      dashed: training images, as augmented", color=GREY, fontsize=8.5)


def label_ends(axes, ends, gap=0.055):
    """Write each line's name to its right, moved apart so that no two touch. ends: (x, y, text, colour)."""
    axes.figure.draw_without_rendering()
    to_share = axes.transAxes.inverted()
    places = sorted((to_share.transform(axes.transData.transform((x, y)))[1], *rest) for x, y, *rest in ends)
    heights = [height for height, _, _ in places]
    for k in range(1, len(heights)):  # push up what is too close, and down again what was pushed out at the top
        heights[k] = max(heights[k], heights[k - 1] + gap)
    for k in reversed(range(len(heights))):
        heights[k] = min(heights[k], 1 - gap * (len(heights) - 1 - k))
    for height, (_, text, colour) in zip(heights, places):
        axes.annotate(text, (1.015, height), xycoords="axes fraction", color=colour, fontsize=8.5, va="center",
                      annotation_clip=False)


def confusion(file, counts, title):
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
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(CLASSES)), CLASSES)
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


def landscape(file, ours, published, budget, title):
    """Test accuracy against parameters, on a scale of the error.

    ours: [(name, parameters, top1, low, high)], in percent; published: [(name, parameters, top1)], marked as such. A
    point without a name gets no label.
    """
    with figure(file, (9.5, 5.8)) as (_, axes):
        axes.set(xscale="log", yscale="log", title=title, xlabel="parameters, millions")
        if published:
            axes.scatter([row[1] for row in published], [100 - row[2] for row in published], s=26, facecolor="white",
                         edgecolor=GREY, zorder=2)
        for _, params, top1, low, high in ours:
            axes.vlines(params, 100 - high, 100 - low, color=COLOURS[0], lw=1.4, zorder=3)
            axes.scatter(params, 100 - top1, s=44, color=COLOURS[0], zorder=4, lw=0)
        points = [(*row[:3], COLOURS[0]) for row in ours] + [(*row[:3], GREY) for row in published]
        sizes, errors = [row[1] for row in points], [100 - row[2] for row in points]
        axes.set_xlim(min(sizes) / 1.35, max(*sizes, budget) * 1.6)
        axes.set_ylim(min(99.9, max(errors) * 1.15), max(0.05, min(errors) / 1.15))  # upside down: good is up
        axes.axvline(budget, color=COLOURS[1], lw=1, linestyle=(0, (4, 3)))
        axes.annotate(" the budget", (budget, 0.01), xycoords=("data", "axes fraction"), color=COLOURS[1], fontsize=8.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(sizes) < 100 * min(sizes) else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        lowest, highest = sorted(axes.get_ylim())
        ticks = [error for error in ERRORS if lowest <= error <= highest]
        axes.set_yticks(ticks, [f"{100 - error:g} %" for error in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        lines = [(budget, *axes.get_ylim()), *((params, 100 - low, 100 - high) for _, params, _, low, high in ours)]
        label_points(axes, [(name, params, 100 - top1, colour) for name, params, top1, colour in points], lines)


def label_points(axes, points, lines):
    """Write each point's name beside it, where it hides no other name and no point, and crosses no line if possible.

    points: (name, x, y, colour), the important ones first; lines: vertical ones, (x, y, y). A name that fits nowhere is
    left out.
    """
    axes.figure.draw_without_rendering()
    renderer = axes.figure.canvas.get_renderer()
    room = axes.get_window_extent(renderer)
    around = 4 * axes.figure.dpi / 72  # pixels of 4 points
    dots = [Bbox([axes.transData.transform((x, y))] * 2).padded(around) for _, x, y, _ in points]
    bars = [Bbox(axes.transData.transform([(x, low), (x, high)])) for x, low, high in lines]
    taken = []

    def free(box, avoided):
        inside = room.contains(*box.min) and room.contains(*box.max)
        return inside and not any(map(box.overlaps, avoided + dots))

    for name, x, y, colour in points:
        if not name:
            continue
        text = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8, path_effects=HALO,
                             color=colour if colour != GREY else INK)
        for avoided, (right, up, ha, va) in product((taken + bars, taken), PLACES):
            text.set(position=(right, up), ha=ha, va=va)
            box = text.get_window_extent(renderer)
            if free(box, avoided):
                taken.append(box)
                break
        else:
            text.remove()


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
            axes.set_title(CLASSES[dataset.labels[index]], fontsize=8.5, loc="center", pad=3)
            axes.text(0.5, -0.04, f"{CLASSES[answer[index]]} {100 * confidence[index]:.0f} %", color=COLOURS[1],
                      transform=axes.transAxes, ha="center", va="top", fontsize=8.5)
