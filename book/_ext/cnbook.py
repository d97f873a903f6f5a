"""The book's Sphinx extension: a cache that knows the package, MathJax offline, lazy figures, the forge's address."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from address import resolve
from images import lazy_figures
from jupyter_cache import get_cache
from layers import NormLayers
from setup_cell import stamp
from side_by_side import execute
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
MATHJAX = "tex-svg-full.js"  # glyphs as SVG paths: needs no fonts beside it
BRANCH = "main"
log = logging.getLogger(__name__)


def execution_key(root: Path = ROOT) -> str:
    """Changes with anything but a notebook's own cells that can change what the cells print."""
    digest = hashlib.sha256()
    for path in [*sorted((root / "cnlib").rglob("*")), root / "requirements.txt"]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(root)).encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    settings = sorted(item for item in os.environ.items() if item[0].startswith("CNLIB_"))
    digest.update(repr((platform.python_version(), metadata.version("torch"), settings)).encode())
    return digest.hexdigest()[:16]


def configure(app: Sphinx, config: Config) -> None:
    # jupyter-cache compares code cells only, so an edit in cnlib/ needs a cache of its own
    config.nb_execution_cache_path = str(Path(app.outdir).parent / ".jupyter_cache" / execution_key())
    forget_stderr(Path(config.nb_execution_cache_path))
    own_matplotlib(Path(app.outdir).parent / ".matplotlib")
    config.mathjax_path = f"mathjax/{MATHJAX}"
    config.cnbook_address = resolve()
    if config.cnbook_address is None:
        # not a warning: a clone without a remote must build
        log.info("cnbook: no repository address known; set it with make address REPO=https://host/owner/name")


def forget_stderr(cache: Path) -> None:
    """Take out of the cache what was executed with a message on stderr: it may not have been the chapter's, and a build
    that it failed must not fail for it again."""
    if not cache.is_dir():
        return
    executed = get_cache(str(cache))
    for record in executed.list_cache_records():
        cells = executed.get_cache_bundle(record.pk).nb.cells
        if any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", ())):
            executed.remove_cache(record.pk)


def own_matplotlib(folder: Path) -> None:
    """Give the chapters a folder of matplotlib's own, its list of fonts made: what it says while it makes that, or
    where it cannot write, would stand in a cell; and nobody's matplotlibrc changes a figure."""
    os.environ["MPLCONFIGDIR"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, check=False)


def copy_mathjax(app: Sphinx) -> None:
    source = resources.files("sphinx-mathjax-offline") / "static" / "mathjax" / MATHJAX
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    with resources.as_file(source) as path:
        shutil.copyfile(path, target / MATHJAX)


def _link(text: str, url: str, tooltip: str, icon: str, label: str) -> dict[str, str]:
    return {"type": "link", "text": text, "url": url, "tooltip": tooltip, "icon": icon, "label": label}


def add_buttons(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Colab on the chapters; source, edit and issue on every page, where the address is known."""
    if "header_buttons" not in context or doctree is None:
        return
    address = app.config.cnbook_address
    buttons = []
    if pagename.startswith("notebooks/"):
        url, tooltip = "https://colab.research.google.com/", "Open Colab, then upload the downloaded notebook"
        if address and address.startswith("https://github.com/"):
            name = address.removeprefix("https://github.com/")
            url += f"github/{name}/blob/gh-pages/_sources/{pagename}.ipynb"
            tooltip = "Run this chapter on Colab"
        buttons.append(_link("Colab", url, tooltip, "_static/images/logo_colab.png", "colab-button"))
    if address:
        # GitLab keeps its pages under /-/
        prefix = address if "gitlab" not in address else f"{address}/-"
        source = Path(app.env.doc2path(pagename)).relative_to(app.srcdir).as_posix()
        edit = f"{prefix}/edit/{BRANCH}/{source}"
        links = [
            _link("Repository", address, "The repository", "fas fa-code-branch", "repository-button"),
            _link("Edit", edit, "Propose a change", "fas fa-pencil-alt", "edit"),
            _link("Issue", f"{prefix}/issues/new", "Report an error", "fas fa-lightbulb", "issue"),
        ]
        group = {"type": "group", "icon": "fas fa-code-branch", "tooltip": "Repository", "label": "source"}
        buttons.append({**group, "buttons": links})
    context["header_buttons"][:0] = buttons


def stamp_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Write the address into the published notebooks, at the commit the forge is building."""
    address = app.config.cnbook_address
    if error or not address:
        return
    commit = os.environ.get("GITHUB_SHA") or os.environ.get("CI_COMMIT_SHA") or ""
    for path in (Path(app.outdir) / "_sources").rglob("*.ipynb"):
        path.write_text(stamp(path.read_text(encoding="utf-8"), address, commit), encoding="utf-8")


def _plain(line: str) -> str:
    """``(N, C, *)`` is a shape and ``|x|`` a norm, not markup; what stands in backticks is code."""
    parts = re.split(r"`+([^`]+)`+", line)
    parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def plain_docstrings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: paragraphs, and indented lines that keep their line breaks."""
    out: list[str] = []
    block = 0  # indentation of the lines being kept, 0 in a paragraph
    for line in lines:
        text, indent = _plain(line.strip()), len(line) - len(line.lstrip())
        if text and bool(indent) != bool(block):
            block = indent
            out.append("")
        # deeper than the block's first line: goes on from the line before
        out.append(text if not (block and text) else f"| {text}" if indent <= block else f"  {text}")
    lines[:] = out


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("cnbook_address", None, "html", types=(str, type(None)))
    app.add_directive("norm-layers", NormLayers)
    app.connect("config-inited", configure)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-before-read-docs", execute)
    app.connect("html-page-context", add_buttons, priority=502)  # the theme makes its own at 501
    app.connect("html-page-context", lazy_figures)
    app.connect("autodoc-process-docstring", plain_docstrings)
    app.connect("build-finished", stamp_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
