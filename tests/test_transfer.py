"""The swap is an exact inverse with the invariances that are claimed of it, and the readings are what they say."""

import numpy as np
import pytest
import torch
from torch import nn

import cnlib
from cnlib.transfer import (
    TRANSFERS,
    affine,
    by_instance,
    color_distance,
    gain_and_offset,
    moments_of,
    readings,
    red_over_blue,
    swap,
    wasserstein,
)


def layer(contexts=3, channels=3, **options):
    torch.manual_seed(0)
    made = cnlib.ContextNorm(channels, contexts, **options).double()
    nn.init.normal_(made.mean), nn.init.normal_(made.log_var)
    return made


X = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("affine_too", [False, True])
def test_a_swap_normalizes_under_one_context_and_undoes_it_under_another(affine_too):
    cn = layer(affine=affine_too, eps=0.1)
    if affine_too:
        nn.init.uniform_(cn.weight, 0.5, 2), nn.init.normal_(cn.bias)
    swapped = swap(X, cn, 0, 2)
    ids = torch.zeros(5, dtype=torch.long)
    # so that the layer, told the one of the swapped and the other of the original, sees no difference
    torch.testing.assert_close(cn(swapped, ids + 2), cn(X, ids))
    mean, var = cn.moments()
    by_hand = (X - mean[0, :, None, None]) * ((var[2] + 0.1) / (var[0] + 0.1)).sqrt()[:, None, None]
    torch.testing.assert_close(swapped, by_hand + mean[2, :, None, None])
    assert (swapped - X).abs().max() > 0.5


def test_there_and_back_is_the_identity_and_ways_compose():
    cn = layer()
    torch.testing.assert_close(swap(swap(X, cn, 0, 1), cn, 1, 0), X, rtol=0, atol=1e-12)
    torch.testing.assert_close(swap(swap(X, cn, 0, 1), cn, 1, 2), swap(X, cn, 0, 2), rtol=0, atol=1e-12)
    for r in range(3):
        assert torch.equal(swap(X, cn, r, r), X)


def test_equal_contexts_change_nothing_to_the_last_bit():
    cn = layer(channels=2)
    with torch.no_grad():
        cn.mean[1], cn.log_var[1] = cn.mean[0], cn.log_var[0]
    for x in (X[:, :2], X[:, :2].float(), X[:, :2, 0, 0]):
        assert torch.equal(swap(x, cn, 0, 1), x) and swap(x, cn, 0, 2).dtype == x.dtype
    start = cnlib.ContextNorm(2, 2)
    assert torch.equal(swap(X[:, :2], start, 0, 1), X[:, :2])


def test_what_all_contexts_have_in_common_cancels():
    """mu_r + delta sigma_r, and sigma_r times a constant: another network, the same swap."""
    cn, other = layer(eps=0.0), layer(eps=0.0)
    delta, factor = torch.tensor([0.3, -2.0, 1.0]), 1.7
    with torch.no_grad():
        other.mean += delta * (other.log_var / 2).exp()
        other.log_var += 2 * np.log(factor)
    torch.testing.assert_close(swap(X, other, 0, 1), swap(X, cn, 0, 1))
    ids = torch.zeros(5, dtype=torch.long)
    assert (other(X, ids) - cn(X, ids)).abs().max() > 0.1
    with torch.no_grad():  # one context alone does not
        other.mean[1] += 0.1
    assert (swap(X, other, 0, 1) - swap(X, cn, 0, 1)).abs().max() > 0.05


def test_bad_arguments_are_refused():
    cn = layer()
    with pytest.raises(TypeError, match=r"layer is a BatchNorm, expected a ContextNorm"):
        swap(X, cnlib.BatchNorm(3), 0, 1)
    for source, target, name in ((3, 0, "source=3"), (0, -1, "target=-1"), (True, 0, "source=True"), (0, 1.0, "1.0")):
        with pytest.raises(ValueError, match=rf"{name}: expected a context, a whole number from 0 to 2"):
            swap(X, cn, source, target)
    with pytest.raises(ValueError, match="3"):
        swap(X[:, :2], cn, 0, 1)


