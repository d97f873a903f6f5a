"""What every notebook and page in the source tree has to keep to."""

import re
import subprocess
from pathlib import Path

import layers
import nbformat
import pytest
import yaml
from setup_cell import SETUP_CELL, TAGS

import cnlib
from cnlib.norm.registry import NORMS, Entry

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Spelled in halves, so that this file does not contain what it looks for.
FORBIDDEN = ["pypi" + ".org", "python" + "hosted", "/work" + "/", "/root" + "/", "pip install " + "cnlib"]


def listed() -> list[str]:
    """Every page named in _toc.yml."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def test_table_of_contents_lists_every_page() -> None:
    pages = {path.stem for path in (ROOT / "book").glob("*.md")}
    assert {f"book/{page}" for page in pages} | {f"notebooks/{p.stem}" for p in NOTEBOOKS} == set(listed())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_starts_with_the_setup_cell(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert book.cells[0].cell_type == "markdown"
    # in both languages, in the order that book/intro.md says
    assert re.search("in 30 seconds.*en 30 secondes", book.cells[0].source, re.IGNORECASE | re.DOTALL)
    assert code[0].source == SETUP_CELL, "run make cells"
    assert code[0].metadata.tags == TAGS
    kept = [cell for cell in code if "keep_output" in cell.metadata.get("tags", [])]
    assert not any(cell.outputs for cell in code if cell not in kept), "run make format"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_opening_takes_half_a_minute(path: Path) -> None:
    """At 280 words a minute; French says the same in some more words, which are shorter."""
    opening = nbformat.read(path, as_version=4).cells[0].source
    for name, longest in (("In 30 seconds", 140), ("En 30 secondes", 165)):
        (text,) = re.findall(rf"\*\*{name}\.\*\*(.*?)(?:\n\n|\Z)", opening, re.DOTALL)
        assert len(text.split()) <= longest, f"{path.stem}: {name} has {len(text.split())} words"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cell_ids_are_fixed_and_readable(path: Path) -> None:
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids)
    # what tools make up is hexadecimal, eight digits or a UUID
    made_up = [name for name in ids if re.fullmatch(r"[0-9a-f]{8}|[0-9a-f-]{36}", name)]
    assert not made_up


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_only_asserts_is_folded(path: Path) -> None:
    """Assertions of what the text says keep it true, and are in a reader's way."""
    claims = [cell for cell in nbformat.read(path, as_version=4).cells if cell.id.endswith("-claims")]
    assert not [cell.id for cell in claims if not {"hide-cell", "hide-input"} & {*cell.metadata.get("tags", [])}]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_roles_in_notebooks(path: Path) -> None:
    text = "".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert not re.findall(r"\{[a-z:]+\}`", text), "Colab shows MyST roles raw; use a plain link"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *sorted((ROOT / "book").glob("*.md"))], ids=lambda path: path.stem)
def test_a_numbered_formula_breaks_its_lines_with_cr(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    numbered = [formula for formula in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL) if r"\tag" in formula]
    assert not [formula for formula in numbered if r"\\" in formula], (
        r"the page puts split around \\, and then \tag fails"
    )


def test_api_page_names_everything_public() -> None:
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    assert "```{norm-layers}" in page
    page += "\n".join([*layers.entries(), ""])
    missing = [name for name in cnlib.__all__ if f"cnlib.{name}\n" not in page]
    assert not missing


def test_a_new_layer_has_its_line_on_the_api_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(cnlib.BatchNorm):
        def start_from(self) -> None: ...

    monkeypatch.setitem(NORMS, "scaled", Entry("scaled BN", Scaled))
    assert layers.entries()[-2:] == [f".. autoclass:: {__name__}.Scaled", "   :members: start_from"]


def test_readme_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(example, names := {})
    assert names["y"].shape == names["x"].shape


def test_a_paper_that_a_chapter_names_by_its_arxiv_number_is_in_the_bibliography() -> None:
    """Of chapter 2, which has a list of papers; the pages of the book cite by key."""
    references = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    book = nbformat.read(ROOT / "notebooks" / "02_batch_normalization.ipynb", 4)
    (papers,) = [cell.source for cell in book.cells if cell.source.startswith("## Papers")]
    named = re.findall(r"https://arxiv\.org/abs/[\d.]+\d", papers)
    assert len(named) >= 6
    assert not [address for address in named if address not in references]


def test_errata_page_is_executed() -> None:
    assert "kernelspec" in (ROOT / "book" / "errata.md").read_text(encoding="utf-8").split("---")[1]


def test_no_registry_hosts_or_machine_paths() -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listing = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: the list of committed files is unknown")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".npz", ".png"}:
            text = path.read_text(encoding="utf-8")
            found += [f"{name}: {word}" for word in FORBIDDEN if word in text]
    assert not found


def test_a_sample_has_one_name_in_french() -> None:
    """The glossary's. An "échantillon" is many samples, in French."""
    pages = [*NOTEBOOKS, *sorted((ROOT / "book").glob("*.md"))]
    assert "*Observation.*" in (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    assert not [page.name for page in pages if "échantillon" in page.read_text(encoding="utf-8").lower()]


def test_every_figure_says_in_words_what_it_shows():
    """Elsewhere the name of a file would be read out; moving figures have words of their own."""
    missing = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            drawn = cell.cell_type == "code" and cell.source.rstrip().endswith("\nfig")
            if drawn and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
                missing.append(f"{path.name}: {cell.id}")
    assert not missing
