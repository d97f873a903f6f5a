"""Colors, line styles and names of methods; the card that every figure is drawn on."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#1f2328", "#57606a", "#d8d9d4", "#fafaf7"

# A line style of matplotlib: "--", or (0, (on, off, ...)) in units of the line's width.
Line = str | tuple[float, tuple[float, ...]]


class Style(NamedTuple):
    """How a method is drawn and written."""

    color: str
    line: Line
    name: str


# The first part of a method's name. Colors are told apart by the color-blind, and legible as text on the card.
FAMILIES: dict[str, tuple[str, str]] = {
    "bn": ("#0b5c9e", "BN"),
    "mn": ("#007a5a", "MN"),
    "cn": ("#b8480a", "CN"),
    "ln": ("#4b1470", "LN"),
    "in": ("#067899", "IN"),
    "gn": ("#5c3d00", "GN"),
    "none": ("#57606a", "no norm"),
    "rms": ("#284828", "RMSNorm"),
    "sn": ("#4860d8", "SN"),
    "en": ("#a00038", "EN"),
    "mode": ("#a86038", "ModeNorm"),
    "gated": ("#30189c", "gated CN"),
}
# A family that is not in the table takes one of these, always the same.
SPARE = ("#580830", "#403058", "#581008")

# The other parts, places and controls: line style, and what follows the family's name.
SUFFIXES: dict[str, tuple[Line, str]] = {
    "+": ("-.", "+"),
    "em": ("-.", " (EM)"),
    "channels": ((0, (9, 2)), " on the image"),
    "logits": ((0, (2, 1, 8, 1)), " on the logits"),
    "patches": ((0, (5, 1, 5, 4)), " on patches"),
    "random": ("--", ", random contexts"),
    "one": (":", ", one context"),
    "shuffled": ((0, (1, 1.5, 1, 4)), ", shuffled contexts"),
    "frozen": ((0, (3.7, 1.6, 1, 1.6, 1, 1.6)), ", frozen"),
}
UNKNOWN: Line = (0, (7, 1.5, 2, 1.5, 2, 1.5))
# What matplotlib draws for its own names, by default: needed where two parts are joined.
DASHES = {"--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}

RC: dict[str, Any] = {
    "figure.facecolor": CARD, "savefig.facecolor": CARD, "axes.facecolor": CARD, "figure.dpi": 144, "font.size": 10,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "lines.linewidth": 1.8, "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.bbox": "tight",
    "image.cmap": "cividis",
}  # fmt: skip


def style_of(method: str) -> Style:
    """Color, line style and name of a method called family[-place][-control], e.g. "cn-patches-random".

    The family gives the color, the other parts the line style, joined where there are several, and the rest of the
    name: "CN on patches, random contexts". Parts that are not in the tables are written as they are.
    """
    family, *parts = method.split("-")
    if family.endswith("+"):
        family, parts = family[:-1], ["+", *parts]
    spare = SPARE[zlib.crc32(family.encode()) % len(SPARE)]
    ink, name = FAMILIES.get(family, (spare, family))
    known = [SUFFIXES.get(part, (UNKNOWN, f"-{part}")) for part in parts]
    return Style(ink, _joined([line for line, _ in known]), name + "".join(text for _, text in known))


def _joined(lines: list[Line]) -> Line:
    if len(lines) < 2:
        return lines[0] if lines else "-"
    return 0, tuple(length for line in lines for length in (DASHES[line] if isinstance(line, str) else line[1]))


# The layers, and the relatives of MN and CN in the chapters. `style_of` has a style for every other method too.
STYLES = {method: style_of(method) for method in (*FAMILIES, "mn-em", "mn-random", "cn+", "cn-random", "cn-one")}


def color(method: str) -> str:
    """The fixed color of a method: that of its family."""
    return style_of(method).color


def name_of(method: str) -> str:
    """How a method is written in figures and tables: "cn-random" -> "CN, random contexts"."""
    return style_of(method).name


def figure(
    rows: int = 1, columns: int = 1, width: float = 6.6, height: float = 3.6, **kwargs: Any
) -> tuple[Figure, Any]:
    """(figure, axes) in the style of the book, as ``plt.subplots`` gives them; width and height of the whole in inches.

    End the cell with the figure to show it.
    """
    import matplotlib.pyplot as plt

    cycle = plt.cycler(color=[ink for ink, _ in FAMILIES.values()])
    plt.rcParams.update(RC | {"axes.prop_cycle": cycle})  # type: ignore[arg-type]
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), **kwargs)
    # or a notebook would show it a second time
    plt.close(fig)
    return fig, axes


def figure_of(ax: Axes | None, **size: float) -> tuple[Any, Any]:
    """(figure, axes) of axes that are given, or of a new figure."""
    return (ax.figure, ax) if ax is not None else figure(**size)  # type: ignore[arg-type]
