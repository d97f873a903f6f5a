"""BatchNorm against finite differences, torch.nn.BatchNorm and the identities of chapter 2."""

from functools import partial

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
from cnlib.norm.batch import BATCH, SAMPLE, Standardize, moments, normalize, standardize

NATIVE = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def native_for(x: torch.Tensor, **options: object) -> nn.Module:
    return NATIVE[x.dim()](x.shape[1], **options).double()  # type: ignore[arg-type]


@given(shape=shapes, seed=seeds)
def test_gradients_of_the_function(shape, seed):
    check_gradients(lambda x: cnlib.functional.batch_norm(x, 1e-3), double(shape, seed))


@given(shape=shapes, seed=seeds)
def test_gradients_of_the_layer(shape, seed):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    check_layer_gradients(shake(cnlib.BatchNorm(shape[1], eps=1e-3)), x)


@pytest.mark.parametrize("axes", [BATCH, SAMPLE])
def test_gradients_through_the_moments_it_returns(axes):
    # y, mean and var are all outputs: each must carry its gradient back, alone and together
    x, w, b = double((3, 2, 2, 2), 0), double((1, 2, 2, 1), 1), double((1, 2, 2, 1), 2)
    check_gradients(lambda x, w, b: Standardize.apply(x, w, b, axes, 1e-3)[:3], x, w, b)
    check_gradients(lambda x: Standardize.apply(x, None, None, axes, 1e-3)[1:3], x)


@pytest.mark.parametrize("axes", [BATCH, SAMPLE])
def test_moments_then_standardize_is_normalize(axes):
    x, weight, bias = double((3, 2, 4, 5), 0, shift=7), double((1, 2, 4, 1), 1), double((1, 2, 4, 1), 2)
    mean, var, m = moments(x, axes)
    y, *its_moments, its_m = normalize(x, weight, bias, axes, 1e-3)
    assert m == its_m == x.numel() // mean.numel()
    assert_same([mean, var], list(torch.var_mean(x, axes, correction=0, keepdim=True))[::-1])
    assert_same([mean, var], its_moments)
    assert_same(standardize(x, mean, var, weight, bias, 1e-3), y)
    assert_same(standardize(x, mean, var, None, None, 1e-3) * weight + bias, y)


@given(shape=shapes, seed=seeds)
def test_manual_is_autograd(shape, seed):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    results = [run(shake(cnlib.BatchNorm(shape[1], gradient=g)), x) for g in GRADIENTS]
    assert_same(results[0], results[1])


