"""ContextNorm against finite differences, its definition, the printed gradient, and the authors' layers."""

import copy
import importlib

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
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

import cnlib
from cnlib.norm.context import ENCODERS, STARTS

F = cnlib.functional


def draw_ids(n: int, t: int, seed: int) -> torch.Tensor:
    return torch.randint(t, (n,), generator=torch.Generator().manual_seed(seed))


@given(shape=shapes, t=st.integers(1, 5), seed=seeds)
def test_gradients_with_respect_to_x_mean_and_variance(shape, t, seed):
    ids = draw_ids(shape[0], t, seed)  # t may exceed N: then some contexts are empty
    mean, var = double((t, shape[1]), seed), double((t, shape[1]), seed + 1).exp()
    check_gradients(lambda x, m, v: F.context_norm(x, ids, m, v, 1e-3), double(shape, seed + 2), mean, var)


@given(shape=shapes, t=st.integers(1, 4), seed=seeds, encoder=st.sampled_from(ENCODERS), affine=st.booleans())
def test_gradients_of_the_layer(shape, t, seed, encoder, affine):
    layer = shake(cnlib.ContextNorm(shape[1], t, encoder=encoder, affine=affine, embedding_dim=2))
    check_layer_gradients(layer, double(shape, seed), draw_ids(shape[0], t, seed))


@given(shape=shapes, t=st.integers(1, 3), seed=seeds)
def test_gradients_of_cn_plus(shape, t, seed):
    mean, var = double((t, shape[1]), seed), double((t, shape[1]), seed + 1).exp()
    check_gradients(lambda x, m, v: F.context_norm_plus(x, m, v, 1e-2), double(shape, seed + 2), mean, var)


@given(shape=shapes, t=st.integers(1, 4), seed=seeds, encoder=st.sampled_from(ENCODERS), affine=st.booleans())
def test_manual_is_autograd(shape, t, seed, encoder, affine):
    x, ids = double(shape, seed), draw_ids(shape[0], t, seed)
    layers = [cnlib.ContextNorm(shape[1], t, encoder=encoder, affine=affine, gradient=g) for g in GRADIENTS]
    layers[1].load_state_dict(layers[0].state_dict())
    layers = [shake(layer) for layer in layers]
    assert_same(run(layers[0], x, ids), run(layers[1], x, ids))
    for layer in layers:
        layer.eval().inference = "cn+"
    assert_same(run(layers[0], x), run(layers[1], x))


def test_it_is_the_definition():
    x, ids = double((5, 3, 2, 2), 0), torch.tensor([1, 0, 1, 2, 1])
    mean, var = double((4, 3), 1), double((4, 3), 2).exp()
    y = F.context_norm(x, ids, mean, var, 1e-3)
    for i, r in enumerate(ids):
        assert_same(y[i], (x[i] - mean[r].view(3, 1, 1)) / (var[r].view(3, 1, 1) + 1e-3).sqrt())


class PrintedGradient(torch.autograd.Function):
    """Eq. (5) with the gradient that both papers print for the variance."""

    @staticmethod
    def forward(ctx, x, mean, var, eps):
        ctx.save_for_backward(x, mean, var)
        ctx.eps = eps
        return (x - mean) / (var + eps).sqrt()

    @staticmethod
    def backward(ctx, g):
        x, mean, var = ctx.saved_tensors
        rstd = (var + ctx.eps).rsqrt()
        return g * rstd, -(g * rstd).sum(0), ((mean + x) / 2 * rstd**3).sum(0), None


def test_the_printed_variance_gradient_fails_where_ours_passes():
    ids = torch.zeros(6, dtype=torch.long)
    x, mean, var = leaf(double((6, 3), 0)), leaf(double((1, 3), 1)), leaf(double((1, 3), 2).exp())
    assert gradcheck(lambda x, m, v: F.context_norm(x, ids, m, v, 1e-3), (x, mean, var))
    printed = PrintedGradient.apply
    assert gradcheck(lambda x, m: printed(x, m, var.detach()[0], 1e-3), (x, leaf(mean[0])))
    only_var = (leaf(var[0]),)
    assert not gradcheck(lambda v: printed(x.detach(), mean.detach()[0], v, 1e-3), only_var, raise_exception=False)


