"""The set-up cell every chapter starts with, kept here once.

``python book/_ext/setup_cell.py notebooks/*.ipynb`` puts the current one into each notebook. The source tree
holds the cell without an address; the build writes the address into the copies it publishes, so that a fork
publishes notebooks that install the fork.
"""

import os
import sys
from pathlib import Path

import nbformat

PLACEHOLDER = "@ADDRESS@"
TAGS = ["setup", "hide-cell"]
SETUP_CELL = f'''\
# Set-up: installs the book's package where it is missing, as on Colab; elsewhere it does nothing.
import importlib.util

ADDRESS = "{PLACEHOLDER}"  # written when the book is published
if importlib.util.find_spec("cnlib") is None:
    if ADDRESS.startswith("@"):
        raise RuntimeError(
            "cnlib is not installed, and this copy of the notebook does not know where it comes from: "
            "clone the repository and run `make setup`, or set ADDRESS to https://host/owner/name"
        )
    %pip install -q "cnlib[book] @ git+{{ADDRESS}}"
'''.rstrip("\n")


def is_setup(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and "setup" in cell.metadata.get("tags", [])


def insert(notebook: nbformat.NotebookNode) -> None:
    """Replace the set-up cell, or put one before the first code cell."""
    cell = nbformat.v4.new_code_cell(SETUP_CELL, id="setup", metadata={"tags": TAGS})
    code = [index for index, other in enumerate(notebook.cells) if other.cell_type == "code"]
    first = code[0] if code else len(notebook.cells)
    replaced = 1 if code and is_setup(notebook.cells[first]) else 0
    notebook.cells[first : first + replaced] = [cell]


def stamp(text: str, address: str, commit: str = "") -> str:
    """The text of a notebook that installs from ``address``, at ``commit`` where one is given."""
    return text.replace(PLACEHOLDER, f"{address}@{commit}" if commit else address)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        insert(notebook)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(after, encoding="utf-8")
            os.replace(temporary, path)
            print(f"refreshed {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
