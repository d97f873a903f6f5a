"""The set-up cell: put into notebooks once, stamped with the address in published copies only."""

import json
from pathlib import Path

import nbformat
import pytest
from setup_cell import PLACEHOLDER, SETUP_CELL, TAGS, insert, main, stamp


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# Title", id="title")]
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    return nbformat.v4.new_notebook(cells=cells)


def test_goes_before_the_first_code_cell_and_is_replaced_there() -> None:
    book = notebook("import torch", "x = 1")
    insert(book)
    insert(book)
    assert [cell.id for cell in book.cells] == ["title", "setup", "cell-0", "cell-1"]
    book.cells[1].source = "an older version"
    insert(book)
    assert book.cells[1].source == SETUP_CELL
    assert book.cells[1].metadata.tags == TAGS


def test_command_refreshes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "01_x.ipynb"
    nbformat.write(notebook("x = 1"), path)
    main([str(path)])
    assert "refreshed" in capsys.readouterr().out
    assert nbformat.read(path, 4).cells[1].source == SETUP_CELL
    main([str(path)])
    assert capsys.readouterr().out == ""


def test_without_an_address_it_says_what_to_do() -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    code = TransformerManager().transform_cell(SETUP_CELL)
    code = code.replace('find_spec("cnlib")', 'find_spec("no_such_package")')
    with pytest.raises(RuntimeError, match="clone the repository"):
        exec(code, {})


def test_stamped_it_installs_from_the_address() -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    published = stamp(json.dumps({"source": SETUP_CELL}), "https://host.org/owner/name", "abc123")
    assert PLACEHOLDER not in published
    code = TransformerManager().transform_cell(json.loads(published)["source"])
    ran: list[tuple[str, str]] = []

    class Shell:
        def run_line_magic(self, name: str, line: str) -> None:
            ran.append((name, line))

    exec(code.replace('find_spec("cnlib")', 'find_spec("no_such_package")'), {"get_ipython": Shell})
    assert ran == [("pip", 'install -q "cnlib[book] @ git+{ADDRESS}"')]
    assert 'ADDRESS = "https://host.org/owner/name@abc123"' in code
