"""Check a built site by its files: internal links, anchors, and that no page loads anything from outside.

``python book/_ext/links.py _build/html`` prints each fault and exits with 1 where there is one.
"""

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself when it opens the page; <a href> it does not.
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
PASSIVE_LINKS = {"canonical", "next", "prev", "index", "search", "author", "license", "help", "copyright"}


class Page(HTMLParser):
    """The anchors, links and loaded resources of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        target = values.get(LOADS.get(tag, ""), "")
        if target and not (tag == "link" and PASSIVE_LINKS & set(values.get("rel", "").split())):
            self.loads.append(target)


@cache
def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _inside(site: Path, page: Path, link: str) -> str | None:
    """What is wrong with an internal link, or None."""
    parts = urlsplit(link)
    target = page
    if parts.path:
        base = site if parts.path.startswith("/") else page.parent
        target = (base / unquote(parts.path).lstrip("/")).resolve()
        target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "no such file"
    fragment = unquote(parts.fragment)
    if fragment and target.suffix == ".html" and fragment not in parse(target).anchors | {"top"}:
        return "no such anchor"
    return None


def faults(site: Path) -> Iterator[str]:
    """One line for each dead internal link and each outside resource under ``site``."""
    site = site.resolve()
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.relative_to(site).parts:
            continue
        page, name = parse(path), path.relative_to(site)
        for load in page.loads:
            outside = urlsplit(load)
            if outside.netloc and outside.scheme != "data":
                yield f"{name}: loads {load} from outside"
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            if reason := _inside(site, path, link):
                yield f"{name}: {link}: {reason}"


def main(site: Path) -> int:
    if not (site / "index.html").is_file():
        print(f"error: {site} holds no built site; run make book first")
        return 1
    found = list(faults(site))
    print(*found, f"{len(found)} dead links or outside resources in {site}", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")))
