"""Tables as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

# Entries up to this length stay on one line.
SHORT = 40


def table(data: pd.DataFrame | Sequence[str], rows: Sequence[Sequence[Any]] | None = None) -> HTML:
    """A table as HTML, which every notebook viewer shows. Short entries stay on one line; it scrolls in its own box.

    data: a data frame, whose index is not shown; or the heading, followed by `rows`. What is missing (None, NaN) is
    left empty. Needs pandas.
    """
    import pandas as pd
    from IPython.display import HTML

    if isinstance(data, pd.DataFrame) is not (rows is None):
        raise TypeError(f"table takes a data frame, or a heading and rows: got {type(data).__name__} and rows={rows!r}")
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(rows, columns=list(data), dtype=object)
    text = frame.astype(object).where(frame.notna(), "").map(_entry)
    body = text.to_html(index=False, border=0, justify="left")
    return HTML(f'<div style="overflow-x: auto; font-size: 0.85em" tabindex="0">{body}</div>')


def _entry(value: Any) -> str:
    text = str(value)
    return text.replace(" ", "\u00a0") if len(text) <= SHORT else text
