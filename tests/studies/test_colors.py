"""The colors that ship are those of the test images, and what an affine layer does to them follows from them."""

import numpy as np
import pytest
import torch
import typer

from cnlib.data import load
from cnlib.functional import context_norm
from cnlib.results import images as reader
from studies import colors as study


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    for module in (study, reader):
        monkeypatch.setattr(module, "COLORS", tmp_path)
    study.ship(["digits"])
    return reader.colors("digits")


def test_colors_are_the_moments_of_the_images_in_their_order(shipped):
    data = load("digits")
    pixels = data.test_images / 255
    np.testing.assert_allclose(shipped.mean, pixels.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(shipped.std, pixels.std((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(shipped.labels, data.test_labels)


def test_a_layer_acts_on_colors_as_on_images(shipped):
    data = load("digits")
    x = torch.from_numpy(data.test_images / 255).permute(0, 3, 1, 2)
    ids = torch.from_numpy(data.test_labels % 2)
    mu, var = torch.tensor([[0.3], [-1.0]]).double(), torch.tensor([[0.5], [4.0]]).double()
    y = context_norm(x, ids, mu, var, eps=0.0)
    sigma = var.sqrt()[ids].numpy()
    np.testing.assert_allclose((shipped.mean - mu[ids].numpy()) / sigma, y.mean((2, 3)), atol=1e-4)
    np.testing.assert_allclose(shipped.std / sigma, y.std((2, 3), correction=0), atol=1e-4)


def test_an_unknown_set_is_named(shipped):
    with pytest.raises(typer.BadParameter, match="no data set 'no-such-set'"):
        study.ship(["no-such-set"])
    with pytest.raises(ValueError, match=r"no colors of 'mnist'.*digits.*python -m studies.colors"):
        reader.colors("mnist")
