"""ModeNorm against finite differences, the mixture normalization it is, and the batch norm that one mode is."""

import copy

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
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cnlib
from cnlib.norm.gate import GateLogits, effective_number, entropy, imbalance
from cnlib.norm.mode import Modes

F = cnlib.functional


def layer_of(c, k=2, **options):
    torch.manual_seed(0)
    return shake(cnlib.ModeNorm(c, k, **options))


def word_for_word(x, gates, eps):
    """Eq. (6)-(8) of the paper, with a normalized copy of x a mode."""
    flat = x.reshape(*x.shape[:2], -1)
    y = torch.zeros_like(flat)
    for g in gates.t()[:, :, None]:
        mean = (g * flat.mean(2)).sum(0) / g.sum()
        var = (g * (flat - mean[:, None]).square().mean(2)).sum(0) / g.sum()
        y = y + g[..., None] * (flat - mean[:, None]) / (var + eps).sqrt()[:, None]
    return y.reshape(x.shape)


def gates_word_for_word(layer, x):
    return torch.stack(
        [torch.softmax(layer.gate.weight @ s.reshape(len(s), -1).mean(1) + layer.gate.bias, 0) for s in x]
    )


@settings(max_examples=10)
@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients(shape, k, seed):
    """Of x, also through the gates, the affine map, and the gate's parameters; in training and evaluation."""
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    layer = layer_of(shape[1], k, eps=1e-2)
    check_layer_gradients(layer, x)
    layer.running_mean.copy_(double((k, shape[1]), 7)), layer.running_var.copy_(double((k, shape[1]), 8).exp())
    check_layer_gradients(layer.eval(), x)


@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients_of_the_gate(shape, k, seed):
    x = double(shape, seed).reshape(*shape[:2], -1)
    check_gradients(GateLogits.apply, x, double((k, shape[1]), 1), double((k,), 2))


