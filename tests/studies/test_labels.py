"""The labels that ship with records are those of the test images, in the order in which runs see them."""

import numpy as np
import pytest
import typer

from cnlib.data import load
from cnlib.results import contrasts
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
