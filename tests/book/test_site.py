"""The extension, and the built pages as files."""

import os
from pathlib import Path

import pytest
from cnbook import MATHJAX, execution_key, plain_docstrings
from links import faults
from setup_cell import PLACEHOLDER


def project(root: Path) -> Path:
    (root / "cnlib").mkdir()
    (root / "cnlib" / "layer.py").write_text("x = 1\n")
    (root / "requirements.txt").write_text("torch\n")
    return root


def test_cache_follows_the_package_the_pins_and_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    keys = [execution_key(root)]
    assert execution_key(root) == keys[0]
    (root / "cnlib" / "layer.py").write_text("x = 2\n")
    keys.append(execution_key(root))
    (root / "cnlib" / "record.json").write_text("{}")
    keys.append(execution_key(root))
    (root / "requirements.txt").write_text("torch==1\n")
    keys.append(execution_key(root))
    monkeypatch.setenv("CNLIB_SETTING", "1")
    keys.append(execution_key(root))
    assert len(set(keys)) == len(keys)
    (root / "cnlib" / "__pycache__").mkdir()
    (root / "cnlib" / "__pycache__" / "layer.pyc").write_bytes(os.urandom(8))
    assert execution_key(root) == keys[-1]


def test_docstrings_are_plain_text() -> None:
    lines = ["x: (N, C, *); |x| and ``a * b`` or `b_`", "    a: first", "        goes on", "    b: next", "y_: a name"]
    plain_docstrings(None, "", "", None, None, lines)  # type: ignore[arg-type]
    expected = ["", "| a: first", "  goes on", "| b: next", "", r"y\_: a name"]
    assert lines == [r"x: (N, C, \*); \|x\| and ``a * b`` or ``b_``", *expected]


def test_built_pages_have_no_dead_link_and_load_nothing_from_outside(site: Path) -> None:
    assert list(faults(site)) == []


def test_built_pages_name_no_place_on_this_machine(site: Path) -> None:
    here = str(Path(__file__).parents[2])
    assert not [page.name for page in site.rglob("*.html") if here in page.read_text(encoding="utf-8")]


def test_mathjax_lies_beside_the_pages(site: Path) -> None:
    assert (site / "_static" / "mathjax" / MATHJAX).stat().st_size > 1_000_000


def test_published_notebooks_carry_the_address(site: Path) -> None:
    from address import resolve

    published = sorted((site / "_sources" / "notebooks").glob("*.ipynb"))
    if not published or resolve() is None:
        pytest.skip("no chapter, or no repository address is known here")
    assert not [path.name for path in published if PLACEHOLDER in path.read_text(encoding="utf-8")]
