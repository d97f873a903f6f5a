"""The audit of published ids finds the order in which they were stored, and reads nothing but numbers."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import typer

from cnlib import contexts, data
from cnlib.contexts.quality import mutual_information
from cnlib.records import RECORDS
from cnlib.training.records import read_lines
from studies import published_ids as study


class Call:
    def __reduce__(self):
        return os.getcwd, ()


def test_only_numbers_are_read():
    np.testing.assert_array_equal(study.read_ids(pickle.dumps([2, 0, 1])), [2, 0, 1])
    with pytest.raises(pickle.UnpicklingError, match="needs no"):
        study.read_ids(pickle.dumps([Call()]))


def test_parts_in_another_order_are_found():
    digits = data.load("digits").subset(1400)
    source = contexts.GMMContexts(3, seed=0).fit(digits.train_images)
    train, test = (source.assign(images).numpy() for images in (digits.train_images, digits.test_images))
    parts, order = np.split(train, 5), [0, 4, 1, 2, 3]
    found = list(study.rows(digits, np.concatenate([parts[j] for j in order]), test))
    by_type = {row["type"]: row for row in found}
    assert by_type["parts"]["order"] == order
    audits = {row["ids"]: row["accuracy"] - row["majority"] for row in found if row["type"] == "audit"}
    assert audits["train, parts in order"] > audits["train, as stored"] + 0.1 and audits["test"] > 0.1
    assert np.array(by_type["parts"]["counts"]).shape == (5, 5, 3, 10)


def test_the_command_says_what_it_needs():
    pytest.importorskip("typer")
    done = subprocess.run([sys.executable, "-m", "studies.published_ids"], capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "--repository" in done.stderr


def test_what_is_no_clone_or_has_no_such_ids_is_said(tmp_path, monkeypatch):
    clone, other = tmp_path / "clone", tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), *identity, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    for repository, reason in ((clone, "gmm_digits_tr_labels"), (other, "not a git repository")):
        with pytest.raises(typer.BadParameter, match=f"is no clone of .*{reason}"):
            study.main(str(repository), tmp_path, "digits")


def test_the_record_in_the_package_is_whole_and_holds_no_ids():
    path = RECORDS / "audits" / "cifar10.jsonl"
    header, *lines = read_lines(path)
    assert len(header["commit"]) == 40 and path.stat().st_size < 20_000
    by_type = {row["type"]: row for row in lines}
    counts = np.array(by_type["parts"]["counts"])
    assert (counts.sum((2, 3)) == 10_000).all()
    bits = np.array([[mutual_information(table) for table in line] for line in counts])
    assert study.best_order(bits) == by_type["parts"]["order"] == [0, 4, 1, 2, 3]
