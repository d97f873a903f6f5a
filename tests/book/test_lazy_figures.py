"""Figures of the pages: lazy, and with their size, so that nothing moves when they arrive."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from images import FIGURE, lazy_figures, reserve
from PIL import Image

SIZES = {"a.png": (640, 480)}


def test_a_figure_gets_its_size_and_waits() -> None:
    html = '<p><img alt="x > y" src="../_images/a.png" /> and <img src="../_images/a.png"></p>'.replace("x > y", "x")
    assert reserve(html, SIZES).count('src="../_images/a.png" width="640" height="480" loading="lazy" />') == 2
    assert reserve(reserve(html, SIZES), SIZES) == reserve(html, SIZES)


def test_what_is_no_figure_or_has_a_size_of_its_own_keeps_it() -> None:
    others = (
        '<img src="../_static/logo.svg" alt=""/><img src="../_images/b.png" /><img src="data:image/png;base64,AA==">'
    )
    assert reserve(others, SIZES) == others
    own = '<img src="_images/a.png" style="width: 50%" />'
    assert reserve(own, SIZES) == '<img src="_images/a.png" style="width: 50%" loading="lazy" />'


def test_a_page_opens_its_own_figures_alone(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "own.png")
    # of another page, and not even there
    images = {"own.png": "a.png", "missing.png": "b.png"}
    app: Any = SimpleNamespace(srcdir=str(tmp_path), builder=SimpleNamespace(images=images))
    context = {"body": '<img alt="" src="../_images/a.png" />'}
    lazy_figures(app, "page", "", context, None)
    assert context["body"] == '<img alt="" src="../_images/a.png" width="640" height="480" loading="lazy" />'


def test_every_built_figure_is_lazy_and_has_its_size(site: Path) -> None:
    figures = [m[0] for page in site.rglob("*.html") for m in FIGURE.finditer(page.read_text(encoding="utf-8"))]
    assert len(figures) > 50
    assert all('loading="lazy"' in figure for figure in figures)
    assert all(re.search(r' (width|style)="', figure) for figure in figures)
