"""Every figure of the book in one style: a light card of its own, so that it reads the same on a light and a dark page.

Colors belong to methods and differ in lightness too (safe for the color-blind); relatives of a method share its color
and differ in line style. Curves are labeled where they end. Functions return the figure, closed for pyplot, so that a
notebook shows it once. matplotlib is imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnlib.results import Difference, Interval, by_method, interval
from cnlib.training.records import Run

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#1f2328", "#57606a", "#d8d9d4", "#fafaf7"
STYLES: dict[str, tuple[str, str, str]] = {  # method: color, line style, name
    "bn": ("#0b5c9e", "-", "BN"),
    "mn": ("#007a5a", "-", "MN"),
    "mn-em": ("#007a5a", "-.", "MN (EM)"),
    "mn-random": ("#007a5a", "--", "MN, random contexts"),
    "cn": ("#b8480a", "-", "CN"),
    "cn+": ("#b8480a", "-.", "CN+"),
    "cn-random": ("#b8480a", "--", "CN, random contexts"),
    "cn-one": ("#b8480a", ":", "CN, one context"),
    "ln": ("#4b1470", "-", "LN"),
    "in": ("#067899", "-", "IN"),
    "gn": ("#5c3d00", "-", "GN"),
    "none": ("#57606a", "-", "no norm"),
}
RC: dict[str, Any] = {
    "figure.facecolor": CARD, "savefig.facecolor": CARD, "axes.facecolor": CARD, "figure.dpi": 144, "font.size": 10,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "lines.linewidth": 1.8, "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.bbox": "tight",
    "image.cmap": "cividis",
}  # fmt: skip
UNITS = {"loss": "cross-entropy (nats)", "seconds": "seconds", "second": "images per second"}


def color(name: str) -> str:
    """The fixed color of a method, e.g. "cn"; names nobody knows are grey."""
    return STYLES.get(name, STYLES["none"])[0]


def name_of(name: str) -> str:
    """How a method is written in figures and tables: "cn-random" -> "CN, random contexts"."""
    return STYLES[name][2] if name in STYLES else name


def figure(
    rows: int = 1, columns: int = 1, width: float = 6.6, height: float = 3.6, **kwargs: Any
) -> tuple[Figure, Any]:
    """(figure, axes) in the style of the book, as ``plt.subplots`` gives them; width and height of the whole in inches.

    End the cell with the figure to show it.
    """
    import matplotlib.pyplot as plt

    cycle = plt.cycler(color=[ink for ink, line, _ in STYLES.values() if line == "-"])
    plt.rcParams.update(RC | {"axes.prop_cycle": cycle})  # type: ignore[arg-type]
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), **kwargs)
    plt.close(fig)  # or a notebook would show it a second time
    return fig, axes


def quantity(metric: str) -> tuple[float, str]:
    """(factor, axis label with unit) of a recorded metric; accuracies are recorded as fractions, drawn in percent."""
    split, _, rest = metric.partition("_")
    rest = rest.removeprefix("plus_")
    known = {"train": "training", "test": "test"}
    kind = metric.rsplit("_", 1)[-1]
    if kind in UNITS:
        return 1.0, f"{known.get(split, '')} {UNITS[kind]}".strip()
    return 100.0, f"{known.get(split, split)} {rest.replace('top5', 'top-5 accuracy').replace('f1', 'F1')} (%)"


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
    fig, ax = _axes(ax)
    error = metric.endswith("error")
    source = metric.replace("error", "accuracy") if error else metric
    scale, label = quantity(source)
    ends, seen = [], []
    for name in methods:
        curves = [scale * run.curve(source) for run in groups[name].values()]
        table = np.stack([curve[: min(map(len, curves))] for curve in curves])
        table = 100 - table if error else table
        epochs, middle = np.arange(1, table.shape[1] + 1), table.mean(0)
        ink, line, text = STYLES.get(name, (*STYLES["none"][:2], name))
        ax.plot(epochs, middle, color=ink, linestyle=line, zorder=3)
        if len(curves) > 2:
            bands = [interval(column) for column in table.T]
            edges = [band.low for band in bands], [band.high for band in bands]
            ax.fill_between(epochs, *edges, color=ink, alpha=0.13, linewidth=0)
        elif len(curves) == 2:  # an interval of two values is wider than any page: show the two
            ax.plot(epochs, table.T, color=ink, linestyle=line, linewidth=0.7, alpha=0.6)
        seen.append(table)
        ends.append((len(epochs), float(middle[-1]), text, ink, line))
    low, high = min(np.nanmin(table) for table in seen), max(np.nanmax(table) for table in seen)
    margin = 0.06 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)  # the curves decide, not the wide bands of the first epochs
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


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str, str]]) -> None:
    """Write labels (x, y, text, color, line style) right of where curves end, moved apart, each joined to its curve.

    Call it last: heights are those of the axis as it stands, linear, log or inverted. A curve that has left the axis is
    labeled at its edge; one that ends in no number (NaN) is a ValueError.
    """
    if lost := [text for _, y, text, *_ in ends if not np.isfinite(y)]:
        raise ValueError(f"label_ends: {lost} end in no number; give the last finite point of the curve")
    low, high = sorted(ax.get_ylim())  # asking for them also brings the transform below up to date
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


def curves(ax: Axes, x: Any, runs: Mapping[str, tuple[Any, str, str]], **axes: Any) -> None:
    """{label: (values (runs, len(x)), color, style)}: mean over the runs, their range as a band, labels at the ends.

    style: as in matplotlib's ``plot``, such as "-" or "o:". axes: anything ``ax.set`` takes (title, xlabel, yscale).
    """
    ends = []
    for label, (values, ink, style) in runs.items():
        middle = np.mean(values, 0)
        ax.plot(x, middle, style, color=ink, zorder=3)
        ax.fill_between(x, np.min(values, 0), np.max(values, 0), color=ink, alpha=0.15, linewidth=0)
        ends.append((float(x[-1]), float(middle[-1]), label, ink, style.lstrip("osD^") or "-"))
    ax.set(**axes)
    label_ends(ax, ends)


def intervals(
    values: Mapping[str, Interval],
    label: str,
    ax: Axes | None = None,
    scale: float = 100.0,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """One row a method: the mean as a dot, its interval as a bar, the numbers beside it.

    label: of the axis, with unit; values are multiplied by `scale` (100: percent). reference: published values, already
    in the axis' unit, as open diamonds.
    """
    fig, ax = _axes(ax, height=0.9 + 0.42 * len(values))
    for row, (name, value) in enumerate(values.items()):
        half = 0.0 if np.isnan(value.half) else value.half * scale
        ax.errorbar(
            value.mean * scale, row, xerr=half, color=color(name), fmt="o", markersize=6, capsize=4, elinewidth=2
        )
        text = f"{value.mean * scale:.1f}" + (f" ± {half:.1f}" if value.n > 1 else "")
        ax.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=color(name))
        if reference and name in reference:
            ax.plot(reference[name], row, "D", markerfacecolor="none", color=INK, markersize=6)
    ax.set_yticks(range(len(values)), [name_of(name) for name in values])
    for tick, name in zip(ax.get_yticklabels(), values, strict=True):
        tick.set_color(color(name))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_xlabel(label)
    if scale == 100:
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, 0), min(high, 100))
    if reference:
        ax.plot([], [], "D", markerfacecolor="none", color=INK, label="published")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, borderpad=0)
    return fig


def differences(panels: Mapping[str, Mapping[str, Difference]], label: str) -> Figure:
    """One row a difference between methods, in percentage points: filled the running best, open the last three epochs.

    A row is dark where both leave zero out on one side, grey where they do not. panels: {title: {row: difference}}, one
    above the other. label: of the axis.
    """
    rows = [len(values) for values in panels.values()]
    fig, axes = figure(
        len(panels), height=0.8 + 0.5 * sum(rows) + 0.35 * len(rows), sharex=True, squeeze=False, height_ratios=rows
    )
    marks = {"running best": ("o", "\u25cf", -0.16), "last three epochs": ("D", "\u25c7", 0.2)}
    for ax, (title, values) in zip(axes[:, 0], panels.items(), strict=True):
        inks = [INK if value.shown else MUTED for value in values.values()]
        for row, (value, ink) in enumerate(zip(values.values(), inks, strict=True)):
            for (marker, _, shift), part in zip(marks.values(), (value.best, value.late), strict=True):
                mean, half = 100 * part.mean, 0.0 if np.isnan(part.half) else 100 * part.half
                ax.errorbar(
                    mean, row + shift, xerr=half, color=ink, fmt=marker, markersize=5, capsize=3, elinewidth=1.5,
                    markerfacecolor=ink if marker == "o" else CARD, alpha=1 if value.shown else 0.75,
                )  # fmt: skip
                ax.annotate(
                    f"{mean:+z.1f}" + (f" ± {half:.1f}" if part.n > 1 else ""), (1.01, row + shift),
                    xycoords=("axes fraction", "data"), va="center", fontsize=8, color=ink,
                )  # fmt: skip
        ax.set_yticks(range(len(values)), list(values), fontsize=9)
        for tick, ink in zip(ax.get_yticklabels(), inks, strict=True):
            tick.set_color(ink)
        ax.set_ylim(len(values) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set_title(title)
    key = "\n".join(f"{sign} {name}" for name, (_, sign, _) in marks.items())
    axes[0, 0].annotate(key, (1.01, 1), xycoords="axes fraction", va="bottom", fontsize=8, color=MUTED)
    axes[-1, 0].set_xlabel(label)
    return fig


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> HTML:
    """A table as HTML, which every notebook viewer shows. Short entries stay on one line; it scrolls in its own box."""
    import pandas as pd
    from IPython.display import HTML

    lines = [[entry.replace(" ", "\u00a0") if len(entry) <= 40 else entry for entry in row] for row in rows]
    body = pd.DataFrame(lines, columns=head).to_html(index=False, border=0, justify="left")
    return HTML(f'<div style="overflow-x: auto; font-size: 0.85em" tabindex="0">{body}</div>')


def histograms(
    samples: Mapping[str, Any],
    label: str,
    ax: Axes | None = None,
    bins: int = 60,
    span: tuple[float, float] | None = None,
) -> Figure:
    """Densities of several samples (arrays or tensors of any shape) over common bins, each labeled at its peak.

    label: of the axis, with unit. span: the range shown; by default all but the outer 0.1 % of the values.
    """
    fig, ax = _axes(ax)
    arrays = {name: np.asarray(values, dtype=float).ravel() for name, values in samples.items()}
    if span is None:
        low, high = np.quantile(np.concatenate(list(arrays.values())), [0.001, 0.999])
        span = (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)
    free = [c for c, line, _ in STYLES.values() if line == "-" and c not in map(color, set(arrays) & set(STYLES))]
    for name, values in arrays.items():
        heights, edges = np.histogram(values, bins=bins, range=span, density=True)
        ink = color(name) if name in STYLES else free.pop(0) if free else MUTED
        ax.stairs(heights, edges, color=ink, linewidth=1.6)
        ax.stairs(heights, edges, color=ink, alpha=0.12, fill=True)
        peak = int(heights.argmax())
        ax.annotate(
            name_of(name), ((edges[peak] + edges[peak + 1]) / 2, heights[peak]), (0, 4), textcoords="offset points",
            ha="center", fontsize=9, color=ink,
        )  # fmt: skip
    ax.set_xlabel(label)
    ax.set_ylabel("density")
    ax.set_xlim(span)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.06)
    return fig


def images(pictures: np.ndarray, titles: Sequence[str] = (), columns: int = 10, size: float = 0.7) -> Figure:
    """A sheet of uint8 pictures (N, H, W, C), one or three channels, with a title above each where given."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    extra = 0.22 if titles else 0.0
    fig, axes = figure(rows, columns, width=columns * size, height=rows * (size + extra), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(pictures):
            ax.imshow(pictures[i].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if titles:
                ax.set_title(titles[i], fontsize=8, loc="center", fontweight="normal")
    return fig


def _axes(ax: Axes | None, **size: float) -> tuple[Any, Any]:
    return (ax.figure, ax) if ax is not None else figure(**size)  # type: ignore[arg-type]