@given(shape=shapes, seed=seeds)
def test_one_context_is_an_affine_map(shape, seed):
    # f(a) - f(b) scales with a - b: no batch statistics, whatever the rank
    layer = shake(cnlib.ContextNorm(shape[1], 1))
    ids = torch.zeros(shape[0], dtype=torch.long)
    a, b = double(shape, seed), double(shape, seed + 1)
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    scale = (layer.log_var[0].exp() + layer.eps).rsqrt().view(per_channel)
    assert_same(layer(a, ids) - layer(b, ids), (a - b) * scale)


def test_samples_do_not_see_each_other_and_training_is_evaluation():
    layer, x, ids = shake(cnlib.ContextNorm(3, 4)), double((6, 3, 2), 0), draw_ids(6, 4, 0)
    y = layer(x, ids)
    for i in range(6):
        assert_same(layer(x[i : i + 1], ids[i : i + 1]), y[i : i + 1])
    assert_same(layer.eval()(x, ids), y)
    assert cnlib.ContextNorm(3, 4)(torch.zeros(0, 3, 2), torch.zeros(0, dtype=torch.long)).shape == (0, 3, 2)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_starts_as_the_identity_up_to_eps_and_learns_the_contexts(encoder):
    x, ids = double((400, 2), 0), draw_ids(400, 2, 0)
    true_mean, true_std = torch.tensor([[3.0, -1.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.5], [1.0, 3.0]])
    data = x * true_std[ids] + true_mean[ids]
    layer = cnlib.ContextNorm(2, 2, encoder=encoder).double()
    assert_same(layer(data, ids), data / (1 + 1e-5) ** 0.5)
    # maximum likelihood of a standard normal output, with the log determinant: the one loss whose optimum is known
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        _, var = layer.moments()
        loss = (0.5 * layer(data, ids).square() + 0.5 * var[ids].log()).mean()
        loss.backward()
        optimizer.step()
    mean, var = layer.moments()
    for r in range(2):
        assert_same(mean[r].detach(), data[ids == r].mean(0), atol=0.02, rtol=0)
        assert_same(var[r].detach(), data[ids == r].var(0, correction=0), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_start_from_takes_the_moments_of_a_batch(encoder, start):
    x, ids = double((30, 3, 4), 0, scale=3, shift=5), draw_ids(30, 2, 0)
    layer = cnlib.ContextNorm(3, 3, encoder=encoder, start=start).double()
    before = [moment.detach().clone() for moment in layer.moments()]
    layer.start_from(x, ids)
    y = layer(x, ids)
    for r in range(2):
        values = y[ids == r].transpose(0, 1).flatten(1)
        assert_same(values.mean(1), torch.zeros(3).double(), atol=1e-9, rtol=0)
        assert_same(values.var(1, correction=0), torch.ones(3).double(), atol=1e-4, rtol=0)
    # the absent context keeps its start
    for moment, then in zip(layer.moments(), before, strict=True):
        assert_same(moment[2].detach(), then[2])


def test_start_from_says_where_an_embedding_is_too_small():
    x, ids = double((30, 3), 0, scale=3), torch.arange(30) % 5
    small = cnlib.ContextNorm(3, 5, encoder="embedder", embedding_dim=3).double()
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(ValueError, match="embedding of 3 numbers.*5 contexts; use embedding_dim=4 or more"):
        small.start_from(x, ids)
    assert_same(dict(small.state_dict()), dict(before))
    layer = cnlib.ContextNorm(3, 5, encoder="embedder", embedding_dim=4).double()
    layer.start_from(x, ids)
    for r in range(5):
        assert_same(layer.moments()[0][r].detach(), x[ids == r].mean(0))


def test_glorot_start_is_the_authors():
    """Means and log standard deviations uniform in +-sqrt(6 / (T + C)), biases 0 (their programs' Dense layers)."""
    t, c = 300, 200
    limit = (6 / (t + c)) ** 0.5
    for encoder in ("table", "linear"):
        layer = cnlib.ContextNorm(c, t, encoder=encoder, affine=True, start="glorot")
        mean, var = layer.moments()
        for drawn in (mean, 0.5 * var.log()):
            assert 0.99 * limit < float(drawn.detach().abs().max()) <= limit * (1 + 1e-5)
            assert_same(drawn.detach().std(), torch.tensor(limit / 3**0.5), rtol=0.02, atol=0)
        assert (layer.weight == 1).all() and (layer.bias == 0).all()
    layer = cnlib.ContextNorm(c, t, encoder="embedder", embedding_dim=50, start="glorot")
    weights = {"embedder": t + 50, "mean_encoder": 50 + c, "log_var_encoder": 50 + c}
    for name, size in weights.items():
        linear, scale = layer.get_submodule(name), 2 if name == "log_var_encoder" else 1
        assert_same(linear.weight.detach().std(), torch.tensor(scale * (2 / size) ** 0.5), rtol=0.03, atol=0)
        assert (linear.bias == 0).all()


def test_cn_plus_is_mixture_norm_under_the_learned_gaussians():
    layer, x = shake(cnlib.ContextNorm(3, 2, affine=True)).eval(), double((6, 3, 4), 0)
    layer.inference = "cn+"
    mean, var = layer.moments()
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    tau = F.responsibilities(x, half, mean, var)
    expected = F.mixture_norm(x, tau, half, layer.eps)
    assert_same(layer(x), expected * layer.weight[:, None] + layer.bias[:, None])
    layer.train()
    with pytest.raises(ValueError, match="no context"):
        layer(x)  # cn+ is read in eval only


def test_channels_and_patches():
    # CN-Channels: on the image. CN-Patches: on patch embeddings (N, patches, D), D being the channels
    images, ids = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    assert cnlib.ContextNorm(3, 2)(images, ids).shape == images.shape
    patches = nn.functional.unfold(images, 4, stride=4)
    assert cnlib.ContextNorm(48, 2)(patches, ids).shape == (4, 48, 4)


def test_large_mean_stays_accurate_in_float32():
    x = (double((8, 3, 16), 0) + 1e4).float()
    mean, var, ids = torch.full((1, 3), 1e4), torch.ones(1, 3), torch.zeros(8, dtype=torch.long)
    exact = F.context_norm(x.double(), ids, mean.double(), var.double())
    assert_same(F.context_norm(x, ids, mean, var).double(), exact, atol=1e-5, rtol=1e-5)


class TestAuthorsLayers:
    """Their package: standard deviation exp(s) + eps in one layer; a BatchNorm per context / sqrt(prior) in another."""

    @pytest.fixture
    def package(self):
        try:
            return importlib.import_module("pytorch-context-based-norm")
        except ImportError:
            pytest.skip("the authors' package pytorch-context-based-norm 1.0.0 is not installed")

    def test_extended_layer_on_vectors(self, package):
        theirs, x, ids = package.ContextExtendedNorm(3, 4, epsilon=0.0), torch.randn(8, 4), draw_ids(8, 3, 0)
        ours = cnlib.ContextNorm(4, 3, eps=0.0)
        with torch.no_grad():
            ours.mean.copy_(theirs.initial_mean)
            ours.log_var.copy_(2 * theirs.initial_std)
        assert_same(ours(x, ids), theirs((x, ids)))
        y, dx, grads = run(ours, x, ids)
        z = leaf(x)
        theirs((z, ids)).backward(double((8, 4), 99).float())
        assert_same(dx, z.grad)
        assert_same(grads["mean"], theirs.initial_mean.grad)
        assert_same(2 * grads["log_var"], theirs.initial_std.grad)

    def test_extended_layer_broadcasts_over_the_wrong_axis_on_images(self, package):
        theirs, x, ids = package.ContextExtendedNorm(3, 4, epsilon=0.0), torch.randn(8, 4, 4, 4), draw_ids(8, 3, 0)
        ours = cnlib.ContextNorm(4, 3, eps=0.0)
        with torch.no_grad():
            ours.mean.copy_(theirs.initial_mean)
            ours.log_var.copy_(2 * theirs.initial_std)
        assert not torch.allclose(ours(x, ids), theirs((x, ids)))
        last = theirs((x.movedim(1, -1), ids)).movedim(-1, 1)  # it treats the last axis as the channels
        assert_same(ours(x, ids), last)

    @pytest.mark.parametrize("shape", [(12, 4), (12, 4, 3, 3)])
    def test_their_context_norm_is_mixture_norm_with_hard_contexts(self, package, shape):
        ids, x = torch.tensor([0, 1, 2] * 4), torch.randn(shape)
        theirs = package.ContextNorm(3, epsilon=1e-3)
        tau = nn.functional.one_hot(ids, 3).float()
        assert_same(F.mixture_norm(x, tau, torch.full((3,), 1 / 3), 1e-3), theirs((x, ids)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ValueError, "use_context"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"shape \(3,\).*shape \(4,\)"),
        (torch.zeros(4, 1, dtype=torch.long), ValueError, r"\(4, 1\)"),
        (torch.tensor([0, 1, 2, 3]), ValueError, r"0 to 3.*\[0, 3\)"),
        (torch.tensor([0, 1, -1, 2]), ValueError, "-1 to 2"),
        (torch.zeros(4), TypeError, "float32"),
        (torch.zeros(4, dtype=torch.bool), TypeError, "bool"),
        ([0, 1, 2, 0], TypeError, "list"),
        (torch.zeros(4, dtype=torch.long, device="meta"), ValueError, "meta"),
    ],
)
def test_bad_context_is_named(context, error, message):
    with pytest.raises(error, match=message):
        cnlib.ContextNorm(2, 3)(torch.zeros(4, 2, 5), context)
    if context is not None:
        with pytest.raises(error, match=message):
            F.context_norm(torch.zeros(4, 2, 5), context, torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(4), ValueError),
        (torch.zeros(4, 3), ValueError),
        (torch.zeros(4, 2, dtype=torch.uint8), TypeError),
        (torch.zeros(4, 2, dtype=torch.complex64), TypeError),
    ],
)
def test_bad_input_is_named(x, error):
    with pytest.raises(error, match="ContextNorm"):
        cnlib.ContextNorm(2, 3)(x, torch.zeros(4, dtype=torch.long))


