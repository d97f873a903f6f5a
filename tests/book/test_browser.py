"""The built pages in a real browser. Needs a system Chromium; never run in CI."""

import contextlib
import functools
import http.server
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif("CI" in os.environ, reason="browser tests are for a developer's machine, not for CI"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"),
]
SIZES = {1280: 900, 390: 844}  # a laptop, a phone
every_screen = pytest.mark.parametrize(("width", "scheme"), list(itertools.product(SIZES, ("light", "dark"))))
# What the tools below us write and no page of ours can change.
KNOWN = {"aria-required-children"}  # docutils: a list whose entries have the more exact role doc-biblioentry


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...

    def copyfile(self, *args: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the browser left the page
            super().copyfile(*args)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield program
        program.close()


def pages(site: Path) -> list[str]:
    return sorted(
        path.relative_to(site).as_posix() for folder in ("book", "notebooks") for path in (site / folder).glob("*.html")
    )


def screen(browser: Any, width: int, scheme: str) -> Any:
    context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
    context.set_default_timeout(300_000)  # a busy machine is no fault of a page
    return context


@every_screen
def test_pages(site: Path, address: str, browser: Any, width: int, scheme: str) -> None:
    """Nothing from outside, a silent console, equations as SVG, no sideways scrolling."""
    context = screen(browser, width, scheme)
    page = context.new_page()
    faults: list[str] = []
    page.on("request", lambda r: r.url.startswith((address, "data:")) or faults.append(f"asks for {r.url}"))
    page.on("response", lambda r: r.status < 400 or faults.append(f"{r.status} for {r.url}"))
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))
    for name in pages(site):
        faults.append(name)
        page.goto(f"{address}/{name}")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        raw = page.eval_on_selector_all(".math", "all => all.filter(m => !m.querySelector('svg')).length")
        if raw:
            faults.append(f"{raw} equations are not drawn")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if overflow > 0:
            faults.append(f"scrolls sideways by {overflow} px")
        if page.evaluate("document.documentElement.dataset.theme") != scheme:
            faults.append(f"is not {scheme}")
        if faults[-1] == name:
            faults.pop()
    context.close()
    assert not faults


def test_search_finds_a_glossary_term(address: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=responsibility")
    page.wait_for_selector("#search-results li a")
    assert "glossary" in " ".join(page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)"))
    page.close()


def test_each_chapter_has_colab_and_download(site: Path, address: str, browser: Any) -> None:
    chapters = [name for name in pages(site) if name.startswith("notebooks/")]
    if not chapters:
        pytest.skip("the built book has no chapter")
    page = browser.new_page()
    for name in chapters:
        page.goto(f"{address}/{name}")
        assert page.locator(".btn-colab-button").is_visible(), name
        page.locator(".dropdown-download-buttons > button").click()
        link = page.locator(".btn-download-source-button")
        assert link.is_visible(), name
        target = link.get_attribute("href")
        assert page.request.get(f"{address}/notebooks/{target}").ok, f"{name}: {target}"
    page.close()


@every_screen
def test_accessibility(site: Path, address: str, browser: Any, width: int, scheme: str) -> None:
    """No serious or critical finding of axe in what the pages themselves bring."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = screen(browser, width, scheme)
    page = context.new_page()
    found = []
    for name in pages(site):
        page.goto(f"{address}/{name}")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        for violation in axe.run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical") and violation["id"] not in KNOWN:
                node = violation["nodes"][0]
                found.append(f"{name}: {violation['id']}: {node['target']} {node['html'][:120]}")
    context.close()
    assert not found, "\n".join(found)


PLACE = "box => [box.getBoundingClientRect().top + window.scrollY, box.offsetHeight]"


@every_screen
def test_a_figure_moves_by_the_keyboard(site: Path, address: str, browser: Any, width: int, scheme: str) -> None:
    """And nothing else moves: figure and slider stay where they are, as high as they were."""
    context, moving = screen(browser, width, scheme), 0
    page = context.new_page()
    for name in pages(site):
        if 'type="range"' not in (site / name).read_text(encoding="utf-8"):
            continue
        page.goto(f"{address}/{name}")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        for slider in page.locator("figure input[type=range]").all():
            figure = slider.locator("xpath=ancestor::figure")
            shown = figure.locator("img:visible")
            assert shown.count() == 1, name
            before = shown.get_attribute("alt")
            assert before and before.endswith(f": {slider.get_attribute('aria-valuetext')}")
            slider.focus()
            places = [box.evaluate(PLACE) for box in (figure, slider)]
            page.keyboard.press("ArrowRight")
            assert shown.count() == 1 and shown.get_attribute("alt") != before
            assert figure.locator("output").inner_text() == slider.get_attribute("aria-valuetext")
            assert [box.evaluate(PLACE) for box in (figure, slider)] == places, name
            assert shown.evaluate("frame => frame.width / frame.height") == pytest.approx(
                shown.evaluate("frame => frame.naturalWidth / frame.naturalHeight"), rel=0.01
            )
            moving += 1
    context.close()
    assert moving or not pages(site)
