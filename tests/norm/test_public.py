"""SwitchableNorm and ModeNorm beside the public layers of their authors: where these are right both agree, and where
they are not, or choose otherwise, they differ by what is worked out here."""

import pytest
import torch
from cases import GRADIENTS, assert_same, double, leaf, run, shake
from public import PublicMode, PublicSwitch

import cnlib

N, C, H, W = SHAPE = (6, 5, 4, 3)
CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def batch(seed, shape=SHAPE):
    """Samples and channels that differ in mean and spread."""
    spread, mean = (double((*shape[:2], 1, 1), seed + more) for more in (1000, 2000))
    return double(shape, seed) * spread.exp() + mean


def pair(ours, theirs):
    """The two in float64 with the same parameters, away from their start."""
    parameters = dict(shake(theirs).named_parameters())
    assert set(parameters) == {name for name, _ in ours.named_parameters()}
    ours = ours.double()
    ours.load_state_dict(parameters, strict=False)
    return ours, theirs


def assert_same_layer(ours, theirs, x):
    """Output, and the gradients of x and of all parameters."""
    assert_same(run(ours, x), run(theirs, x), **CLOSE)


def switch(gradient="manual", **options):
    return pair(cnlib.SwitchableNorm(C, gradient=gradient), PublicSwitch(C, **options))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_with_the_biased_variance_switchable_norm_is_the_public_layer(gradient):
    """In training, and then in evaluation under the running moments of five batches."""
    ours, theirs = switch(gradient, unbiased=False)
    for seed in range(5):
        assert_same_layer(ours, theirs, batch(seed))
    # a momentum says what a batch brings, and `kept` what it leaves; their variance starts at 0 and is over m, ours
    # starts at 1 and is over m - 1
    m = N * H * W
    assert ours.momentum == pytest.approx(1 - theirs.kept)
    assert_same(ours.running_mean, theirs.running_mean, **CLOSE)
    assert_same(ours.running_var, 0.9**5 + theirs.running_var * m / (m - 1), **CLOSE)
    ours.running_var.copy_(theirs.running_var)
    assert_same_layer(ours.eval(), theirs.eval(), batch(9))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("side", [2, 4, 28])
def test_the_unbiased_variance_makes_the_output_smaller_by_what_lies_inside_samples(side, training):
    """Each variance grows by its part inside samples and channels over L - 1, and the means stay: a factor from
    ((L - 1) / L)^(1/2) to 1 of each sample and channel. Gradients are those of this product."""
    ours, theirs = switch(unbiased=True)
    x = leaf(batch(0, (N, C, side, side)))
    with torch.no_grad():
        theirs(batch(1))
    ours.running_mean.copy_(theirs.running_mean), ours.running_var.copy_(theirs.running_var)
    ours.train(training), theirs.train(training)

    inside = x.var((2, 3), correction=0)  # (N, C)
    var = [inside, x.var((1, 2, 3), correction=0)[:, None], theirs.running_var]
    parts = [inside, inside.mean(1, keepdim=True), torch.zeros(C)]
    if training:
        var[2], parts[2] = x.var((0, 2, 3), correction=0), inside.mean(0)
    u, others = ours.ratios()[1], side**2 - 1
    v, within = (sum(ratio * value for ratio, value in zip(u, values, strict=True)) for values in (var, parts))
    factor = ((v + ours.eps) / (v + within / others + ours.eps)).sqrt()
    bias = ours.bias[:, None, None]
    expected = factor[..., None, None] * (ours(x) - bias) + bias
    found = theirs(x)

    g, names = double(tuple(x.shape), 99), [name for name, _ in ours.named_parameters()]
    of = [[x, *(dict(layer.named_parameters())[name] for name in names)] for layer in (ours, theirs)]
    # the last are ours' and theirs' own
    gradients = [torch.autograd.grad(y, leaves, g) for y, leaves in zip((expected, found), of, strict=True)]
    assert_same(found, expected, **CLOSE)
    assert_same(*gradients, **CLOSE)
    assert (others / (others + 1)) ** 0.5 <= factor.min() and factor.max() < 1
    assert (1 - factor).max() * others > 0.2  # it is no rounding