def test_bad_moments_and_options_are_named():
    ids = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="var holds -0.5"):
        F.context_norm(torch.zeros(4, 2), ids, torch.zeros(1, 2), torch.full((1, 2), -0.5))
    with pytest.raises(ValueError, match=r"\(T, 2\)"):
        F.context_norm(torch.zeros(4, 2), ids, torch.zeros(1, 3), torch.ones(1, 3))
    for options in ({"encoder": "mlp"}, {"start": "zero"}, {"gradient": "numeric"}, {"num_contexts": 0}):
        with pytest.raises(ValueError, match="expected"):
            cnlib.ContextNorm(**({"num_features": 2, "num_contexts": 2} | options))
    layer = cnlib.ContextNorm(2, 2).eval()
    layer.inference = "cn++"
    with pytest.raises(ValueError, match="cn\\+\\+"):
        layer(torch.zeros(4, 2), ids)


@pytest.mark.parametrize("encoder", ["table", "linear", "embedder"])
def test_the_average_inference_is_the_average_of_the_maps(encoder):
    layer = shake(cnlib.ContextNorm(3, 4, encoder=encoder, affine=True)).double()
    x = double((5, 3, 2, 2), 0)
    maps = torch.stack([layer.eval()(x, torch.full((5,), r)) for r in range(4)])
    layer.inference = "average"
    assert_same(layer(x), maps.mean(0))
    layer.train()
    assert_same(layer(x, torch.full((5,), 2)), maps[2])  # only read in evaluation mode
    with pytest.raises(ValueError, match="inference='mean', expected one of"):
        layer.inference = "mean"
        layer.eval()(x)
