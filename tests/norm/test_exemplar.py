"""ExemplarNorm against finite differences, its equations word for word, and the layers whose outputs it mixes."""

import itertools

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
from torch import nn

import cnlib
from cnlib.norm.exemplar import Exemplar
from cnlib.norm.index_sets import NORMALIZERS

F = cnlib.functional
SETS = [names for k in (1, 2, 3) for names in itertools.permutations(NORMALIZERS, k)]
AXES = {"in": (2,), "ln": (1, 2), "bn": (0, 2)}


def layer_of(c, names=NORMALIZERS, **options):
    """A small layer whose ratios depend on x, always the same."""
    torch.manual_seed(0)
    return shake(cnlib.ExemplarNorm(c, normalizers=names, reduction=2, hidden=1, **options))


def word_for_word(layer, x):
    """The printed equations, one normalized copy of x a normalizer, and the network one sample at a time."""
    flat = x.reshape(*x.shape[:2], -1)
    moments = {
        name: (flat.mean(axes, keepdim=True), flat.var(axes, keepdim=True, correction=0)) for name, axes in AXES.items()
    }
    if not layer.training and "bn" in layer.normalizers:
        moments["bn"] = layer.running_mean[:, None], layer.running_var[:, None]
    chosen = [
        (m.expand(*flat.shape[:2], 1), (v + layer.eps).sqrt().expand(*flat.shape[:2], 1))
        for m, v in (moments[name] for name in layer.normalizers)
    ]
    net, out = layer.network, []
    for n in range(len(x)):
        q = [((flat[n].mean(1) - m[n, :, 0]) / s[n, :, 0]) for m, s in chosen]
        z = torch.stack([(q_k * net.filters).reshape(-1, net.block).sum(1) for q_k in q])
        hidden = torch.tanh(net.hidden_weight @ (z @ z.t()).reshape(-1) + net.hidden_bias)
        ratios = torch.softmax(net.output_weight @ hidden + net.output_bias, 0)
        out.append(
            sum(
                ratios[k] * (layer.weight[k][:, None] * (flat[n] - m[n]) / s[n] + layer.bias[k][:, None])
                for k, (m, s) in enumerate(chosen)
            )
        )
    return torch.stack(out).reshape(x.shape)


def enough(shape):
    return shape[0] * torch.Size(shape[2:]).numel() > 1


@settings(max_examples=6)
@given(shape=shapes, names=st.sampled_from(SETS), seed=seeds)
def test_gradients(shape, names, seed):
    """Of x, weight, bias, the filters and both layers of the network, in training and evaluation."""
    assume(enough(shape))
    layer = layer_of(shape[1], names, eps=1e-1)
    check_layer_gradients(layer, double(shape, seed))
    layer.eval()
    if "bn" in names:
        layer.running_mean.copy_(double((shape[1],), 7)), layer.running_var.copy_(double((shape[1],), 8).exp())
    check_layer_gradients(layer, double(shape, seed))


@settings(max_examples=8)
@given(shape=shapes, seed=seeds)
def test_gradients_of_given_ratios(shape, seed):
    check_gradients(lambda x, r: F.exemplar_norm(x, r, 1e-2), double(shape, seed), draw_tau(shape[0], 3, (), seed))


@pytest.mark.parametrize("names", SETS[-1:] + SETS[:1])
def test_gradients_through_ratios_and_moments_it_returns(names):
    x, layer = double((3, 4, 2), 0), layer_of(4, names)
    weight, bias, *network = (parameter.detach() for parameter in layer.parameters())

    def function(x, weight, bias, *network):
        return Exemplar.apply(x, None, weight, bias, *network, None, None, names, 2, 1e-1, None)[:-1]

    check_gradients(function, x, weight, bias, *network)


@given(shape=shapes, names=st.sampled_from(SETS), seed=seeds)
def test_manual_is_autograd_is_the_equation(shape, names, seed):
    assume(enough(shape))
    for training in (True, False):
        results = []
        for gradient, call in (
            ("manual", lambda layer, x: layer(x)),
            ("autograd", lambda layer, x: layer(x)),
            ("autograd", word_for_word),
        ):
            layer, x = layer_of(shape[1], names, gradient=gradient), leaf(double(shape, seed))
            with cnlib.frozen(layer):
                y = call(layer.train(training), x)
            grads = torch.autograd.grad((y * double(shape, 5)).sum(), [x, *layer.parameters()])
            results.append((y, grads))
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])


SINGLE = {"in": lambda c: cnlib.InstanceNorm(c, affine=True), "ln": cnlib.LayerNorm, "bn": cnlib.BatchNorm}


@pytest.mark.parametrize("name", NORMALIZERS)
@given(shape=shapes, seed=seeds)
def test_one_normalizer_is_that_layer(name, shape, seed):
    assume(torch.Size(shape[2:]).numel() > 1)
    ours, theirs = layer_of(shape[1], (name,)), SINGLE[name](shape[1]).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight[0]), theirs.bias.copy_(ours.bias[0])
    for step in range(2):
        x = double(shape, seed + step, scale=3, shift=2)
        (y, dx, grads), wanted = run(ours, x), run(theirs, x)
        assert_same((y, dx), wanted[:2])
        assert_same({key: grads[key][0] for key in ("weight", "bias")}, wanted[2])
    x = double(shape, seed + 5, scale=2)
    assert_same(run(ours.eval(), x)[:2], run(theirs.eval(), x)[:2])