def test_a_last_gamma_is_a_weight_of_0():
    theirs = PublicSwitch(C, unbiased=False, last_gamma=True).double()
    ours = cnlib.SwitchableNorm(C).double()
    torch.nn.init.zeros_(ours.weight)
    assert_same_layer(ours, theirs, batch(0))
    assert not ours(batch(0)).any()


def test_without_a_moving_average_its_sums_become_the_moments_of_all_batches():
    ours, theirs = switch(unbiased=False, moving_average=False)
    batches = [batch(seed) for seed in range(4)]
    with torch.no_grad():
        for x in batches:
            theirs(x)
    theirs.average(len(batches))
    cnlib.reestimate(ours, batches)
    m = N * H * W * len(batches)
    assert_same(ours.running_mean, theirs.running_mean, **CLOSE)
    assert_same(ours.running_var, theirs.running_var * m / (m - 1), **CLOSE)


def modes(k, gradient="manual"):
    return pair(cnlib.ModeNorm(C, k, gradient=gradient), PublicMode(C, k))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_mode_norm_is_the_public_layer(k, gradient):
    """In training; and in evaluation, under the same moments."""
    ours, theirs = modes(k, gradient)
    for seed in range(3):
        assert_same_layer(ours, theirs, batch(seed))
    for running, value in zip((ours.running_mean, ours.running_var), theirs.running_moments(), strict=True):
        running.copy_(value)
    assert_same_layer(ours.eval(), theirs.eval(), batch(9))


def weighted(layer, x):
    """Mean and variance of each mode in a batch, and of how many equal values these are."""
    share = layer.gates(x).detach()
    share = share / share.sum(0)
    mean = torch.einsum("nk,nchw->kc", share, x) / (H * W)
    square = torch.einsum("nk,nkchw->kc", share, (x[:, None] - mean[..., None, None]).square()) / (H * W)
    return mean, square, H * W / share.square().sum(0)[:, None]


def test_running_moments_of_modes_differ_by_their_start_and_by_the_variance_of_means():
    """Theirs start at 0, and their variance has that of the batches' means in it; ours start with the first batch, and
    take the mean of unbiased variances."""
    ours, theirs = modes(2)
    batches, steps = [batch(seed) for seed in range(6)], 6
    with torch.no_grad():
        for x in batches:
            ours(x), theirs(x)
    means, variances, values = (
        torch.stack(column) for column in zip(*(weighted(ours, x) for x in batches), strict=True)
    )
    weights = 0.1 * 0.9 ** torch.arange(steps - 1, -1, -1.0).double()
    assert_same(weights.sum(), torch.tensor(1 - 0.9**steps).double())
    mean, var = theirs.running_moments()
    assert_same(mean, torch.einsum("t,tkc->kc", weights, means), **CLOSE)
    assert_same(var, torch.einsum("t,tkc->kc", weights, variances + means.square()) - mean.square(), **CLOSE)

    weights[0] = 0.9 ** (steps - 1)
    unbiased = variances * values / (values - 1)
    assert_same(ours.running_mean, torch.einsum("t,tkc->kc", weights, means), **CLOSE)
    assert_same(ours.running_var, torch.einsum("t,tkc->kc", weights, unbiased), **CLOSE)


def test_a_mean_of_squares_loses_the_variance_of_modes_far_from_0():
    """E[x^2] - E[x]^2 in float32, of values about 10,000 with variance 1."""
    ours, theirs = (layer.float() for layer in modes(2))
    ours.momentum = theirs.rate = 1.0
    torch.nn.init.zeros_(ours.gate.weight), torch.nn.init.zeros_(theirs.gate.weight)
    x = (double((64, C, 8, 8), 0) + 1e4).float()
    with torch.no_grad():
        ours(x), theirs(x)
    # squares of 10,000 are told apart in steps of 8
    assert (theirs.running_moments()[1] - 1).abs().min() >= 1
    assert (ours.running_var - 1).abs().max() < 0.15
