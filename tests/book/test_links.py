"""The checker of built pages finds what it should."""

from pathlib import Path

import pytest
from links import faults, main

PAGE = '<html><body><h1 id="here">x</h1>{}</body></html>'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="other.html#there">ok</a>', None),
        ('<a href="#here">ok</a>', None),
        ('<a href="https://example.org/x">a link is not a load</a>', None),
        ('<img src="data:image/png;base64,AA">', None),
        ('<a href="gone.html">x</a>', "gone.html: no such file"),
        ('<a href="other.html#gone">x</a>', "other.html#gone: no such anchor"),
        ('<a href="#gone">x</a>', "#gone: no such anchor"),
        ('<img src="gone.png">', "gone.png: no such file"),
        ('<script src="https://cdn.example.org/x.js"></script>', "from outside"),
        ('<link rel="stylesheet" href="//cdn.example.org/x.css">', "from outside"),
    ],
)
def test_finds(tmp_path: Path, body: str, fault: str | None) -> None:
    (tmp_path / "index.html").write_text(PAGE.format(body), encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="there">y</p>', encoding="utf-8")
    found = list(faults(tmp_path))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]
    assert main(tmp_path) == len(found)


def test_no_site_is_an_error(tmp_path: Path) -> None:
    assert main(tmp_path) == 1
