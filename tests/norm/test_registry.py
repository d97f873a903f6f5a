"""The registry: a row makes a layer known by name, to convert, to the contract tests and on the API page."""

import pytest
import torch
from torch import nn

import cnlib
from cnlib.norm.registry import NORMS, create


def test_names():
    assert {"bn", "ln", "in", "gn", "rms", "mn", "cn", "sn", "en", "mode", "gated", "none"} <= set(NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_create(name):
    layer = cnlib.norm.create(name, 12)
    assert isinstance(layer, NORMS[name].layer) and layer.num_features == 12
    assert "num_features" not in NORMS[name].options


def test_defaults_and_options():
    assert [create("gn", c).num_groups for c in (64, 8, 12, 3)] == [8, 1, 1, 1]
    assert create("gn", 12, num_groups=4).num_groups == 4
    assert create("in", 4).affine and not create("in", 4, affine=False).affine
    assert create("cn", 4).num_contexts == create("mn", 4).num_components == 3
    layer = create("cn", 4, num_contexts=5, encoder="linear", start="glorot")
    assert (layer.num_contexts, layer.encoder, layer.start) == (5, "linear", "glorot")
    x = torch.randn(2, 4)
    assert create("none", 4)(x) is x and isinstance(create("none", 4), nn.Identity)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("batch", {}, ValueError, "'batch'; expected one of bn, ln"),
        ("bn", {"num_contexts": 3}, TypeError, "'bn' does not take num_contexts; the options are eps, momentum"),
        ("none", {"eps": 1.0, "affine": True}, TypeError, "'none' does not take affine, eps; the options are none"),
    ],
)
def test_errors_name_what_came_and_what_there_is(name, options, error, message):
    with pytest.raises(error, match=message):
        create(name, 4, **options)


@pytest.mark.parametrize("name", [name for name in NORMS if name != "none"])
def test_every_layer_is_exported(name):
    layer = NORMS[name].layer
    assert getattr(cnlib, layer.__name__) is layer and layer.__name__ in cnlib.__all__


class TestPlace:
    def model(self):
        return nn.Sequential(cnlib.norm.Place(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()

    def test_convert_fills_it_by_its_name(self):
        model = cnlib.convert(self.model().eval(), {"0": lambda c: cnlib.ContextNorm(c, 2)})
        assert model[0].num_features == 3 and not model[0].training
        # an empty place has no type of its own
        assert model[0].mean.dtype == torch.float64

    def test_no_pattern_means_it(self):
        model = cnlib.convert(self.model(), {"*": cnlib.LayerNorm})
        assert isinstance(model[0], cnlib.norm.Place) and isinstance(model[2], cnlib.LayerNorm)

    def test_none_empties_a_place(self):
        model = cnlib.convert(self.model(), {"2": lambda c: create("none", c)})
        cnlib.convert(model, {"2": cnlib.BatchNorm})
        assert isinstance(model[2], cnlib.BatchNorm)
