"""Panels with one row a method or a difference: means, and intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnlib.plots.style import CARD, GRID, INK, MUTED, color, figure, figure_of, name_of
from cnlib.results import Contrast, Difference, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# readings of a `Difference`: attribute, marker, the same as a sign, shift within the row, name
MARKS = (
    ("reestimated", "s", "\u25a0", -0.25, "re-estimated"),
    ("best", "o", "\u25cf", 0.0, "running best"),
    ("late", "D", "\u25c7", 0.25, "last three epochs"),
)


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
    fig, ax = figure_of(ax, height=0.9 + 0.42 * len(values))
    for row, (name, value) in enumerate(values.items()):
        _bar(ax, row, value, color(name), scale, ".1f", 9, fmt="o", markersize=6, capsize=4, elinewidth=2)
        if reference and name in reference:
            ax.plot(reference[name], row, "D", markerfacecolor="none", color=INK, markersize=6)
    _name_rows(ax, [name_of(name) for name in values], [color(name) for name in values], 10)
    ax.set_xlabel(label)
    if scale == 100:
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, 0), min(high, 100))
    if reference:
        ax.plot([], [], "D", markerfacecolor="none", color=INK, label="published")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, borderpad=0)
    return fig


def differences(panels: Mapping[str, Mapping[str, Difference]], label: str) -> Figure:
    """One row a difference between methods, in percentage points, a mark for each reading that is recorded.

    A row is dark where the readings that claims rest on leave zero out on one side, grey where they do not. panels:
    {title: {row: difference}}, one above the other. label: of the axis.
    """
    found = [value for values in panels.values() for value in values.values()]
    marks = [mark for mark in MARKS if any(getattr(value, mark[0]) for value in found)]
    rows = [len(values) for values in panels.values()]
    fig, axes = figure(
        len(panels), height=0.8 + 0.5 * sum(rows) + 0.35 * len(rows), sharex=True, squeeze=False, height_ratios=rows
    )
    for ax, (title, values) in zip(axes[:, 0], panels.items(), strict=True):
        inks = [INK if value.shown else MUTED for value in values.values()]
        for row, (value, ink) in enumerate(zip(values.values(), inks, strict=True)):
            for attribute, marker, _, shift, _ in marks:
                if part := getattr(value, attribute):
                    fill = CARD if marker == "D" else ink
                    _bar(
                        ax, row + shift, part, ink, fmt=marker, capsize=3, elinewidth=1.5, markersize=5,
                        markerfacecolor=fill, alpha=1 if value.shown else 0.75,
                    )  # fmt: skip
        _name_rows(ax, list(values), inks, 9)
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set_title(title)
    key = "\n".join(f"{sign} {name}" for *_, sign, _, name in marks)
    axes[0, 0].annotate(key, (1.01, 1), xycoords="axes fraction", va="bottom", fontsize=8, color=MUTED)
    axes[-1, 0].set_xlabel(label)
    return fig


def contrasts(values: Mapping[str, Contrast], label: str, margin: float) -> Figure:
    """Claims, one block each: below its name a thin row a setting, then, dark, the mean over exactly these settings,
    and open, over settings like them.

    margin: of equivalence, in percentage points, shaded; the dark row's thick part is its 90 % interval, which lies
    inside the margin exactly where the two one-sided tests say "equivalent". label: of the axis.
    """
    rows: list[tuple[str, Interval, Interval | None, str]] = []
    for name, found in values.items():
        rows += [(setting, one.interval(), None, "setting") for setting, one in found.settings.items()]
        rows.append((name, found.mean.interval(), found.mean.interval(0.9), "mean"))
        if found.among:
            rows.append(("over settings like these", found.among.interval(), None, "among"))
    fig, ax = figure_of(None, height=0.9 + 0.25 * len(rows))
    ax.axvspan(-margin, margin, color=MUTED, alpha=0.15, linewidth=0)
    ax.axvline(0, color=MUTED, linewidth=1)
    for y, (_, whole, inner, kind) in enumerate(rows):
        ink = INK if kind == "mean" else MUTED
        bold, fill = kind == "mean", CARD if kind == "among" else ink
        _bar(
            ax, y, whole, ink, weight="bold" if bold else "normal", fmt="D" if bold else "o",
            markersize=5 if bold else 4, elinewidth=1.2, capsize=2, markerfacecolor=fill,
        )  # fmt: skip
        if inner is not None:
            ax.plot([100 * inner.low, 100 * inner.high], [y, y], color=ink, linewidth=3.5, solid_capstyle="butt")
        if kind != "setting" and y + 1 < len(rows) and rows[y + 1][3] == "setting":
            ax.axhline(y + 0.5, color=GRID, linewidth=0.8)
    kinds = [kind for *_, kind in rows]
    _name_rows(ax, [name for name, *_ in rows], [INK if kind == "mean" else MUTED for kind in kinds], 8.5)
    for tick, kind in zip(ax.get_yticklabels(), kinds, strict=True):
        tick.set_weight("bold" if kind == "mean" else "normal")
    ax.set_xlabel(label)
    return fig


def _bar(
    ax: Axes,
    y: float,
    value: Interval,
    ink: str,
    scale: float = 100.0,
    spec: str = "+z.1f",
    size: float = 8,
    weight: str = "normal",
    **look: Any,
) -> None:
    """A mean with its interval at a height, and both as a number beside the axis; usually in percentage points."""
    mean, half = scale * value.mean, 0.0 if np.isnan(value.half) else scale * value.half
    ax.errorbar(mean, y, xerr=half, color=ink, **look)
    text = f"{mean:{spec}}" + (f" ± {half:.1f}" if value.n > 1 else "")
    place = ("axes fraction", "data")
    ax.annotate(text, (1.01, y), xycoords=place, va="center", fontsize=size, color=ink, weight=weight)


def _name_rows(ax: Axes, names: Sequence[str], inks: Sequence[str], size: float) -> None:
    """The rows' names, each in its ink, from top to bottom."""
    ax.set_yticks(range(len(names)), names, fontsize=size)
    for tick, ink in zip(ax.get_yticklabels(), inks, strict=True):
        tick.set_color(ink)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")
