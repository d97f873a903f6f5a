"""The page of all numbered formulas: each beside its source, the code that computes it and the test that evaluates it.

Nothing is kept by hand. A chapter numbers a formula with ``\\tag{2.3}`` and names the rest in its cell's metadata:

    "formulas": {"2.3": {"source": "...", "code": "cnlib.norm.batch.standardize", "test": "tests/...::test_..."}}
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
TAG = re.compile(r"\\tag\{([^}]*)\}")


@dataclass(frozen=True)
class Formula:
    number: str
    latex: str
    source: str
    code: str
    test: str


def read(notebook: Path) -> Iterator[Formula]:
    """The numbered formulas of a chapter, in order; ValueError where one lacks its source, code or test."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        about = dict(cell["metadata"].get("formulas", {}))
        for block in BLOCK.findall("".join(cell["source"])):
            for number in TAG.findall(block):
                entry = about.pop(number, {})
                missing = [key for key in ("source", "code", "test") if not entry.get(key)]
                if missing:
                    raise ValueError(f"{notebook.name}, cell {cell['id']}: formula {number} lacks {', '.join(missing)}")
                yield Formula(number, TAG.sub("", block).strip(), **{k: entry[k] for k in ("source", "code", "test")})
        if about:
            raise ValueError(f"{notebook.name}, cell {cell['id']}: no formula is numbered {', '.join(about)}")


def title(notebook: Path) -> str:
    return "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0].lstrip("# ")


def find(code: str) -> Any:
    """The object a dotted name stands for: the longest importable module, then its attributes."""
    parts = code.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(code)


def test_exists(test: str, root: Path = ROOT) -> bool:
    """Whether ``tests/x.py::test_y`` or ``notebooks/x.ipynb#cell-id`` names something that is there."""
    path, _, name = test.replace("#", "::").partition("::")
    file = root / path
    if not file.is_file():
        return False
    if file.suffix == ".ipynb":
        return any(cell["id"] == name for cell in json.loads(file.read_text(encoding="utf-8"))["cells"])
    text = file.read_text(encoding="utf-8")
    return all(re.search(rf"^\s*(def|class) {re.escape(part)}\b", text, re.M) for part in name.split("::"))


class Formulas(SphinxDirective):
    """``{formulas}``: the page itself, a section a chapter."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(notebook))
            formulas = list(read(notebook))
            if formulas:
                section = nodes.section(ids=[f"formulas-{notebook.stem}"])
                section += nodes.title(text=title(notebook))
                section += [self.entry(formula) for formula in formulas]
                sections.append(section)
        return sections

    def entry(self, formula: Formula) -> nodes.Node:
        box = nodes.container(classes=["formula"])
        math = nodes.math_block(formula.latex, formula.latex, nowrap=False, number=None)
        box += nodes.container("", math, classes=["formula-math"])
        about = nodes.container(classes=["formula-about"])
        rows = (("Formula", formula.number), ("Source", formula.source), ("Code", formula.code), ("Test", formula.test))
        for label, value in rows:
            kind = nodes.literal if label in ("Code", "Test") else nodes.inline
            about += nodes.paragraph("", "", nodes.strong(text=f"{label}: "), kind(text=value))
        box += about
        return box


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("formulas", Formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
