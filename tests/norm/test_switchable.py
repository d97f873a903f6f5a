"""SwitchableNorm against finite differences, its equations word for word, and the layers it is with one ratio at 1."""

import itertools

import pytest
import torch
from cases import (
    GRADIENTS,
    assert_same,
    check_gradients,
    check_layer_gradients,
    double,
    leaf,
    run,
    seeds,
    shake,
    shapes,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import cnlib
from cnlib.norm.index_sets import NORMALIZERS
from cnlib.norm.switchable import Switch

F = cnlib.functional
SETS = [names for k in (1, 2, 3) for names in itertools.permutations(NORMALIZERS, k)]
every_set = st.sampled_from(SETS)


def moments(x):
    """Mean and biased variance of each normalizer, each expanded to x: eq. (4) and (5) of the paper."""
    n, c = x.shape[:2]
    flat = x.reshape(n, c, -1)
    axes = {"in": (2,), "ln": (1, 2), "bn": (0, 2)}
    found = {}
    for name, over in axes.items():
        mean = flat.mean(over, keepdim=True)
        found[name] = mean.expand_as(flat), (flat - mean).square().mean(over, keepdim=True).expand_as(flat)
    return found


def word_for_word(x, w, u, eps, names=NORMALIZERS):
    """Eq. (3): every moment copied to the size of x."""
    flat = x.reshape(*x.shape[:2], -1)
    mean = sum(w[k] * moments(x)[name][0] for k, name in enumerate(names))
    var = sum(u[k] * moments(x)[name][1] for k, name in enumerate(names))
    return ((flat - mean) / (var + eps).sqrt()).reshape(x.shape)


def ratios(k, seed):
    return double((k,), seed).softmax(0)


def enough(shape):
    return shape[0] * torch.Size(shape[2:]).numel() > 1


@given(shape=shapes, names=every_set, seed=seeds, affine=st.booleans())
def test_gradients(shape, names, seed, affine):
    assume(enough(shape))
    layer = shake(cnlib.SwitchableNorm(shape[1], eps=1e-2, affine=affine, normalizers=names))
    check_layer_gradients(layer, double(shape, seed))
    layer.eval()
    if "bn" in names:
        layer.running_mean.copy_(double((shape[1],), 7)), layer.running_var.copy_(double((shape[1],), 8).exp())
    check_layer_gradients(layer, double(shape, seed))


@given(shape=shapes, names=every_set, seed=seeds)
def test_gradients_through_the_moments_it_returns(shape, names, seed):
    def function(x, w, u, weight, bias):
        return Switch.apply(x, w, u, weight, bias, None, None, names, 1e-2)[:-1]

    x = double(shape, seed).reshape(*shape[:2], -1)
    k, c = len(names), shape[1]
    check_gradients(function, x, ratios(k, 1), ratios(k, 2), double((c,), 3), double((c,), 4))


@given(shape=shapes, seed=seeds)
def test_manual_is_autograd_is_the_equation(shape, seed):
    results = []
    for function in (
        lambda *a: F.switchable_norm(*a, 1e-3, "manual"),
        lambda *a: F.switchable_norm(*a, 1e-3, "autograd"),
        lambda *a: word_for_word(*a, 1e-3),
    ):
        leaves = [leaf(t) for t in (double(shape, seed), ratios(3, seed + 1), ratios(3, seed + 2))]
        y = function(*leaves)
        results.append((y, torch.autograd.grad((y * double(shape, 5)).sum(), leaves)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


SINGLE = {"in": lambda c: cnlib.InstanceNorm(c, affine=True), "ln": cnlib.LayerNorm, "bn": cnlib.BatchNorm}


def with_one(name, c, certain):
    """A layer whose only ratio above 1e-26 is that of ``name``, or that has no other."""
    if not certain:
        return shake(cnlib.SwitchableNorm(c, normalizers=(name,)))
    layer = shake(cnlib.SwitchableNorm(c))
    with torch.no_grad():
        for logits in (layer.mean_logits, layer.var_logits):
            logits.fill_(-60.0)[NORMALIZERS.index(name)] = 60.0
    return layer


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("certain", [True, False])
@given(shape=shapes, seed=seeds)
def test_one_ratio_at_1_is_that_layer(name, certain, shape, seed):
    """In training and evaluation: outputs, gradients and, for BN, the running moments."""
    assume(torch.Size(shape[2:]).numel() > 1)
    ours, theirs = with_one(name, shape[1], certain), shake(SINGLE[name](shape[1]))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for step in range(2):
        x = double(shape, seed + step, scale=3, shift=2)
        (y, dx, grads), wanted = run(ours, x), run(theirs, x)
        assert_same((y, dx), wanted[:2])
        assert_same({key: grads[key] for key in ("weight", "bias")}, wanted[2])
    if name == "bn":
        assert_same({key: ours.state_dict()[key] for key in theirs.state_dict()}, dict(theirs.state_dict()))
    x = double(shape, seed + 5, scale=2)
    assert_same(run(ours.eval(), x)[:2], run(theirs.eval(), x)[:2])


def test_the_state_of_torchs_batch_norm_loads():
    theirs, ours = nn.BatchNorm2d(4).double(), with_one("bn", 4, True)
    theirs(double((8, 4, 3, 3), 0, shift=2))
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["mean_logits", "var_logits"] and not missing.unexpected_keys
    x = double((5, 4, 2, 2), 1)
    assert_same(run(ours.eval(), x)[:2], run(theirs.eval(), x)[:2])


@given(shape=shapes, seed=seeds)
def test_where_index_sets_are_the_same(shape, seed):
    """With one sample BN is IN in training; with one channel LN is IN."""
    w, u = ratios(3, seed), ratios(3, seed + 1)
    x = double((1, *shape[1:]), seed)
    moved = torch.stack((w[0] + w[2], w[1], 0 * w[2])), torch.stack((u[0] + u[2], u[1], 0 * u[2]))
    assert_same(F.switchable_norm(x, w, u), F.switchable_norm(x, *moved))
    x = double((shape[0], 1, *shape[2:]), seed)
    moved = torch.stack((w[0] + w[1], 0 * w[1], w[2])), torch.stack((u[0] + u[1], 0 * u[1], u[2]))
    assert_same(F.switchable_norm(x, w, u), F.switchable_norm(x, *moved))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_position_is_finite(gradient):
    """The variance of IN is 0 there, not 0/0, and the mixture's is not."""
    for shape in ((6, 3, 1, 1), (6, 3)):
        layer = cnlib.SwitchableNorm(3, gradient=gradient)
        y, dx, grads = run(layer, double(shape, 0).float())
        assert all(t.isfinite().all() for t in (y, dx, *grads.values()))
        assert 0.1 < y.std() < 2 and layer.running_var.isfinite().all()
        x = double(shape, 0)
        third = torch.full((3,), 1 / 3, dtype=torch.float64)
        assert_same(F.switchable_norm(x, third, third), word_for_word(x, third, third, 1e-5))


def test_a_constant_gives_the_bias():
    layer = shake(cnlib.SwitchableNorm(3))
    y, dx, _ = run(layer, torch.full((4, 3, 5), 7.0).double())
    assert_same(y, layer.bias.detach()[:, None].expand(4, 3, 5))
    assert dx.isfinite().all()


def test_scale_and_shift_of_x_do_not_matter():
    layer, x = shake(cnlib.SwitchableNorm(3, eps=0.0)), double((4, 3, 5), 0)
    assert_same(layer(100 * x + 7), layer(x))


def test_a_gradient_of_logits_sums_to_zero():
    layer = shake(cnlib.SwitchableNorm(3))
    _, _, grads = run(layer, double((4, 3, 5), 0))
    for name in ("mean_logits", "var_logits"):
        assert grads[name].abs().max() > 1e-3 and abs(grads[name].sum()) < 1e-12


def test_ratios_start_equal_and_follow_the_logits():
    layer = cnlib.SwitchableNorm(3, normalizers=("ln", "bn"))
    assert_same(layer.ratios(), (torch.tensor([0.5, 0.5]),) * 2)
    with torch.no_grad():
        layer.mean_logits.copy_(torch.tensor([3.0, 1.0]).log())
    assert_same(layer.ratios()[0], torch.tensor([0.75, 0.25]))
    assert_same(layer.ratios()[1], torch.tensor([0.5, 0.5]))


def test_evaluation_does_not_look_at_other_samples():
    layer = shake(cnlib.SwitchableNorm(3))
    layer(double((6, 3, 4), 0))
    x = double((5, 3, 4), 1)
    assert_same(layer.eval()(x)[:2], layer(x[:2]))
    assert not torch.allclose(layer.train()(x)[:2], layer(x[:2]))


def test_without_batch_norm_nothing_runs_and_nothing_is_shared():
    layer = cnlib.SwitchableNorm(3, normalizers=("in", "ln"))
    assert not list(layer.buffers())
    x = torch.randn(1, 3, 1)
    assert_same(layer(x), layer.eval()(x))


def test_statistics_can_be_held_and_taken_anew():
    layer, x = cnlib.SwitchableNorm(3).double(), double((12, 3, 4), 0, shift=3)
    with cnlib.frozen(layer):
        layer(x)
    assert_same(layer.running_mean, torch.zeros(3).double())
    cnlib.reestimate(layer, [x[:5], x[5:]])
    assert_same(layer.running_mean, x.mean((0, 2)))
    assert_same(layer.running_var, x.transpose(0, 1).flatten(1).var(1))


def test_large_mean_stays_accurate_in_float32():
    x = (double((8, 4, 8, 8), 0) + 1e4).float()
    layer = cnlib.SwitchableNorm(4)
    assert_same(layer(x).double(), layer.double()(x.double()), atol=4e-3, rtol=0)


@pytest.mark.parametrize("names", [(), "bn", ("bn", "bn"), ("gn",), ("in", None), 3, None])
def test_other_normalizers_are_refused(names):
    with pytest.raises(ValueError, match=r"normalizers=.*expected one or more of \('in', 'ln', 'bn'\)"):
        cnlib.SwitchableNorm(3, normalizers=names)


def test_one_value_a_channel_is_refused_in_training_only():
    layer = cnlib.SwitchableNorm(3)
    with pytest.raises(ValueError, match="SwitchableNorm: shape .* 1 value per channel"):
        layer(torch.zeros(1, 3, 1, 1))
    assert layer.eval()(torch.zeros(1, 3, 1, 1)).isfinite().all()
