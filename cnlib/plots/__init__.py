"""Every figure of the book in one style: a light card of its own, so that it reads the same on a light and a dark page.

Colors belong to families of methods and differ in lightness too (safe for the color-blind); relatives share a color
and differ in line style. Curves are labeled where they end. Functions return the figure, closed for pyplot, so that a
notebook shows it once. matplotlib is imported on first use.
"""

from cnlib.plots.lines import convergence, curves, label_ends, provenance_line, quantity
from cnlib.plots.moving import frames
from cnlib.plots.panels import contrasts, differences, intervals
from cnlib.plots.style import CARD, GRID, INK, MUTED, STYLES, color, figure, name_of, style_of
from cnlib.plots.tables import table

__all__ = [
    "CARD",
    "GRID",
    "INK",
    "MUTED",
    "STYLES",
    "color",
    "contrasts",
    "convergence",
    "curves",
    "differences",
    "figure",
    "frames",
    "intervals",
    "label_ends",
    "name_of",
    "provenance_line",
    "quantity",
    "style_of",
    "table",
]