def two_sets(n=40):
    draw = torch.Generator().manual_seed(2)
    day = 0.5 + 0.2 * torch.randn(n, 3, 6, 8, generator=draw, dtype=torch.float64)
    scale = torch.tensor([0.15, 0.1, 0.05], dtype=torch.float64)[:, None, None]
    night = scale * (1.5 + torch.randn(n, 3, 6, 8, generator=draw, dtype=torch.float64))
    return torch.cat([day, night]), torch.arange(2).repeat_interleave(n)


def test_moments_and_each_transfer_does_what_its_name_says():
    x, ids = two_sets()
    m = moments_of(x, ids, 2)
    day = x[:40]
    torch.testing.assert_close(m.var[0], day.var((0, 2, 3), correction=0))
    by_moments = moments_of(torch.cat([TRANSFERS["moments"](day, m, 0, 1), day]), ids, 2)
    torch.testing.assert_close((by_moments.mean[0], by_moments.var[0]), (m.mean[1], m.var[1]))
    shifted, exposed = (TRANSFERS[name](day, m, 0, 1) for name in ("shift", "exposure"))
    for images in (shifted, exposed):
        torch.testing.assert_close(images.mean((0, 2, 3)), m.mean[1])
    torch.testing.assert_close(shifted.var((0, 2, 3), correction=0), m.var[0])
    assert not TRANSFERS["exposure"](torch.zeros_like(day), m, 0, 1).any()  # black stays black
    own = by_instance(day, m, 0, 1)
    torch.testing.assert_close(own.mean((2, 3)), m.mean[1].expand(40, 3))
    torch.testing.assert_close(own.std((2, 3), correction=0), m.own_std[1].expand(40, 3))
    assert torch.equal(TRANSFERS["none"](day, m, 0, 1), day)
    with pytest.raises(ValueError, match="context 1 has 1 images"):
        moments_of(x[:41], ids[:41], 2)


def test_a_context_norm_at_the_datas_moments_swaps_as_they_do():
    x, ids = two_sets()
    cn = cnlib.ContextNorm(3, 2, eps=1e-9).double()
    cn.start_from(x, ids)
    m = moments_of(x, ids, 2)
    torch.testing.assert_close(swap(x[:40], cn, 0, 1), TRANSFERS["moments"](x[:40], m, 0, 1), rtol=0, atol=1e-5)
    gain, offset = gain_and_offset(m.mean, m.var, 1, 0)
    torch.testing.assert_close(affine(x[40:], gain, offset).mean((0, 2, 3)), m.mean[0])


def test_wasserstein_by_hand():
    assert wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0])) == pytest.approx(3)  # 2 and 4
    assert wasserstein(torch.tensor([0.0]), torch.tensor([0.0, 1.0, 2.0])) == pytest.approx(1)
    a, b = (torch.randn(500, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert wasserstein(a, b) == pytest.approx(float((a.sort().values - b.sort().values).abs().mean()), abs=1e-6)
    assert wasserstein(a, a + 0.25) == pytest.approx(0.25, abs=1e-6) and wasserstein(a, a) == 0
    with pytest.raises(ValueError, match="500 and 0 numbers"):
        wasserstein(a, a[:0])


def test_readings_by_hand():
    x = torch.tensor([0.5, 0.5, 0.25])[None, :, None, None].expand(2, 3, 4, 4).clone()
    assert red_over_blue(x) == pytest.approx(2)
    assert color_distance(x, x + torch.tensor([0.1, 0.2, 0.3])[:, None, None]) == pytest.approx(0.2)
    x[0, 0] = 1.5
    found = readings(x, torch.zeros(1, 3, 2, 2))
    assert found["clipped"] == pytest.approx(1 / 6)
    assert found["red_blue"] == pytest.approx(0.75 / 0.25)
    assert found["w1"] == pytest.approx((0.75 + 0.5 + 0.25) / 3)
