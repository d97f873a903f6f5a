"""The extension, and the built pages as files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cnbook import MATHJAX, execution_key, forget_stderr, own_matplotlib, plain_docstrings
from jupyter_cache import get_cache
from links import faults
from setup_cell import PLACEHOLDER


def project(root: Path) -> Path:
    (root / "cnlib").mkdir()
    (root / "cnlib" / "layer.py").write_text("x = 1\n", encoding="utf-8")
    (root / "requirements.txt").write_text("torch\n", encoding="utf-8")
    return root


def test_cache_follows_the_package_the_pins_and_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    keys = [execution_key(root)]
    assert execution_key(root) == keys[0]
    (root / "cnlib" / "layer.py").write_text("x = 2\n", encoding="utf-8")
    keys.append(execution_key(root))
    (root / "cnlib" / "record.json").write_text("{}", encoding="utf-8")
    keys.append(execution_key(root))
    (root / "requirements.txt").write_text("torch==1\n", encoding="utf-8")
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


def test_no_page_is_heavy(site: Path) -> None:
    """With its own figures under 3 MB; the frames of its sliders, which are in the page itself, under 1.5 MB."""
    heavy = []
    for path in [*site.glob("book/*.html"), *site.glob("notebooks/*.html")]:
        page = path.read_text(encoding="utf-8")
        figures = [site / "_images" / name for name in set(re.findall(r'src="[^"]*_images/([^"/]+)"', page))]
        frames = sum(map(len, re.findall(r'src="(data:image/[^"]+)"', page)))
        whole = path.stat().st_size + sum(figure.stat().st_size for figure in figures)
        if whole > 3e6 or frames > 1.5e6:
            heavy.append(f"{path.stem}: {whole / 1e6:.2f} MB, {frames / 1e6:.2f} of frames")
    assert not heavy


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


def test_what_stderr_left_in_the_cache_is_executed_again(tmp_path: Path) -> None:
    cache = get_cache(str(tmp_path / "cache"))
    for name in ("stdout", "stderr"):
        output = nbformat.v4.new_output("stream", name=name, text="Matplotlib is building the font cache")
        cell = nbformat.v4.new_code_cell("print()", outputs=[output], execution_count=1)
        notebook = nbformat.v4.new_notebook(cells=[cell])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        cache.cache_notebook_file(str(tmp_path / f"{name}.ipynb"), check_validity=False)
        assert len(cache.list_cache_records()) == 1, "the same code"
        forget_stderr(tmp_path / "cache")
        assert len(cache.list_cache_records()) == (name == "stdout")
        cache.clear_cache()
    forget_stderr(tmp_path / "nowhere")


CHAPTER = (
    "import matplotlib.pyplot as plt; from matplotlib import font_manager as f; print(plt.rcParams['lines.linewidth'])"
)


def test_matplotlib_has_its_fonts_before_a_chapter_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.write_text("no folder", encoding="utf-8")  # where nothing can be written, matplotlib says so
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(home))
    own_matplotlib(tmp_path / "own")
    assert list((tmp_path / "own").glob("fontlist*.json")), "made before"
    command = [sys.executable, "-c", CHAPTER]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("1.5\n", "")
