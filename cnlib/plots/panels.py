"""Panels with one row a method or a difference: means, and intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cnlib.plots.style import CARD, GRID, INK, MUTED, color, figure, figure_of, name_of
from cnlib.results import Contrast, Difference, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    """One row a difference between methods, in percentage points, a mark for each reading that is recorded.

    A row is dark where the readings that claims rest on leave zero out on one side, grey where they do not. panels:
    {title: {row: difference}}, one above the other. label: of the axis.
    """
    marks = {
        "re-estimated": ("s", "\u25a0", -0.25, lambda found: found.reestimated),
        "running best": ("o", "\u25cf", 0.0, lambda found: found.best),
        "last three epochs": ("D", "\u25c7", 0.25, lambda found: found.late),
    }
    found = [value for values in panels.values() for value in values.values()]
    marks = {name: mark for name, mark in marks.items() if any(mark[3](value) for value in found)}
    rows = [len(values) for values in panels.values()]
    fig, axes = figure(
        len(panels), height=0.8 + 0.5 * sum(rows) + 0.35 * len(rows), sharex=True, squeeze=False, height_ratios=rows
    )
    for ax, (title, values) in zip(axes[:, 0], panels.items(), strict=True):
        inks = [INK if value.shown else MUTED for value in values.values()]
        for row, (value, ink) in enumerate(zip(values.values(), inks, strict=True)):
            for marker, _, shift, part in ((*mark[:3], mark[3](value)) for mark in marks.values()):
                if part is None:
                    continue
                mean, half = 100 * part.mean, 0.0 if np.isnan(part.half) else 100 * part.half
                ax.errorbar(
                    mean, row + shift, xerr=half, color=ink, fmt=marker, markersize=5, capsize=3, elinewidth=1.5,
                    markerfacecolor=CARD if marker == "D" else ink, alpha=1 if value.shown else 0.75,
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
    key = "\n".join(f"{sign} {name}" for name, (_, sign, *_) in marks.items())
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
        mean, half = 100 * whole.mean, 100 * whole.half
        ax.errorbar(
            mean, y, xerr=half, color=ink, fmt="D" if kind == "mean" else "o", markersize=5 if kind == "mean" else 4,
            elinewidth=1.2, capsize=2, markerfacecolor=CARD if kind == "among" else ink,
        )  # fmt: skip
        if inner is not None:
            ax.plot([100 * inner.low, 100 * inner.high], [y, y], color=ink, linewidth=3.5, solid_capstyle="butt")
        ax.annotate(
            f"{mean:+z.1f} ± {half:.1f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8,
            color=ink, weight="bold" if kind == "mean" else "normal",
        )  # fmt: skip
        if kind != "setting" and y + 1 < len(rows) and rows[y + 1][3] == "setting":
            ax.axhline(y + 0.5, color=GRID, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8.5)
    for tick, (*_, kind) in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_color(INK if kind == "mean" else MUTED)
        tick.set_weight("bold" if kind == "mean" else "normal")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_xlabel(label)
    return fig
