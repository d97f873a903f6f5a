"""Paths shared by the tests of the book, its notebooks and its built pages."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def site() -> Path:
    """The built book."""
    path = ROOT / "_build" / "html"
    if not (path / "index.html").is_file():
        pytest.skip("no built book in _build/html; run make book first")
    return path