class TestStart:
    """Before training the output weights are 0."""

    def test_it_is_the_mean_of_the_three_outputs_and_not_switchable_norm(self):
        x = double((8, 6, 5, 5), 0)
        x[:, :3] *= 3
        start, third = cnlib.ExemplarNorm(6).double(), torch.full((3,), 1 / 3, dtype=torch.float64)
        three = cnlib.InstanceNorm(6)(x) + cnlib.LayerNorm(6, affine=False)(x) + F.batch_norm(x)
        assert_same(start(x), three / 3)
        assert_same(F.exemplar_norm(x, third.expand(8, 3)), three / 3)
        # a mixture of moments is not a mixture of outputs
        assert (start(x) - F.switchable_norm(x, third, third)).abs().max() > 0.05

    def test_ratios_are_equal_and_move_with_the_network(self):
        layer, x = cnlib.ExemplarNorm(6).double(), double((8, 6, 5), 0)
        assert_same(layer.ratios(x), torch.full((8, 3), 1 / 3).double())
        run(layer, x)
        grads = {name: parameter.grad.abs().max() for name, parameter in layer.network.named_parameters()}
        assert grads.pop("output_weight") > 0 and grads.pop("output_bias") > 0 and not any(grads.values())

    def test_filters_have_variance_1_over_r(self):
        network = cnlib.ExemplarNorm(6400, reduction=32).network
        assert_same(network.filters.var(), torch.tensor(1 / 32), atol=3e-3, rtol=0)
        assert (network.hidden_weight.shape, network.output_weight.shape) == ((150, 9), (3, 150))
        assert 0.3 < network.hidden_weight.abs().max() <= 1 / 3

    @pytest.mark.parametrize(("c", "block"), [(64, 32), (128, 32), (6, 6), (48, 24), (37, 1), (1, 1)])
    def test_blocks_divide_the_channels(self, c, block):
        layer = cnlib.ExemplarNorm(c)
        assert layer.network.block == block and layer(torch.randn(4, c, 2)).shape == (4, c, 2)


class TestRatios:
    x = double((6, 4, 3), 0, scale=2)

    def test_each_sample_has_its_own_that_sum_to_1(self):
        ratios = layer_of(4).ratios(self.x)
        assert_same(ratios.sum(1), torch.ones(6).double())
        assert ratios.std(0).max() > 1e-3

    def test_equal_samples_have_equal_ratios(self):
        ratios = layer_of(4).ratios(self.x[[0, 1, 0, 2, 3, 0]])
        assert_same(ratios[[0, 0]], ratios[[2, 5]])
        assert not torch.allclose(ratios[0], ratios[1])

    def test_permuted_samples_have_permuted_outputs(self):
        layer, order = layer_of(4), torch.tensor([3, 0, 5, 1, 2, 4])
        assert_same(layer(self.x[order]), layer(self.x)[order])

    def test_evaluation_does_not_look_at_other_samples(self):
        layer = layer_of(4)
        layer(self.x)
        layer.eval()
        assert_same(layer(self.x)[:2], layer(self.x[:2]))
        assert_same(layer.ratios(self.x)[1:3], layer.ratios(self.x[1:3]))

    def test_asking_for_them_moves_nothing(self):
        layer = layer_of(4)
        layer.ratios(self.x)
        assert int(layer.num_batches_tracked) == 0 and not layer.running_mean.any()

    def test_what_instance_norm_adds_to_the_ratios_is_0(self):
        """The pooled mean is IN's own: of nine correlations four move ratios, in training with N = 1 one."""
        layer = layer_of(4)
        before, single = layer.ratios(self.x), layer.ratios(self.x[:1])
        row = [0, 1, 2, 3, 6]
        with torch.no_grad():
            layer.network.hidden_weight[:, row] += 1
        assert_same(layer.ratios(self.x), before)
        with torch.no_grad():
            layer.network.hidden_weight[:, [5, 7, 8]] += 1
        assert not torch.allclose(layer.ratios(self.x), before)
        assert_same(layer.ratios(self.x[:1]), single)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_position_is_finite(gradient):
    for shape in ((6, 3, 1, 1), (6, 3)):
        layer = layer_of(3, gradient=gradient).float()
        y, dx, grads = run(layer, double(shape, 0).float())
        assert all(t.isfinite().all() for t in (y, dx, *grads.values()))


def test_a_constant_gives_the_mixed_biases():
    layer, x = layer_of(3), torch.full((4, 3, 5), 7.0).double()
    y, dx, _ = run(layer, x)
    assert_same(y, (layer.ratios(x) @ layer.bias).detach()[:, :, None].expand(4, 3, 5))
    assert dx.isfinite().all()


def test_scale_and_shift_of_x_do_not_matter():
    layer, x = layer_of(3, eps=0.0), double((4, 3, 5), 0)
    assert_same(layer(100 * x + 7), layer(x))


def test_large_mean_stays_accurate_in_float32():
    x = (double((8, 4, 8, 8), 0) + 1e4).float()
    layer = layer_of(4).float()
    assert_same(layer(x).double(), layer.double()(x.double()), atol=8e-3, rtol=0)


def test_without_batch_norm_nothing_runs():
    layer = layer_of(4, ("in", "ln"))
    assert not list(layer.buffers())
    x = double((1, 4, 1), 0)
    assert_same(layer(x), layer.eval()(x))


def test_a_weight_set_to_none_is_1():
    layer, x = layer_of(4), double((6, 4, 3), 0)
    nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    wanted = layer(x)
    layer.weight = layer.bias = None
    assert_same(layer(x), wanted)


def test_one_value_a_channel_is_refused_in_training_only():
    layer = cnlib.ExemplarNorm(3)
    with pytest.raises(ValueError, match="ExemplarNorm: shape .* 1 value per channel"):
        layer(torch.zeros(1, 3, 1, 1))
    assert layer.eval()(torch.zeros(1, 3, 1, 1)).isfinite().all()
