"""Results that a page of prose quotes stand in a notebook that the same line links, where a cell asserts them."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "book").glob("*.md"))


@cache
def told(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def unfounded(line: str, folder: Path) -> list[str]:
    """Intervals of a line, "2.6 ± 1.1", that none of the notebooks it links has."""
    links = re.findall(r"\(([^()]*\.ipynb)[^()]*\)", line)
    return [
        quoted
        for quoted in re.findall(r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?", line)
        if not any(quoted in told(folder / link) for link in links)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_intervals_are_those_of_the_notebook_beside_them(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not {number: found for number, line in enumerate(lines, 1) if (found := unfounded(line, page.parent))}


def test_a_number_of_no_notebook_is_found(tmp_path):
    cell = nbformat.v4.new_markdown_cell("CN minus BN: -0.7 ± 1.0 points.")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    assert unfounded("-0.7 ± 1.0 ([one](one.ipynb))", tmp_path) == []
    assert unfounded("-0.8 ± 1.0 ([one](one.ipynb)), and 3 ± 1", tmp_path) == ["0.8 ± 1.0", "3 ± 1"]
    assert unfounded("-0.7 ± 1.0", tmp_path) == ["0.7 ± 1.0"]
