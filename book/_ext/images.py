"""Figures are fetched when the reader comes near them, and keep their place on the page until then."""

import re
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx

FIGURE = re.compile(r'<img ([^>]*src="[^"]*_images/([^"/]+)"[^>]*?) ?/?>')


def reserve(html: str, sizes: dict[str, tuple[int, int]]) -> str:
    """The page, with `loading="lazy"` and the (width, height) of each figure that `sizes` knows by file name."""

    def with_size(match: re.Match[str]) -> str:
        given, name = match.groups()
        if "loading=" in given or name not in sizes:
            return match[0]
        width, height = sizes[name]
        # a width of the page's own would contradict the pixels
        size = "" if re.search(r"\b(width|height|style)=", given) else f' width="{width}" height="{height}"'
        return f'<img {given}{size} loading="lazy" />'

    return FIGURE.sub(with_size, html)


def lazy_figures(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Of a page that is about to be written."""
    shown = {name for _, name in FIGURE.findall(context.get("body", ""))}
    if not shown:
        return
    sizes = {}
    # the builder knows the figures of all pages
    for source, name in app.builder.images.items():
        if name in shown and (path := Path(app.srcdir) / source).suffix == ".png":
            with Image.open(path) as image:
                sizes[name] = image.size
    context["body"] = reserve(context["body"], sizes)
