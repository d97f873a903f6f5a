"""Figures with a slider. Their frames are drawn when a page is built, so that moving them needs no kernel."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from cnlib.plots.style import INK

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

# what the slider does when it is moved: shows its frame, hides the others, and says which it is
MOVE = (
    "const all = this.closest('figure').querySelectorAll('img');"
    "all.forEach((frame, i) => { frame.hidden = i != this.value });"
    "const text = all[this.value].dataset.value;"
    "this.setAttribute('aria-valuetext', text);"
    "this.nextElementSibling.textContent = text"
)
DPI = 90  # a page has many frames


def frames(label: str, drawn: Mapping[str, Figure], start: int = 0) -> HTML:
    """Figures of which one is shown at a time, and a slider that chooses: {what the slider says there: figure}.

    label: what is varied, in front of the slider. start: the frame that is shown first, and the only one where scripts
    are off or on paper. All is in the page, nothing is loaded; the slider answers to arrow keys. The card is light in
    dark mode too, as a figure's is.
    Raises ValueError for fewer than two frames, a start that is none of them, or figures of different sizes.
    """
    from IPython.display import HTML

    sizes = {tuple(figure.get_size_inches()) for figure in drawn.values()}
    if len(drawn) < 2 or len(sizes) > 1 or not 0 <= start < len(drawn):
        raise ValueError(
            f"frames takes two figures or more, all of one size, and a start among them: got {len(drawn)} figures of "
            f"{len(sizes)} sizes and start={start}"
        )
    pngs = {value: _png(figure) for value, figure in drawn.items()}
    # the place is kept before a frame is decoded; narrower than its pixels, the height follows
    width, height = struct.unpack(">II", pngs[[*pngs][0]][16:24])
    size = f'width="{width}" height="{height}" style="height: auto"'
    pictures = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" data-value="{escape(value)}" '
        f'alt="{escape(label)}: {escape(value)}" {size}{"" if i == start else " hidden"}>'
        for i, (value, png) in enumerate(pngs.items())
    )
    first = escape([*drawn][start])
    slider = (
        f'<input type="range" min="0" max="{len(drawn) - 1}" value="{start}" aria-valuetext="{first}" '
        f'oninput="{escape(MOVE)}" style="vertical-align: middle; width: min(20rem, 60%)">'
    )
    # as wide as the longest of its texts, or a line would break at some frames and the page would jump
    room = f"display: inline-block; min-width: {max(map(len, drawn))}ch"
    caption = f'<label>{escape(label)} {slider} <output style="{room}">{first}</output></label>'
    return HTML(f'<figure style="margin: 0">{pictures}<figcaption style="color: {INK}">{caption}</figcaption></figure>')


def _png(figure: Figure) -> bytes:
    import matplotlib

    file = io.BytesIO()
    # not cut to what is drawn, or the frames would jump
    with matplotlib.rc_context({"savefig.bbox": "standard"}):
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
