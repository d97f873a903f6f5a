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
    model = ConvNet(width=0.25, slots={"conv3": nn.Identity, "input": nn.BatchNorm2d})
    assert isinstance(model.norm3, nn.Identity) and isinstance(model.norm1, cnlib.BatchNorm)
    assert isinstance(model.norm0, nn.BatchNorm2d) and model.norm0.num_features == 3
    assert list(dict(model.named_children()))[:4] == ["norm0", "conv1", "norm1", "relu1"]
    assert model.conv4.out_channels == 64 and "norm0" not in dict(ConvNet().named_children())


def test_equal_seeds_give_equal_weights_whatever_the_norm():
    def build(factory):
        torch.manual_seed(3)
        return ConvNet(width=0.125, slots={"conv1": factory})

    plain, drawn = build(nn.BatchNorm2d), build(lambda c: nn.Linear(c, c))
    for name in ("conv1", "conv3", "linear"):
        torch.testing.assert_close(getattr(plain, name).weight, getattr(drawn, name).weight, rtol=0, atol=0)


def test_context_reaches_the_slot():
    model = ConvNet(width=0.125, slots={"conv3": lambda c: cnlib.ContextNorm(c, 2)}).eval()
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
        ({"slots": {"conv5": nn.Identity}}, "no norm slot conv5"),
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
