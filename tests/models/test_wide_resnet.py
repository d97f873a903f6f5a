"""WRN-d-k: the published counts, where it halves the image, what stands in which slot."""

import math

import pytest
import torch
from torch import nn

import cnlib
from cnlib.models import MODELS, WideResNet


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "expected"),
    # by hand, WRN-10-1: convolutions 432 + (2304 + 2304) + (4608 + 9216 + 512) + (18432 + 36864 + 2048) = 76,720,
    # norms 2 (16 + 16 + 16 + 32 + 32 + 64 + 64) = 480, linear 650
    [(10, 1, 77_850), (16, 1, 175_066), (16, 2, 691_674), (28, 2, 1_467_610)],
)
def test_counts(depth, width, expected):
    assert count(WideResNet(10, 3, 32, width=width, depth=depth)) == expected


def test_groups_halve_the_image_and_widen():
    model, shapes = WideResNet(10, 3, 32, width=2, depth=16), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(32, 32, 32)] * 2 + [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2
    assert [block.shortcut is not None for block in model.blocks] == [True, False] * 3


def test_a_block_by_hand():
    torch.manual_seed(0)
    block = WideResNet(10, 3, 8, width=1, depth=10).blocks[1].eval()
    x = torch.randn(2, 16, 8, 8)

    def act(x):
        return torch.where(x > 0, x, 0.1 * x)

    y = act(x / math.sqrt(1 + 1e-5))  # running mean 0 and variance 1
    z = act(block.conv1(y) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(block(x), block.shortcut(y) + block.conv2(z))


def test_start_slope_and_options_of_its_norms():
    torch.manual_seed(0)
    model = WideResNet(10, 3, 32, depth=28, slope=0.0, bn_momentum=0.25, bn_eps=1e-3)
    conv = model.blocks[-1].conv2.weight
    assert float(conv.detach().var()) == pytest.approx(2 / (9 * 128), rel=0.02)
    assert (
        not any(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)) and not model.linear.bias.any()
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 25 and all((m.momentum, m.eps) == (0.25, 1e-3) for m in norms)
    seen = []
    model.linear.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model(torch.randn(2, 3, 32, 32))
    assert (seen[0] >= 0).all()


def test_slots():
    model = WideResNet(10, 3, 8, width=1, depth=10)
    cnlib.convert(model, {model.SLOTS["all"]: cnlib.BatchNorm, model.SLOTS["input"]: lambda c: cnlib.ContextNorm(c, 2)})
    assert sum(isinstance(m, cnlib.BatchNorm) for m in model.modules()) == 7
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) and model.norm0.num_features == 3
    assert MODELS["wide-resnet"] is WideResNet


@pytest.mark.parametrize(
    ("arguments", "message"), [({"depth": 12}, "depth=12"), ({"depth": 4}, "depth=4"), ({"width": 0.5}, "at least 1")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(**arguments)
    with pytest.raises(ValueError, match=r"input is \(2, 1, 32, 32\), expected \(N, 3, 32, 32\)"):
        WideResNet(depth=10)(torch.zeros(2, 1, 32, 32))
