"""Every numbered formula has a source, code that can be imported and a test that exists."""

import json

import formulas
import pytest
from formulas import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORMULAS = [(path.name, formula) for path in NOTEBOOKS for formula in formulas.read(path)]


@pytest.mark.parametrize(("name", "formula"), FORMULAS, ids=[f.number for _, f in FORMULAS])
def test_code_and_test_exist(name, formula):
    assert formulas.find(formula.code) is not None
    assert formulas.test_exists(formula.test), f"{name}: {formula.number} names {formula.test}"
    assert formula.number.split(".")[0] == str(int(name[:2])), f"{name} numbers a formula {formula.number}"


def test_numbers_are_unique():
    numbers = [formula.number for _, formula in FORMULAS]
    assert len(numbers) == len(set(numbers))


def write(tmp_path, source, metadata):
    path = tmp_path / "99_x.ipynb"
    cell = {"cell_type": "markdown", "id": "c", "metadata": metadata, "source": [source]}
    path.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    return path


def test_a_formula_without_test_is_refused(tmp_path):
    metadata = {"formulas": {"9.1": {"source": "s", "code": "cnlib", "test": ""}}}
    with pytest.raises(ValueError, match=r"9\.1 lacks test"):
        list(formulas.read(write(tmp_path, "$$x \\tag{9.1}$$", metadata)))


def test_metadata_without_a_formula_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"numbered 9\.2"):
        list(formulas.read(write(tmp_path, "$$x$$", {"formulas": {"9.2": {}}})))


def test_what_does_not_exist_is_not_found():
    assert not formulas.test_exists("tests/norm/test_batch.py::test_nothing")
    assert not formulas.test_exists("notebooks/99_none.ipynb#x")
    with pytest.raises(AttributeError):
        formulas.find("cnlib.norm.batch.nothing")
