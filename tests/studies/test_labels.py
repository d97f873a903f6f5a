"""The labels that ship with records are those of the test images, in the order in which runs see them."""

import os

import numpy as np
import pytest
import torch
import typer

from cnlib.data import load
from cnlib.results import contrasts
from cnlib.training import Config
from cnlib.training.records import Run, pack, write_lines
from studies import labels


def test_labels_are_written_and_read_in_the_order_of_the_runs(tmp_path, monkeypatch):
    for module in (labels, contrasts):
        monkeypatch.setattr(module, "LABELS", tmp_path)
    data = load("digits")
    labels.ship(["digits"], 100)
    labels.ship(["digits"], None)
    np.testing.assert_array_equal(contrasts.labels("digits", 100), data.subset(None, 100).test_labels)
    np.testing.assert_array_equal(contrasts.labels("digits", None), data.test_labels)


@pytest.mark.parametrize(
    ("name", "size", "message"), [("no-such-set", None, "no data set 'no-such-set'"), ("digits", 0, "test_size=0")]
)
def test_wrong_names_and_sizes_are_wrong_usage(name, size, message):
    with pytest.raises(typer.BadParameter, match=message):
        labels.ship([name], size)


def test_labels_that_were_written_anew_are_read_anew(tmp_path, monkeypatch):
    for module in (labels, contrasts):
        monkeypatch.setattr(module, "LABELS", tmp_path)
    path = tmp_path / "some-all.jsonl"
    for kept in ([0, 1], [2, 3, 1]):
        write_lines(path, [{"type": "header", "data": "sum", "labels": pack(torch.tensor(kept))}])
        os.utime(path, ns=(len(kept), len(kept)))
        found = contrasts.labels("some", None)
        assert found.tolist() == kept
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 7


@pytest.mark.parametrize("text", ["", '{"type": "hea', '{"type": "header", "data": "sum", "labels": "zzzz"}\n'])
def test_damaged_labels_are_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(contrasts, "LABELS", tmp_path)
    (tmp_path / "some-all.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"some-all\.jsonl.*restore or remove the record"):
        contrasts.labels("some", None)


def test_a_run_on_other_data_is_not_judged_by_these_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(contrasts, "LABELS", tmp_path)
    line = {"type": "header", "data": "ours", "labels": pack(torch.tensor([0, 1, 1]))}
    write_lines(tmp_path / "digits-all.jsonl", [line])

    def run(data, guesses):
        final = {"predictions": {"test": pack(torch.tensor(guesses))}}
        return Run("a run", Config(test_size=None), {"data": data}, {}, "finished", final=final)

    np.testing.assert_array_equal(contrasts.correct(run("ours", [0, 0, 1]), "test"), [True, False, True])
    for other in (run("theirs", [0, 0, 1]), run("ours", [0, 1])):
        with pytest.raises(ValueError, match="a run has . predictions on data .*, the labels of digits-all .*studies"):
            contrasts.correct(other, "test")
