"""GatedContextNorm against finite differences, its equation, and the context norm that it is under sure gates."""

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
    seeds,
    shake,
    shapes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import cnlib
from cnlib.norm.gated import GatedStandardize

F = cnlib.functional


def layer_of(c, k=3, **options):
    torch.manual_seed(0)
    return shake(cnlib.GatedContextNorm(c, k, **options))


def word_for_word(x, gates, mean, var, eps):
    """Eq. (5) under each context, mixed: K normalized copies of x."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    per_sample = (-1, 1) + (1,) * (x.dim() - 2)
    copies = [(x - m.view(shape)) / (v + eps).sqrt().view(shape) for m, v in zip(mean, var, strict=True)]
    return sum(gates[:, k].view(per_sample) * copies[k] for k in range(len(mean)))


@settings(max_examples=10)
@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients(shape, k, seed):
    """Of x, also through the gates, of the moments and of the gate's parameters."""
    check_layer_gradients(layer_of(shape[1], k, eps=1e-2), double(shape, seed))


@settings(max_examples=10)
@given(shape=shapes, k=st.integers(1, 3), seed=seeds)
def test_gradients_of_given_gates(shape, k, seed):
    x, gates = double(shape, seed).reshape(*shape[:2], -1), draw_tau(shape[0], k, (), seed)
    mean, var = double((k, shape[1]), 1), double((k, shape[1]), 2).exp()
    check_gradients(lambda *a: GatedStandardize.apply(*a, 1e-2), x, gates, mean, var)


@given(shape=shapes, k=st.integers(1, 4), seed=seeds)
def test_manual_is_autograd_is_the_equation(shape, k, seed):
    results = []
    for gradient in (*GRADIENTS, None):
        layer, x = layer_of(shape[1], k, gradient=gradient or "autograd"), leaf(double(shape, seed, shift=2))
        y = layer(x) if gradient else word_for_word(x, layer.gates(x), *layer.moments(), layer.eps)
        results.append([y, *torch.autograd.grad((y * double(shape, 5)).sum(), [x, *layer.parameters()])])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def sure(layer):
    """A layer whose gates are 0 and 1 to the last digit: the sign of the first channel's mean chooses."""
    with torch.no_grad():
        layer.gate.weight.zero_(), layer.gate.bias.zero_()
        layer.gate.weight[0, 0], layer.gate.weight[1, 0] = -2000.0, 2000.0
    return layer


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_sure_gates_are_context_norm_with_these_ids(hard, training):
    layer, x = sure(layer_of(3, 2, hard=hard)).train(training), double((8, 3, 4), 0)
    ids = (x[:, 0].mean(1) > 0).long()
    mean, var = layer.moments()
    assert_same(layer(x), F.context_norm(x, ids, mean, var))


@given(shape=shapes, seed=seeds)
def test_one_context_is_context_norm(shape, seed):
    layer, x = layer_of(shape[1], 1), double(shape, seed)
    assert_same(layer(x), F.context_norm(x, torch.zeros(shape[0], dtype=torch.long), *layer.moments()))


def test_the_batch_does_not_matter():
    layer, x = layer_of(3), double((6, 3, 4), 0)
    assert_same(layer(x)[:2], layer(x[:2]))
    assert_same(layer.eval()(x), layer.train()(x))
    assert not list(layer.buffers())


def test_the_start_is_no_saddle():
    """The gate has a gradient from the first step on; with equal contexts it has none."""
    layer, x = cnlib.GatedContextNorm(6, 3), torch.randn(16, 6, 5)
    target = torch.randn(16, 6, 5)
    for equal in (False, True):
        if equal:
            with torch.no_grad():
                layer.mean.copy_(layer.mean[:1].expand_as(layer.mean))
        layer.zero_grad()
        (layer(x) * target).sum().backward()
        largest = layer.gate.weight.grad.abs().max()
        assert largest < 1e-4 if equal else largest > 1e-2
    fresh = cnlib.GatedContextNorm(400, 5)
    assert_same(fresh.mean.std(), torch.tensor(0.1), atol=5e-3, rtol=0)
    assert not fresh.log_var.any()


@pytest.mark.parametrize("hard", [False, True])
def test_from_a_batch_it_starts_as_mode_norm_of_it(hard):
    layer, x = cnlib.GatedContextNorm(3, 2, eps=1e-9, hard=hard).double(), double((12, 3, 4), 0, shift=2)
    layer.start_from(x)
    gates = layer.gate.logits(x, "manual").softmax(1)
    assert (gates - 0.5).abs().max() > 0.1
    if not hard:
        assert_same(layer(x), F.mode_norm(x, gates, 1e-9), atol=1e-6, rtol=1e-6)
    (layer(x) * double((12, 3, 4), 1)).sum().backward()
    assert layer.gate.weight.grad.abs().max() > 1e-2
    assert not layer.mean.grad.isnan().any()


class TestHard:
    x = double((64, 4, 3), 0)

    def test_one_context_a_sample(self):
        layer = layer_of(4, hard=True)
        for training in (True, False):
            gates = layer.train(training).gates(self.x)
            assert ((gates == 0) | (gates == 1)).all()
            assert_same(gates.sum(1), torch.ones(64).double())
        assert_same(gates.argmax(1), layer_of(4).gates(self.x).argmax(1))

    def test_the_gradient_is_that_of_the_soft_gates(self):
        hard, soft = (layer_of(4, hard=hard).eval() for hard in (True, False))
        target = double((64, 3), 1)
        grads = [
            torch.autograd.grad((layer.gates(self.x) * target).sum(), layer.gate.weight)[0] for layer in (hard, soft)
        ]
        assert_same(*grads)

    def test_training_draws_as_the_probabilities_say(self):
        layer, one = layer_of(4, hard=True), self.x[:1].expand(20_000, 4, 3)
        wanted = layer_of(4).gates(self.x[:1])[0]
        torch.manual_seed(0)
        assert_same(layer.gates(one).mean(0), wanted, atol=0.015, rtol=0)

    def test_a_low_temperature_makes_the_gradient_of_few(self):
        sizes = []
        for temperature in (2.0, 0.1):
            layer = layer_of(4, hard=True, temperature=temperature)
            torch.manual_seed(0)
            soft = torch.autograd.grad(layer.gates(self.x)[:, 0].sum(), layer.gate.bias)[0]
            sizes.append(float(soft.abs().max()))
        assert sizes[0] != sizes[1]
        layer.temperature = 2.0
        torch.manual_seed(0)
        again = torch.autograd.grad(layer.gates(self.x)[:, 0].sum(), layer.gate.bias)[0]
        assert float(again.abs().max()) == sizes[0]


def test_it_finds_two_domains():
    """Trained to reconstruct standardized samples, soft and hard gates separate the domains they came from."""
    which = torch.arange(64) % 2
    noise = double((64, 3, 4), 0).float()
    x = noise + 6 * (2 * which - 1)[:, None, None]
    for hard in (False, True):
        torch.manual_seed(0)
        layer = cnlib.GatedContextNorm(3, 2, hard=hard)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (layer(x) - noise).square().mean()
            loss.backward()
            optimizer.step()
        found = layer.eval().gates(x).argmax(1)
        agreement = (found == which).float().mean()
        assert max(agreement, 1 - agreement) == 1.0, hard
