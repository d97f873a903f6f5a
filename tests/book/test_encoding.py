"""Every text file is read and written as UTF-8, whatever the locale of the machine."""

import ast
import pathlib
import subprocess
import sys

import formulas
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("cnlib", "book", "studies", "tests", "notebooks")
TEXT = {"open": 1, "fdopen": 1, "read_text": 0, "write_text": 1}  # function: the position of its encoding or mode
CODE_PAGES = ("cp1252", "cp1250", "gbk", "cp932", "cp949", "ascii")


def in_the_locale(tree: ast.AST) -> list[int]:
    """The lines of calls that open a text file, or talk to a process, in the encoding of the locale."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func
        # Image.open and the like have no encoding
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "").replace("open", "")
        name = "fdopen" if name == "fd" else name
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        mode = given.get("mode", call.args[1] if len(call.args) > 1 else None)
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        lines += [call.lineno] * (name in TEXT and not binary and "encoding" not in given)
        if getattr(function, "attr", "") in ("run", "Popen", "check_output") or name == "run":
            lines += [call.lineno] * bool({"text", "universal_newlines"} & set(given) and "encoding" not in given)
    return lines


def sources() -> list[pathlib.Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".ipynb"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_text_in_the_encoding_of_the_locale(folder: str) -> None:
    found = []
    for path in (path for path in sources() if path.relative_to(ROOT).parts[0] == folder):
        texts = [path.read_text(encoding="utf-8")]
        if path.suffix == ".ipynb":
            cells = nbformat.reads(texts[0], as_version=4).cells
            magic = str.maketrans({"%": "#", "!": "#"})
            texts = [
                "\n".join(line.translate(magic) if line.strip()[:1] in ("%", "!") else line for line in lines)
                for lines in (cell.source.splitlines() for cell in cells if cell.cell_type == "code")
                if not any("%pip" in line for line in lines)
            ]
        found += [f"{path.relative_to(ROOT)}:{line}" for text in texts for line in in_the_locale(ast.parse(text))]
    assert not found, 'write encoding="utf-8"'


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("open(p)", 1),
        ("open(p, 'w')", 1),
        ("open(p, mode='a')", 1),
        ("os.fdopen(f, 'w')", 1),
        ("p.read_text()", 1),
        ("p.read_text(errors='replace')", 1),
        ("p.write_text(t)", 1),
        ("run(c, text=True)", 1),
        ("open(p, 'rb'); open(p, encoding='utf-8'); Image.open(p); p.read_text(encoding='utf-8'); run(c)", 0),
    ],
)
def test_what_counts_as_such(code: str, count: int) -> None:
    assert len(in_the_locale(ast.parse(code))) == count


@pytest.mark.parametrize("page", CODE_PAGES)
def test_the_chapters_are_read_under_every_code_page(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = pathlib.Path.read_text

    def read(self: pathlib.Path, encoding: str | None = None, errors: str | None = None) -> str:
        return read_text(self, encoding=encoding or page, errors=errors)

    monkeypatch.setattr(pathlib.Path, "read_text", read)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert formulas.title(path)
        for formula in formulas.read(path):
            assert formulas.test_exists(formula.test)


WARNS = """
import sys
sys.path.insert(0, "book/_ext")
import address, cnlib.data, cnlib.results, cnlib.sweeps, cnlib.training, formulas, links, pathlib
from cnlib.training.records import provenance
import torch
address.resolve()
provenance(torch.device("cpu"), "x")
for name in cnlib.results.experiments():
    cnlib.results.load(name, "reduced")
for path in pathlib.Path("notebooks").glob("*.ipynb"):
    list(formulas.read(path))
"""


def test_nothing_warns_of_an_encoding_left_to_the_locale() -> None:
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning", "-c", WARNS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and str(ROOT) in line]
    ours = [line for line in warned if "site-packages" not in line]  # a .venv lies in the root
    assert done.returncode == 0 and not ours, done.stderr
