"""MixtureNorm against finite differences, eq. (3)-(4) word for word, and the cases where it is BN."""

import pytest
import torch
from cases import (
    GRADIENTS,
    assert_same,
    check_gradients,
    check_layer_gradients,
    double,
    draw_tau,
    leaf,
    run,
    seeds,
    shake,
    shapes,
)
from hypothesis import assume, given
from hypothesis import strategies as st

import cnlib
from cnlib.norm.gaussians import start_means
from cnlib.norm.mixture import MixtureStandardize

F = cnlib.functional


def word_for_word(x, tau, priors, eps):
    """Eq. (3)-(4) with K copies of x, all axes but the channel flattened; expectations are weighted sums."""
    n, c = x.shape[:2]
    k = tau.shape[1]
    flat = x.reshape(n, c, -1).transpose(0, 1).reshape(c, -1)
    weights = (
        (tau.reshape(n, k, -1) * torch.ones(n, k, flat.shape[1] // n, dtype=x.dtype)).transpose(0, 1).reshape(k, -1)
    )
    out = torch.zeros_like(flat)
    for r in range(k):
        hat = weights[r] / weights[r].sum()
        v = flat - (hat * flat).sum(1, keepdim=True)
        out += weights[r] / priors[r].sqrt() * v / ((hat * v.square()).sum(1, keepdim=True) + eps).sqrt()
    return out.reshape(c, n, -1).transpose(0, 1).reshape(x.shape)


@given(shape=shapes, k=st.integers(1, 3), seed=seeds, by_position=st.booleans())
def test_gradients_also_through_responsibilities_and_priors(shape, k, seed, by_position):
    x, tau = double(shape, seed), draw_tau(shape[0], k, shape[2:] if by_position else (), seed + 1)
    priors = double((k,), seed + 2).softmax(0)
    check_gradients(lambda x, tau, priors: F.mixture_norm(x, tau, priors, 1e-2), x, tau, priors)


@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients_of_the_layer_given_responsibilities(shape, k, seed):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    layer = shake(cnlib.MixtureNorm(shape[1], k, eps=1e-2))
    check_layer_gradients(layer, x, draw_tau(shape[0], k, shape[2:], seed))
    layer.running_var.clamp_(min=0.1)
    check_layer_gradients(layer.eval(), x, draw_tau(shape[0], k, (), seed))


def test_gradients_through_the_moments_it_returns():
    x, tau, priors = double((3, 2, 4), 0), draw_tau(3, 2, (4,), 1), torch.tensor([0.3, 0.7], dtype=torch.float64)
    w, b = double((2,), 2), double((2,), 3)
    check_gradients(lambda *a: MixtureStandardize.apply(*a, 1e-2), x, tau, priors, w, b)
    check_gradients(lambda *a: MixtureStandardize.apply(*a, 1e-2)[1:], x, tau, priors, w, b)


@given(shape=shapes, t=st.integers(1, 3), seed=seeds)
def test_gradients_of_the_responsibilities(shape, t, seed):
    mean, var = double((t, shape[1]), seed), double((t, shape[1]), seed + 1).exp()
    priors = double((t,), seed + 2).softmax(0)
    check_gradients(F.responsibilities, double(shape, seed + 3), priors, mean, var)


@given(shape=shapes, k=st.integers(1, 4), seed=seeds, by_position=st.booleans())
def test_manual_is_autograd_is_the_equation(shape, k, seed, by_position):
    tau = draw_tau(shape[0], k, shape[2:] if by_position else (), seed + 1)
    priors = double((k,), seed + 2).softmax(0)
    results = []
    for function in (
        lambda *a: F.mixture_norm(*a, 1e-3, "manual"),
        lambda *a: F.mixture_norm(*a, 1e-3, "autograd"),
        lambda *a: word_for_word(*a, 1e-3),
    ):
        leaves = [leaf(t) for t in (double(shape, seed), tau, priors)]
        y = function(*leaves)
        results.append((y, torch.autograd.grad((y * double(shape, 5)).sum(), leaves)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@given(shape=shapes, seed=seeds, eps=st.sampled_from([1e-5, 1e-2]))
def test_one_component_is_batch_norm(shape, seed, eps):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    one = torch.ones(shape[0], 1, dtype=x.dtype)
    assert_same(F.mixture_norm(x, one, one[0], eps), F.batch_norm(x, eps))
    mixture, batch = shake(cnlib.MixtureNorm(shape[1], 1, eps=eps)), shake(cnlib.BatchNorm(shape[1], eps=eps))
    for _ in range(2):
        assert_same(run(mixture, x), run(batch, x))
    mixture.momentum = batch.momentum = 1.0
    mixture(x), batch(x)
    assert_same(mixture.running_var[0], batch.running_var)
    assert_same(run(mixture.eval(), x), run(batch.eval(), x))


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_running_variance_is_unbiased_whatever_the_responsibilities(share):
    """Values that do not depend on tau, so each component's variance is theirs: 1, on average over many batches."""
    torch.manual_seed(0)
    layer = cnlib.MixtureNorm(50, 4, momentum=None, affine=False).double()
    for _ in range(400):
        x, ids = torch.randn(8, 50, dtype=torch.float64), torch.arange(8) % 4
        layer(x, (1 - share) / 4 + share * torch.nn.functional.one_hot(ids, 4).double())
    # the standard error of each mean over 50 channels and 400 batches is about 0.01 at most
    assert_same(layer.running_var.mean(1), torch.ones(4).double(), atol=0.05, rtol=0)


def test_hard_responsibilities_are_batch_norm_per_group():
    x = double((6, 3, 2, 2), 0)
    ids = torch.tensor([0, 1, 0, 2, 1, 0])
    tau = torch.nn.functional.one_hot(ids, 4).double()  # component 3 is empty: it must take no part
    priors = tau.mean(0)
    y = F.mixture_norm(x, tau, priors, 1e-4)
    for r in range(3):
        assert_same(y[ids == r], F.batch_norm(x[ids == r], 1e-4) / priors[r].sqrt())


def test_empty_component_has_finite_gradients():
    x, tau = leaf(double((4, 3, 2), 0)), leaf(torch.eye(4, dtype=torch.float64)[torch.tensor([0, 1, 1, 2])])
    F.mixture_norm(x, tau, tau.detach().mean(0), 1e-5).square().sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(tau.grad).all()
    layer = cnlib.MixtureNorm(3, 4).double()
    layer(x.detach(), tau.detach())
    assert torch.isfinite(layer.running_mean).all() and torch.isfinite(layer.running_var).all()
    assert_same(layer.running_var[3], torch.ones(3, dtype=torch.float64))  # it keeps the moments it had


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_underflowing_densities_give_numbers(gradient):
    # at C = 512 and 1000 standard deviations away every density is 0 in any floating type
    x = leaf((double((4, 512, 3), 0) * 1000).float())
    mean, var = torch.stack([torch.zeros(512), torch.full((512,), 5.0)]), torch.full((2, 512), 0.01)
    tau = F.responsibilities(x, torch.tensor([0.5, 0.5]), mean, var, gradient)
    assert torch.isfinite(tau).all()
    assert_same(tau.sum(1), torch.ones(4, 3))
    F.context_norm_plus(x, mean, var, gradient=gradient).sum().backward()
    assert torch.isfinite(x.grad).all()
    huge = F.responsibilities(torch.full((1, 512), 1e30), torch.tensor([0.5, 0.5]), mean, var, gradient)
    assert_same(huge.sum(1), torch.ones(1))


def test_responsibilities_against_torch_distributions():
    x, mean, var = double((5, 3, 2), 0), double((4, 3), 1), double((4, 3), 2).exp()
    priors = double((4,), 3).softmax(0)
    normal = torch.distributions.Normal(mean[:, None, None], var.sqrt()[:, None, None])
    log_joint = priors.log()[:, None, None] + normal.log_prob(x.transpose(1, 2)).sum(-1)
    assert_same(F.responsibilities(x, priors, mean, var), log_joint.softmax(0).transpose(0, 1))


def test_large_mean_stays_accurate_in_float32():
    base = double((64, 3, 8, 8), 0)
    base[::2] += 6  # two clearly separate components
    tau = torch.zeros(64, 2, dtype=torch.float64)
    tau[::2, 0] = tau[1::2, 1] = 1
    x = (base + 1e4).float()
    half = torch.tensor([0.5, 0.5])
    y = F.mixture_norm(x, tau.float(), half)
    assert_same(y.double(), F.mixture_norm(x.double(), tau, half.double()), atol=6e-3, rtol=0)


class TestExpectationMaximization:
    def two_clusters(self, seed=0, n=64):
        which = torch.rand(n, 1, 4, generator=torch.Generator().manual_seed(seed)) < 0.25
        return double((n, 3, 4), seed, scale=0.5) + torch.where(which, 4.0, -4.0), which

    def test_finds_the_components_and_keeps_their_names(self):
        layer = cnlib.MixtureNorm(3, 2, momentum=0.5).double()
        for step in range(12):
            layer(self.two_clusters(step)[0])
        order = layer.running_mean[:, 0].argsort()
        assert_same(layer.running_mean[order], torch.tensor([[-4.0] * 3, [4.0] * 3]).double(), atol=0.15, rtol=0)
        assert_same(layer.running_prior[order], torch.tensor([0.75, 0.25]).double(), atol=0.05, rtol=0)
        assert_same(layer.running_var, torch.full((2, 3), 0.25).double(), atol=0.06, rtol=0)

    def test_the_first_batch_starts_the_mixture_whatever_the_momentum(self):
        x, which = self.two_clusters()
        layer = cnlib.MixtureNorm(3, 2, momentum=0.01).double()
        layer(x)
        assert_same(layer.running_mean.abs(), torch.full((2, 3), 4.0).double(), atol=0.2, rtol=0)
        before = layer.running_mean.clone()
        layer(x + 1)
        assert_same(layer.running_mean, before + 0.01 * 1.0, atol=2e-3, rtol=0)

    def test_eval_agrees_with_training_on_the_same_distribution(self):
        layer = cnlib.MixtureNorm(3, 2, momentum=0.2).double()
        for step in range(40):
            layer(self.two_clusters(step)[0])
        x, _ = self.two_clusters(100, n=512)
        assert_same(layer.eval()(x), layer.train()(x), atol=0.25, rtol=0.05)

    def test_the_fit_is_a_constant_for_the_gradient(self):
        x, _ = self.two_clusters()
        layer = cnlib.MixtureNorm(3, 2).double()
        layer(x)
        tau = layer._fit(x)
        priors = tau.transpose(0, 1).flatten(1).mean(1)
        leaves = leaf(x), leaf(x)
        layer(leaves[0]).square().sum().backward()
        F.mixture_norm(leaves[1], tau, priors).square().sum().backward()
        assert_same(leaves[0].grad, leaves[1].grad)

    def test_more_steps_are_more_likely(self):
        x, _ = self.two_clusters()
        layer = cnlib.MixtureNorm(3, 2, em_steps=1).double()
        layer.num_batches_tracked.fill_(1)
        layer.running_mean.copy_(torch.tensor([[-0.1] * 3, [0.1] * 3]))
        fits = []
        for steps in (1, 2, 6):
            layer.em_steps = steps
            tau = layer._fit(x)
            fits.append(float(tau.max(1).values.mean()))
        assert fits[0] < fits[1] < fits[2]

    @given(shape=shapes, seed=seeds, k=st.integers(1, 5))
    def test_any_shape_gives_numbers(self, shape, seed, k):
        x = double(shape, seed)
        assume(x.numel() // x.shape[1] > 1)
        layer = cnlib.MixtureNorm(shape[1], k).double()
        for _ in range(3):
            y, dx, _ = run(layer, x)
            assert torch.isfinite(y).all() and torch.isfinite(dx).all()
        assert torch.isfinite(layer.eval()(x * 100)).all()

    def test_constant_batch_gives_numbers(self):
        layer = cnlib.MixtureNorm(2, 3)
        y, dx, _ = run(layer, torch.full((4, 2, 3), 5.0))
        assert torch.isfinite(y).all() and torch.isfinite(dx).all()
        assert float(y.abs().max()) < 1e-3

    def test_seeding_spreads_the_means(self):
        x, which = self.two_clusters()
        for s in range(20):
            torch.manual_seed(s)
            means = start_means(x, 2)
            assert float(means[0, 0] * means[1, 0]) < 0, "both starts fell into one of two far clusters"

    def test_state_dict_keeps_the_mixture(self):
        layer, other = cnlib.MixtureNorm(3, 2).double(), cnlib.MixtureNorm(3, 2).double()
        x, _ = self.two_clusters()
        layer(x)
        other.load_state_dict(layer.state_dict())
        assert other.started
        assert_same(layer(x), other(x))


@pytest.mark.parametrize(
    ("tau", "error", "message"),
    [
        (torch.full((4, 2), 0.5), ValueError, r"expected \(4, 3\)"),
        (torch.full((3, 3), 1 / 3), ValueError, r"expected \(4, 3\)"),
        (torch.full((4, 3, 7), 1 / 3), ValueError, r"expected \(4, 3\)"),
        (torch.full((4, 3), 0.5), ValueError, "sum to 1"),
        (torch.tensor([[2.0, -0.5, -0.5]] * 4), ValueError, "non-negative"),
        (torch.ones(4, 3, dtype=torch.long), TypeError, "int64"),
        (torch.full((4, 3), 1 / 3, device="meta"), ValueError, "meta"),
    ],
)
def test_bad_responsibilities_are_named(tau, error, message):
    with pytest.raises(error, match=message):
        cnlib.MixtureNorm(2, 3)(torch.zeros(4, 2, 5), tau)


@pytest.mark.parametrize(
    ("priors", "mean", "var", "message"),
    [
        ([0.5, 0.6], (2, 3), 1.0, "sum to 1.1"),
        ([1.5, -0.5], (2, 3), 1.0, "at least 0"),
        ([1.0], (2, 3), 1.0, r"expected \(2,\)"),
        ([0.5, 0.5], (2, 4), 1.0, r"\(T, 3\)"),
        ([0.5, 0.5], (2, 3), -1.0, "var holds -1"),
    ],
)
def test_bad_mixtures_are_named(priors, mean, var, message):
    with pytest.raises(ValueError, match=message):
        F.responsibilities(torch.zeros(4, 3), torch.tensor(priors), torch.zeros(mean), torch.full(mean, var))


def test_bad_priors_are_named():
    with pytest.raises(ValueError, match="mixture_norm: priors"):
        F.mixture_norm(torch.zeros(4, 3), torch.full((4, 2), 0.5), torch.tensor([0.9, 0.9]))


@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.zeros(3), ValueError), (torch.zeros(4, 5), ValueError), (torch.zeros(1, 3), ValueError)]
    + [(torch.zeros(4, 3, dtype=torch.int64), TypeError), (torch.zeros(4, 3, dtype=torch.complex64), TypeError)],
)
def test_bad_input_is_named(x, error):
    with pytest.raises(error, match="MixtureNorm"):
        cnlib.MixtureNorm(3)(x)