@given(shape=shapes, k=st.integers(1, 4), seed=seeds)
def test_manual_is_autograd_is_the_equation(shape, k, seed):
    results = []
    for function in (
        lambda *a: F.mode_norm(*a, 1e-3, "manual"),
        lambda *a: F.mode_norm(*a, 1e-3, "autograd"),
        lambda *a: word_for_word(*a, 1e-3),
    ):
        leaves = [leaf(t) for t in (double(shape, seed), draw_tau(shape[0], k, (), seed + 1))]
        y = function(*leaves)
        results.append((y, torch.autograd.grad((y * double(shape, 5)).sum(), leaves)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_the_layer_is_the_equation_under_its_gates(shape, k, seed):
    x = double(shape, seed)
    assume(x.numel() // x.shape[1] > 1)
    results = []
    for gradient in GRADIENTS:
        layer, own = layer_of(shape[1], k, gradient=gradient), leaf(x)
        assert_same(layer.gates(own), gates_word_for_word(layer, own))
        y = layer(own)
        results.append([y, *torch.autograd.grad((y * double(shape, 5)).sum(), [own, *layer.parameters()])])
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    own = leaf(x)
    y = word_for_word(own, gates_word_for_word(layer, own), 1e-5)
    y = y * layer.weight.view(per_channel) + layer.bias.view(per_channel)
    results.append([y, *torch.autograd.grad((y * double(shape, 5)).sum(), [own, *layer.parameters()])])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@given(shape=shapes, k=st.integers(1, 4), seed=seeds)
def test_it_is_mixture_norm_over_the_root_of_k(shape, k, seed):
    x, gates = double(shape, seed), draw_tau(shape[0], k, (), seed)
    priors = torch.full((k,), 1 / k, dtype=x.dtype)
    assert_same(F.mode_norm(x, gates), F.mixture_norm(x, gates, priors) / k**0.5)


@given(shape=shapes, seed=seeds)
def test_one_mode_is_batch_norm(shape, seed):
    x = double(shape, seed, scale=2, shift=1)
    assume(x.numel() // x.shape[1] > 1)
    ours, theirs = layer_of(shape[1], 1), shake(cnlib.BatchNorm(shape[1]))
    theirs.load_state_dict(ours.state_dict() | theirs.state_dict() | dict(ours.named_parameters()), strict=False)
    for _ in range(2):
        (y, dx, grads), wanted = run(ours, x), run(theirs, x)
        assert_same((y, dx), wanted[:2])
        assert_same({key: grads[key] for key in ("weight", "bias")}, wanted[2])
    ours.momentum = theirs.momentum = 1.0
    ours(x), theirs(x)
    assert_same((ours.running_mean[0], ours.running_var[0]), (theirs.running_mean, theirs.running_var))
    assert_same(run(ours.eval(), x)[:2], run(theirs.eval(), x)[:2])


def test_equal_gates_are_batch_norm():
    x = double((6, 3, 4), 0)
    assert_same(F.mode_norm(x, torch.full((6, 2), 0.5).double()), F.batch_norm(x))


def test_hard_gates_are_batch_norm_per_mode():
    x, ids = double((6, 3, 2), 0), torch.tensor([0, 1, 0, 2, 1, 0])
    gates = torch.nn.functional.one_hot(ids, 4).double()  # mode 3 is empty: it takes no part
    y = F.mode_norm(x, gates)
    for k in range(3):
        assert_same(y[ids == k], F.batch_norm(x[ids == k]))


def two_domains(seed, n=64):
    which = torch.arange(n) % 2
    return double((n, 3, 4), seed, scale=0.5) + 4 * (2 * which - 1)[:, None, None], which


def test_running_moments_are_those_of_each_mode_and_are_saved():
    layer = cnlib.ModeNorm(3, 2).double()
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([[-9.0] * 3, [9.0] * 3]))
    for seed in range(30):
        layer(two_domains(seed)[0])
    assert_same(layer.running_mean, torch.tensor([[-4.0] * 3, [4.0] * 3]).double(), atol=0.05, rtol=0)
    assert_same(layer.running_var, torch.full((2, 3), 0.25).double(), atol=0.03, rtol=0)
    assert_same(layer.running_prior, torch.tensor([0.5, 0.5]).double())
    other = cnlib.ModeNorm(3, 2).double()
    other.load_state_dict(layer.state_dict())
    x = two_domains(99)[0]
    assert_same(other.eval()(x), layer.eval()(x))
    assert layer(x).std() < 1.1  # each mode is standardized by itself


def test_statistics_taken_anew_are_those_of_all_batches_under_the_gates():
    layer, x = layer_of(3), double((22, 3, 5), 0, shift=3)
    gates = layer.gates(x).detach()
    before = copy.deepcopy(layer.state_dict())
    cnlib.reestimate(layer, x.split((5, 10, 7)))
    held = gates.sum(0)
    assert_same(layer.running_prior, held / 22)
    assert_same(layer.running_mean, gates.t() @ x.mean(2) / held[:, None])
    moved = {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"running_prior", "running_mean", "running_var"}


def test_evaluation_does_not_look_at_other_samples():
    layer, x = layer_of(3), double((6, 3, 4), 0)
    layer(x)
    assert_same(layer.eval()(x)[:2], layer(x[:2]))
    assert not torch.allclose(layer.train()(x)[:2], layer(x[:2]))


def test_large_mean_stays_accurate_in_float32():
    """In training and evaluation: E[x^2] - E[x]^2 would be off by more than the variance."""
    x, layer = (double((64, 4, 8, 8), 0) + 1e4).float(), cnlib.ModeNorm(4)
    exact = copy.deepcopy(layer).double()
    for _ in range(2):
        assert_same(layer(x).double(), exact(x.double()), atol=8e-3, rtol=0)
        layer.eval(), exact.eval()


def test_gates_start_nearly_equal():
    layer = cnlib.ModeNorm(64, 4)
    gates = layer.gates(torch.randn(16, 64, 5))
    assert_same(gates.sum(1), torch.ones(16))
    assert 0 < (gates - 0.25).abs().max() < 0.1
    assert_same(layer.gate.weight.mean(), torch.tensor(0.25), atol=2e-3, rtol=0)
    assert_same(layer.gate.weight.std(), torch.tensor(0.01), atol=2e-3, rtol=0)


def test_monitors():
    equal, one = torch.full((5, 4), 0.25), torch.eye(4)[[0, 0, 0]]
    assert_same((effective_number(equal), effective_number(one)), (torch.tensor(4.0), torch.tensor(1.0)))
    assert_same((imbalance(equal), imbalance(one)), (torch.tensor(0.0), torch.tensor(4.0).log()), atol=1e-6, rtol=1e-6)
    spread = torch.eye(4)
    assert_same(effective_number(spread), torch.tensor(4.0))
    assert_same((entropy(spread), entropy(equal[0])), (torch.zeros(4), torch.tensor(4.0).log()))


def test_one_value_a_channel_is_refused_in_training_only():
    layer = cnlib.ModeNorm(3)
    with pytest.raises(ValueError, match="ModeNorm: shape .* 1 value per channel"):
        layer(torch.zeros(1, 3, 1, 1))
    layer(torch.randn(4, 3))
    assert layer.eval()(torch.zeros(1, 3, 1, 1)).isfinite().all()


def test_equal_gates_have_no_gradient():
    """A saddle: modes that are equal make the same output, whatever the gates."""
    layer = cnlib.ModeNorm(3, 2).double()
    torch.nn.init.ones_(layer.gate.weight)
    _, _, grads = run(layer, double((6, 3, 4), 0))
    assert_same(grads["gate.weight"], torch.zeros(2, 3).double(), atol=1e-12, rtol=0)
    layer.start_from(double((6, 3, 4), 0))
    assert run(layer, double((6, 3, 4), 0))[2]["gate.weight"].abs().max() > 1e-3


class TestStartFromABatch:
    def test_gates_find_clusters(self):
        x, which = two_domains(0)
        layer = cnlib.ModeNorm(3, 2).double()
        assert (layer.gates(x) - 0.5).abs().max() < 0.2
        layer.start_from(x)
        found = layer.gates(two_domains(1)[0]).argmax(1)
        assert torch.equal(found, which) or torch.equal(found, 1 - which)
        assert layer.gates(x).amax(1).min() > 0.99

    @settings(max_examples=20)
    @given(seed=seeds, k=st.integers(1, 4))
    def test_they_are_what_the_formula_says(self, seed, k):
        """Of the means of the clusters that are found, and of the distance to them."""
        torch.manual_seed(seed)
        x = double((20, 3, 4), seed, shift=5)
        layer, pooled = cnlib.ModeNorm(3, k).double(), x.mean(2)
        layer.start_from(x)
        gates = layer.gates(x)
        which = gates.argmax(1)
        assume(len(which.unique()) == k)
        centers = torch.stack([pooled[which == j].mean(0) for j in range(k)])
        distance = (pooled[:, None] - centers).square().sum(2)
        assert torch.equal(distance.argmin(1), which)
        assert_same(gates, (-distance / (2 * (distance.amin(1).mean() + 1e-5))).softmax(1))

    def test_clusters_that_are_none_give_gates_that_are_not_sure(self):
        layer, x = cnlib.ModeNorm(8, 4).double(), double((256, 8, 3), 0)
        torch.manual_seed(0)
        layer.start_from(x)
        gates = layer.gates(x)
        assert effective_number(gates) > 3 and gates.amax(1).mean() < 0.6
        assert gates.std(0).min() > 0.03  # nor equal

    def test_one_mode_stays_batch_norm(self):
        layer, x = cnlib.ModeNorm(3, 1).double(), double((6, 3, 4), 0)
        layer.start_from(x)
        assert_same(layer(x), cnlib.BatchNorm(3).double()(x))

    def test_only_gates_move(self):
        layer, x = layer_of(3), double((6, 3, 4), 0)
        before = copy.deepcopy(layer.state_dict())
        layer.start_from(x)
        assert {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])} == {
            "gate.weight",
            "gate.bias",
        }

    def test_samples_that_are_all_the_same_are_no_clusters(self):
        layer, x = cnlib.ModeNorm(3, 2), torch.ones(6, 3, 4)
        layer.start_from(x)
        assert_same(layer.gates(x), torch.full((6, 2), 0.5))

    def test_too_few_samples_are_refused(self):
        with pytest.raises(ValueError, match="start_from: 2 samples for 2 clusters, expected more"):
            cnlib.ModeNorm(3, 2).start_from(torch.zeros(2, 3, 4))


@settings(max_examples=10)
@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients_through_the_gates_and_moments_it_returns(shape, k, seed):
    def function(x, gates, weight, bias):
        return Modes.apply(x, gates, None, None, weight, bias, None, None, 1e-2)

    x, c = double(shape, seed).reshape(*shape[:2], -1), shape[1]
    check_gradients(function, x, draw_tau(shape[0], k, (), seed), double((c,), 3), double((c,), 4))
