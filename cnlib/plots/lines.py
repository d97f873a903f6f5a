"""Curves: a metric against epochs, with bands over seeds and labels where curves end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnlib.plots.style import MUTED, Line, figure_of, style_of
from cnlib.results import by_method, interval
from cnlib.training.records import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLITS = {"train": "training", "val": "validation", "test": "test"}
# last word of a metric: what it is, and its unit; all others are shares
UNITS = {"loss": ("cross-entropy", " (nats)"), "seconds": ("seconds", ""), "second": ("images per second", "")}
WORDS = {"top5": "top-5 accuracy", "f1": "F1"}


def quantity(metric: str) -> tuple[float, str]:
    """(factor, axis label with unit) of a recorded metric; accuracies are recorded as fractions, drawn in percent."""
    split, _, rest = metric.partition("_")
    plus = " under CN+" if rest.startswith("plus_") else ""
    rest, kind = rest.removeprefix("plus_"), metric.rsplit("_", 1)[-1]
    if kind in UNITS:
        factor, what, unit = 1.0, *UNITS[kind]
    else:
        factor, what, unit = 100.0, WORDS.get(rest, rest.replace("_", " ")), " (%)"
    where = SPLITS.get(split, "" if kind == "second" else split)
    return factor, f"{where} {what}{plus}{unit}".strip()


def convergence(
    runs: Sequence[Run],
    metric: str = "test_accuracy",
    ax: Axes | None = None,
    methods: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """A curve for each method: the mean over seeds and its 95 % interval as a band, against epochs. Two seeds are
    shown as two thin curves.

    A metric that ends in "error" is 100 % minus the accuracy. The profile of the runs ("reduced", "paper"), the data
    and the number of seeds stand above the axes, whatever the title.
    """
    runs = [run for run in runs if methods is None or run.config.method in methods]
    groups = by_method(runs)
    methods = list(groups) if methods is None else methods
    if missing := [name for name in methods if name not in groups] or not runs:
        raise ValueError(f"convergence: no runs of {missing}" if runs else "convergence: no runs given")
    fig, ax = figure_of(ax)
    error = metric.endswith("error")
    source = metric.replace("error", "accuracy") if error else metric
    scale, label = quantity(source)
    ends, seen = [], []
    for name in methods:
        curves = [scale * run.curve(source) for run in groups[name].values()]
        table = np.stack([curve[: min(map(len, curves))] for curve in curves])
        table = 100 - table if error else table
        epochs, middle = np.arange(1, table.shape[1] + 1), table.mean(0)
        ink, line, text = style_of(name)
        ax.plot(epochs, middle, color=ink, linestyle=line, zorder=3)
        if len(curves) > 2:
            bands = [interval(column) for column in table.T]
            edges = [band.low for band in bands], [band.high for band in bands]
            ax.fill_between(epochs, *edges, color=ink, alpha=0.13, linewidth=0)
        elif len(curves) == 2:
            # an interval of two values is wider than any page: show the two
            ax.plot(epochs, table.T, color=ink, linestyle=line, linewidth=0.7, alpha=0.6)
        seen.append(table)
        ends.append((len(epochs), float(middle[-1]), text, ink, line))
    low, high = min(np.nanmin(table) for table in seen), max(np.nanmax(table) for table in seen)
    margin = 0.06 * (high - low) or 0.5
    # the curves decide, not the wide bands of the first epochs
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label.replace("accuracy", "error") if error else label)
    ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    label_ends(ax, ends)
    ax.set_title(title or "", pad=18)
    ax.annotate(provenance_line(runs), (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=MUTED)
    return fig


def provenance_line(runs: Sequence[Run]) -> str:
    """What the numbers of these runs are worth, in one line: "reduced · cifar10, 8,000 training images · 3 seeds"."""
    profiles = "/".join(dict.fromkeys(run.label for run in runs))
    data = "/".join(dict.fromkeys(run.config.dataset for run in runs))
    sizes = dict.fromkeys(run.config.train_size for run in runs)
    images = "/".join(f"{size:,} training images" if size else "all training images" for size in sizes)
    seeds = len({run.config.seed for run in runs})
    return f"{profiles} profile · {data}, {images} · {seeds} seed{'s' if seeds > 1 else ''}"


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str, Line]]) -> None:
    """Write labels (x, y, text, color, line style) right of where curves end, moved apart, each joined to its curve.

    Call it last: heights are those of the axis as it stands, linear, log or inverted. A curve that has left the axis is
    labeled at its edge; one that ends in no number (NaN) is a ValueError.
    """
    if lost := [text for _, y, text, *_ in ends if not np.isfinite(y)]:
        raise ValueError(f"label_ends: {lost} end in no number; give the last finite point of the curve")
    # asking for the limits also brings the transform below up to date
    low, high = sorted(ax.get_ylim())
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = {end: float(to_axes.transform((end[0], min(max(end[1], low), high)))[1]) for end in ends}
    ordered = sorted(heights, key=lambda end: heights[end])
    wanted = [heights[end] for end in ordered]
    gap = 13 * ax.get_figure(root=True).dpi / 72 / ax.bbox.height  # type: ignore[union-attr]
    places: list[float] = []
    for height in wanted:
        places.append(max(height, places[-1] + gap) if places else height)
    shift = sum(wanted) / len(wanted) - sum(places) / len(places)
    shift = min(max(shift, -places[0]), max(1 - places[-1], -places[0]))
    for (x, y, text, ink, line), place in zip(ordered, places, strict=True):
        edge, at = min(max(y, low), high), place + shift
        join = {"arrowstyle": "-", "color": ink, "linestyle": line, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (x, edge), (1.06, at), textcoords="axes fraction", arrowprops=join, annotation_clip=False)
        ax.annotate(
            text, (1.07, at), xycoords="axes fraction", color=ink, fontsize=9, va="center", annotation_clip=False
        )


def curves(ax: Axes, x: Any, runs: Mapping[str, tuple[Any, str, Line]], **axes: Any) -> None:
    """{label: (values (runs, len(x)), color, style)}: mean over the runs, their range as a band, labels at the ends.

    style: as in matplotlib's ``plot``, such as "-" or "o:", or the line of a `Style`. axes: anything ``ax.set`` takes
    (title, xlabel, yscale).
    """
    ends = []
    for label, (values, ink, line) in runs.items():
        middle = np.mean(values, 0)
        if isinstance(line, str):
            ax.plot(x, middle, line, color=ink, zorder=3)
            line = line.lstrip("osD^") or "-"
        else:
            ax.plot(x, middle, linestyle=line, color=ink, zorder=3)
        ax.fill_between(x, np.min(values, 0), np.max(values, 0), color=ink, alpha=0.15, linewidth=0)
        ends.append((float(x[-1]), float(middle[-1]), label, ink, line))
    ax.set(**axes)
    label_ends(ax, ends)