@given(shape=shapes, seed=seeds, affine=st.booleans(), momentum=st.sampled_from([0.1, 0.9, None]), track=st.booleans())
def test_parity_with_torch(shape, seed, affine, momentum, track):
    options = {"affine": affine, "momentum": momentum, "track_running_stats": track}
    x = double(shape, seed, scale=3, shift=2)
    assume(x.numel() // x.shape[1] > 1)
    theirs = shake(native_for(x, **options))
    ours = cnlib.BatchNorm(shape[1], **options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for step in range(3):
        assert_same(run(ours, x + step), run(theirs, x + step))
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    ours.eval(), theirs.eval()
    assert_same(run(ours, x), run(theirs, x))
    theirs.load_state_dict(ours.state_dict(), strict=True)


@given(shape=shapes, seed=seeds)
def test_dx_is_orthogonal_to_one_and_to_x_hat(shape, seed):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 2)
    _, dx, _ = run(cnlib.BatchNorm(shape[1], eps=0.0, affine=False).double(), x)
    x_hat = cnlib.functional.batch_norm(x, 0.0)
    axes = [a for a in range(x.dim()) if a != 1]
    assert_same(dx.sum(axes), torch.zeros(shape[1], dtype=x.dtype), atol=1e-8, rtol=0)
    assert_same((dx * x_hat).sum(axes), torch.zeros(shape[1], dtype=x.dtype), atol=1e-8, rtol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_large_mean_stays_accurate_in_float32(gradient):
    x = (double((64, 3, 16, 16), 0) + 1e4).float()
    layer = cnlib.BatchNorm(3, gradient=gradient)
    y, dx, grads = run(layer, x)
    exact = run(cnlib.BatchNorm(3, gradient=gradient).double(), x.double())
    assert_same(y.double(), exact[0], atol=2e-3, rtol=0)  # x itself is only known to 1e-3 up there
    assert_same(dx.double(), exact[1], atol=2e-3, rtol=1e-3)
    assert abs(float(y.std()) - 1) < 1e-3
    assert_same(layer.running_var, torch.full((3,), 1.0), atol=0.02, rtol=0)


@pytest.mark.parametrize("m", [2, 3])
def test_running_variance_is_unbiased_and_the_output_is_not(m):
    x = torch.arange(m, dtype=torch.float64)[:, None]
    layer = cnlib.BatchNorm(1, momentum=1.0, eps=0.0).double()
    assert_same(layer(x).var(0, correction=0), torch.ones(1, dtype=torch.float64))
    assert_same(layer.running_var, x.var(0, correction=1))


def test_constant_channel_gives_bias_and_finite_gradients():
    x = torch.full((4, 2, 3), 7.0)
    layer = cnlib.BatchNorm(2)
    y, dx, _ = run(layer, x)
    assert_same(y, torch.zeros_like(y))
    assert torch.isfinite(dx).all()


def test_no_grad_leaves_the_input_alone():
    x = torch.randn(4, 3, 2)
    before = x.clone()
    with torch.no_grad():
        cnlib.BatchNorm(3)(x)
        cnlib.functional.batch_norm(x)
    assert_same(x, before)


def test_the_first_backward_leaves_what_the_second_needs():
    x = leaf(double((4, 3, 2), 0))
    y = cnlib.BatchNorm(3).double()(x)
    first = torch.autograd.grad(y.square().sum() + y.sum(), x, retain_graph=True)
    second = torch.autograd.grad(y.square().sum() + y.sum(), x)
    assert_same(first, second)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"\(N, C\)"),
        (torch.zeros(2, 4), ValueError, "4 channels.*expected 3"),
        (torch.zeros(2, 3, dtype=torch.long), TypeError, "int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "complex"),
        (torch.zeros(1, 3), ValueError, "1 value per channel"),
        (torch.zeros(1, 3, 1, 1), ValueError, "larger batch"),
        ([[1.0, 2.0, 3.0]], TypeError, "list"),
    ],
)
def test_bad_input_is_named(x, error, message):
    with pytest.raises(error, match=message):
        cnlib.BatchNorm(3)(x)


def test_one_value_per_channel_is_fine_in_eval():
    assert cnlib.BatchNorm(3).eval()(torch.ones(1, 3)).shape == (1, 3)


@pytest.mark.parametrize("options", [{"num_features": 0}, {"num_features": 2.0}, {"num_features": 2, "gradient": "x"}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match="expected"):
        cnlib.BatchNorm(**options)


@pytest.mark.parametrize("make", [cnlib.BatchNorm, partial(cnlib.InstanceNorm, track_running_stats=True)])
def test_wide_running_moments_keep_their_digits(make):
    """float64 buffers move in float64, also towards the moments of a float32 batch."""
    layer = make(1, dtype=torch.float64)
    layer.running_mean.fill_(1 / 3)
    layer(torch.zeros(4, 1, 2))
    assert layer.running_mean.item() == pytest.approx(0.9 / 3, abs=1e-15)


@pytest.mark.parametrize(("eps", "values"), [(1e-5, (1e30, 1.0)), (0.0, (2.0, 2.0))], ids=["overflow", "no spread"])
def test_compiled_sums_are_finite_where_eager_ones_are(eps, values):
    """Compiled, the sums of the backward are counted in a unit of each channel: one of 0 or infinity is none."""
    x = torch.stack([torch.randn(4), torch.tensor(values).repeat(2)], 1)
    g = torch.randn(4, 2)
    layer = cnlib.BatchNorm(2, eps=eps)
    torch.compiler.reset()
    # traced as for any compiler; no code is generated
    for call in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        call(x).backward(g)
        torch.testing.assert_close(layer.bias.grad, g.sum(0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_variance_far_from_zero(backend):
    """Compiled, the scatter is taken about the mean of each row: what rounding does to that mean is put right."""
    x = torch.randn(64, 4, 49, generator=torch.Generator().manual_seed(0)) + 1e4
    layer = cnlib.BatchNorm(4, momentum=1.0)
    torch.compiler.reset()
    (layer if backend == "eager" else torch.compile(layer, backend=backend))(x)
    expected = x.double().var((0, 2))
    assert ((layer.running_var - expected) / expected).abs().max() < 6e-6
