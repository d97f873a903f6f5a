"""ConvNet: the sizes Table IV prints, the slots, and small images."""

import pytest
import torch
from torch import nn

import cnlib
from cnlib.models import ConvNet


def sizes(model, x):
    shapes = {}
    for name, module in model.named_children():
        x = module(x)
        shapes[name] = tuple(x.shape[1:])
    return shapes


def test_sizes_of_table_iv():
    shapes = sizes(ConvNet(), torch.zeros(2, 3, 32, 32))
    printed = {
        "conv1": (64, 32, 32), "pool1": (64, 16, 16), "conv2": (128, 16, 16), "pool2": (128, 8, 8),
        "conv3": (128, 8, 8), "pool3": (128, 4, 4), "conv4": (256, 4, 4), "pool4": (256, 1, 1), "linear": (10,),
    }  # fmt: skip
    assert {name: shapes[name] for name in printed} == printed
    assert [m.padding for m in ConvNet().modules() if isinstance(m, nn.MaxPool2d)] == [0, 0, 0]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (9, 2), (32, 3), (64, 3)])
def test_any_image_size(size, channels):
    model = ConvNet(7, channels, size, width=0.125)
    assert model(torch.randn(4, channels, size, size)).shape == (4, 7)


def test_slots_default_width_and_order():
    model = ConvNet(width=0.25)
    assert list(dict(model.named_children()))[:4] == ["norm0", "conv1", "norm1", "relu1"]
    assert (
        model.norm0.num_features == 3 and model.conv4.out_channels == 64 and "norm0" not in str([*model.state_dict()])
    )
    cnlib.convert(model, {model.SLOTS["conv3"]: lambda c: nn.Identity(), model.SLOTS["input"]: nn.BatchNorm2d})
    assert isinstance(model.norm3, nn.Identity) and isinstance(model.norm1, cnlib.BatchNorm)
    assert isinstance(model.norm0, nn.BatchNorm2d) and model.norm0.num_features == 3


def test_context_reaches_the_slot():
    model = cnlib.convert(ConvNet(width=0.125), {"norm3": lambda c: cnlib.ContextNorm(c, 2)}).eval()
    with torch.no_grad():
        model.norm3.mean[1] += 1.0
    x = torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1)
    with cnlib.use_context(model, torch.tensor([0, 1])):
        first, second = model(x)
    assert not torch.allclose(first, second)
    with pytest.raises((ValueError, RuntimeError), match="norm3|context"):
        model(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"image_size": 7}, "at least 8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(**arguments)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"input is \(2, 1, 32, 32\), expected \(N, 3, 32, 32\)"):
        ConvNet(width=0.125)(torch.zeros(2, 1, 32, 32))
