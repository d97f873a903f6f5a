"""frozen and reestimate: running statistics that do not move, and those of all data at once."""

import copy
from dataclasses import dataclass

import pytest
import torch
from cases import assert_same, double, draw_tau
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cnlib

X = double((22, 3, 6, 5), 0, scale=2, shift=3)
PARTS = (5, 10, 7)


def layers(make):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 4, 2), make(4)).double()


MAKERS = {
    "ours": cnlib.BatchNorm,
    "torch's": nn.BatchNorm2d,
    "average": lambda c: cnlib.BatchNorm(c, momentum=None),
    "our instance": lambda c: cnlib.InstanceNorm(c, track_running_stats=True),
    "torch's instance": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    "mixture": lambda c: cnlib.MixtureNorm(c, 2),
    "switchable": cnlib.SwitchableNorm,
    "exemplar": cnlib.ExemplarNorm,
    "mode": cnlib.ModeNorm,
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def everything(model):
    """All that a call must not change, by name: values, and attributes that say how a layer runs."""
    seen = {name: value.clone() for name, value in model.state_dict().items()}
    for name, layer in model.named_modules():
        for attribute in ("training", "momentum", "track_running_stats", "given_ids"):
            if hasattr(layer, attribute):
                seen[f"{name}.{attribute}"] = getattr(layer, attribute)
        seen[f"{name}.hooks"] = len(layer._forward_pre_hooks) + ("update_running" in vars(layer))
    return seen


def assert_unchanged(model, before, but=()):
    now = everything(model)
    assert now.keys() == before.keys()
    for name, value in before.items():
        if not name.endswith(but or ("nothing",)):
            same = torch.equal(value, now[name]) if isinstance(value, torch.Tensor) else value == now[name]
            assert same, name


class TestFrozen:
    @every_kind
    def test_nothing_moves_and_outputs_are_those_of_training(self, make):
        model = layers(make)
        model(X)
        before, other = everything(model), copy.deepcopy(model)
        with cnlib.frozen(model) as inside:
            assert inside is model
            assert_same(model(X + 1), other(X + 1))
            # evaluation inside still reads the running statistics
            evaluated = model.eval()(X)
            model.train()
        assert_unchanged(model, before)
        assert_same(evaluated, copy.deepcopy(model).eval()(X), atol=1e-12, rtol=1e-12)
        model(2 * X)
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])

    @every_kind
    def test_blocks_nest_and_end_after_an_error(self, make):
        model = layers(make)
        model(X)
        before = everything(model)
        with pytest.raises(KeyError), cnlib.frozen(model):
            with cnlib.frozen(model[1]):
                model(X + 1)
            model(X + 2)
            raise KeyError
        assert_unchanged(model, before)

    def test_a_layer_frozen_for_good_stays_so(self):
        model = layers(cnlib.BatchNorm)
        model[1].track_running_stats = False
        with cnlib.frozen(model):
            model(X)
        assert not model[1].track_running_stats and model[4].track_running_stats

    def test_a_mixture_that_has_not_started_does_not_start(self):
        model = layers(MAKERS["mixture"])
        before = everything(model)
        with cnlib.frozen(model):
            assert torch.isfinite(model(X)).all()
        assert_unchanged(model, before)


class TestFlagSetLater:
    """track_running_stats set after construction means what it means in torch."""

    @pytest.mark.parametrize("made_with", [True, False])
    @pytest.mark.parametrize("flag", [True, False])
    def test_batch_norm(self, made_with, flag):
        ours = cnlib.BatchNorm(3, track_running_stats=made_with).double()
        theirs = nn.BatchNorm2d(3, track_running_stats=made_with).double()
        ours(X), theirs(X)
        ours.track_running_stats = theirs.track_running_stats = flag
        for _ in range(2):
            assert_same(ours(X + 1), theirs(X + 1))
            assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
            ours.eval(), theirs.eval()

    @pytest.mark.parametrize("flag", [True, False])
    def test_instance_norm(self, flag):
        ours = cnlib.InstanceNorm(3, track_running_stats=True).double()
        theirs = nn.InstanceNorm2d(3, track_running_stats=True).double()
        ours(X), theirs(X)
        ours.eval().track_running_stats = theirs.eval().track_running_stats = flag
        assert_same(ours(X + 1), theirs(X + 1))

    def test_one_of_weight_and_bias_can_be_missing(self):
        for part in ("weight", "bias"):
            ours, theirs = cnlib.BatchNorm(3).double(), nn.BatchNorm2d(3).double()
            for layer in (ours, theirs):
                nn.init.constant_(layer.weight, 2.0), nn.init.constant_(layer.bias, 3.0)
                setattr(layer, part, None)
            results = []
            for layer in (ours, theirs):
                x = X.clone().requires_grad_()
                layer(x).pow(3).sum().backward()
                results.append([x.grad, *(p.grad for p in layer.parameters()), layer.eval()(X).detach()])
            assert_same(results[0], results[1])


def pooled(z):
    """Mean and unbiased variance of each channel of all of z (N, C, *)."""
    values = z.transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1)


class Recorder:
    """The inputs of a layer, over a pass."""

    def __init__(self, layer):
        self.seen = []
        layer.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].detach().clone()))

    def all(self):
        return torch.cat(self.seen)


class TestReestimate:
    @pytest.mark.parametrize("kind", ["ours", "torch's", "average", "switchable", "exemplar"])
    def test_statistics_are_those_of_all_images_at_once(self, kind):
        model = layers(MAKERS[kind])
        for _ in range(3):
            model(double((8, 3, 6, 5), 5))
        copied = copy.deepcopy(model)
        inputs = Recorder(copied[1]), Recorder(copied[4])
        for part in X.split(PARTS):
            copied(part)
        before = everything(model)
        assert cnlib.reestimate(model, X.split(PARTS)) is model
        assert_unchanged(model, before, but=("running_mean", "running_var"))
        # the first layer as one large batch would have it; a deeper one sees what batch statistics before it made
        assert_same([model[1].running_mean, model[1].running_var], list(pooled(model[0](X).detach())))
        for layer, recorded in zip((model[1], model[4]), inputs, strict=True):
            assert_same([layer.running_mean, layer.running_var], list(pooled(recorded.all())))

    @pytest.mark.parametrize("kind", ["our instance", "torch's instance"])
    def test_instance_norm_averages_over_samples(self, kind):
        model, whole = layers(MAKERS[kind]), layers(MAKERS[kind])
        whole[1].momentum = whole[4].momentum = 1.0
        whole(X)
        before = everything(model)
        cnlib.reestimate(model, X.split(PARTS))
        assert_unchanged(model, before, but=("running_mean", "running_var"))
        assert_same(dict(model.state_dict()), dict(whole.state_dict()))

    def test_mixture_norm_with_given_responsibilities(self):
        model, tau = layers(MAKERS["mixture"]), draw_tau(22, 2, (), 1)
        cnlib.reestimate(model, [(x, None, t) for x, t in zip(X.split(PARTS), tau.split(PARTS), strict=True)])
        whole = layers(MAKERS["mixture"])
        with torch.no_grad():
            whole[1](whole[0](X), tau)
        for name, value in whole[1].state_dict().items():
            if name == "num_batches_tracked":
                assert int(model[1].num_batches_tracked) == 0 and not model[1].started
            else:
                assert_same(model[1].state_dict()[name], value)

    def test_an_empty_component_keeps_its_moments(self):
        layer = cnlib.MixtureNorm(3, 2).double()
        tau = torch.tensor([1.0, 0.0]).double().expand(22, 2)
        cnlib.reestimate(layer, [(X, None, tau)])
        assert_same(layer.running_prior, tau[0])
        assert_same(layer.running_mean[1], torch.zeros(3).double())
        assert_same(layer.running_mean[0], X.mean((0, 2, 3)))

    def test_em_starts_each_batch_from_the_buffers_as_they_were(self):
        model = nn.Sequential(cnlib.MixtureNorm(3, 2)).double()
        data = X + 20 * (torch.arange(22) % 2).view(-1, 1, 1, 1)
        model(data[:8])
        layer, tau = model[0], []
        for part in data.split(PARTS):
            tau.append(layer._fit(part))
        before = everything(model)
        cnlib.reestimate(model, data.split(PARTS))
        assert_unchanged(model, before, but=("running_mean", "running_var", "running_prior"))
        weights = torch.cat(tau).transpose(0, 1).flatten(1)
        values = data.transpose(0, 1).flatten(1)
        mass = weights.sum(1)
        mean = weights @ values.t() / mass[:, None]
        var = torch.stack([(w * (values - m[:, None]).square()).sum(1) for w, m in zip(weights, mean, strict=True)])
        assert_same(layer.running_prior, mass / mass.sum())
        assert_same(layer.running_mean, mean)
        shares = weights / mass[:, None]
        assert_same(layer.running_var, var / (mass * (1 - shares.square().sum(1)))[:, None])

    def test_the_first_batch_starts_a_mixture_that_has_not_started(self):
        layer = cnlib.MixtureNorm(3, 2).double()
        data = X + 50 * (torch.arange(22) % 2).view(-1, 1, 1, 1)
        cnlib.reestimate(layer, data.split(PARTS))
        # had each batch named its own components, their means would be mixed
        assert_same(layer.running_mean.sort(0).values, torch.stack([X[::2], X[1::2] + 50]).mean((1, 3, 4)))
        assert int(layer.num_batches_tracked) == 0 and not layer.started

    def test_contexts_come_with_each_batch(self):
        model = nn.Sequential(cnlib.ContextNorm(3, 2), cnlib.BatchNorm(3)).double()
        nn.init.normal_(model[0].mean)
        ids = torch.arange(22) % 2
        pairs = list(zip(X.split(PARTS), ids.split(PARTS), strict=True))
        cnlib.reestimate(model, pairs)
        expected = pooled(model[0](X, ids).detach())
        assert_same([model[1].running_mean, model[1].running_var], list(expected))

        @dataclass
        class Batch:
            x: torch.Tensor
            ids: torch.Tensor | None = None

        other = copy.deepcopy(model)
        cnlib.reestimate(other, [Batch(*pair) for pair in pairs])
        assert_same(dict(other.state_dict()), dict(model.state_dict()))
        with pytest.raises(ValueError, match="no context"):
            cnlib.reestimate(model, X.split(PARTS))

    def test_labels_are_not_contexts(self):
        loader = DataLoader(TensorDataset(X, torch.arange(22)), batch_size=9, shuffle=True)
        for batches in (loader, [(X, ["cat", "dog"])]):
            model = layers(cnlib.BatchNorm)
            cnlib.reestimate(model, batches)
            assert_same([model[1].running_mean, model[1].running_var], list(pooled(model[0](X).detach())))

    def test_float32_far_from_zero(self):
        layer = cnlib.BatchNorm(3)
        x = (double((400, 3), 0) + 1e4).float()
        x[:200] += 5
        cnlib.reestimate(layer, x.split(7 * [50] + [30, 20]))
        assert_same(layer.running_var, x.double().var(0).float(), rtol=1e-3, atol=0)

    def test_modes_and_random_numbers_are_as_before(self):
        model = nn.Sequential(nn.Dropout(0.5), cnlib.BatchNorm(3), cnlib.MixtureNorm(3, 2)).double()
        model(X)
        model.eval()
        model[0].train()
        state, before = torch.get_rng_state(), everything(model)
        cnlib.reestimate(model, [X])
        assert torch.equal(torch.get_rng_state(), state)
        assert_unchanged(model, before, but=("running_mean", "running_var", "running_prior"))
        assert not any(p.grad is not None for p in model.parameters())

    @every_kind
    def test_an_error_leaves_the_model_as_it_was(self, make):
        model = layers(make).eval()
        state, before = torch.get_rng_state(), everything(model)

        def batches():
            yield X
            raise KeyError

        with pytest.raises(KeyError):
            cnlib.reestimate(model, batches())
        with pytest.raises(RuntimeError):
            cnlib.reestimate(model, [X, X[:, :2]])
        assert_unchanged(model, before)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_layer_used_twice_or_never(self):
        model = nn.ModuleDict({"twice": cnlib.BatchNorm(3), "never": cnlib.BatchNorm(3)}).double()
        model.forward = lambda x: model["twice"](model["twice"](x))
        never = model["never"].running_var.clone()
        cnlib.reestimate(model, [X])
        once = nn.functional.batch_norm(X, None, None, training=True)
        assert_same(model["twice"].running_mean, pooled(torch.cat((X, once)))[0])
        assert torch.equal(model["never"].running_var, never)

    @pytest.mark.parametrize(
        ("make", "batches", "error", "message"),
        [
            (lambda c: cnlib.BatchNorm(c, track_running_stats=False), [X], ValueError, "no layer of this model keeps"),
            (lambda c: cnlib.LayerNorm(c), [X], ValueError, "nothing to estimate"),
            (cnlib.BatchNorm, [], ValueError, "no batch.*at least one"),
            (cnlib.BatchNorm, [{"x": X}], TypeError, r"a batch is a dict; expected a tensor x, a tuple \(x, ids\)"),
        ],
    )
    def test_errors_say_what_came_and_what_was_expected(self, make, batches, error, message):
        with pytest.raises(error, match=message):
            cnlib.reestimate(layers(make), batches)

    def test_a_compiled_model_is_the_model(self):
        model = layers(cnlib.BatchNorm)
        cnlib.reestimate(torch.compile(model), X.split(PARTS))
        assert_same([model[1].running_mean, model[1].running_var], list(pooled(model[0](X).detach())))


def test_other_layers_stay_in_the_mode_they_are_in():
    """After model.eval(): no dropout, and CN+ where a layer is to be read with it; a model in training is taken so."""
    torch.manual_seed(0)
    x, ids = torch.randn(60, 4), torch.arange(60) % 3
    context = cnlib.ContextNorm(4, 3, start="glorot")
    model = nn.Sequential(context, nn.Dropout(0.5), cnlib.BatchNorm(4)).eval()
    context.inference = "cn+"
    cnlib.reestimate(model, [(x, ids)])
    expected = cnlib.functional.context_norm_plus(x, *context.moments())
    torch.testing.assert_close(model[2].running_mean, expected.mean(0), atol=1e-6, rtol=1e-5)
    assert not model[2].training and not context.training
    cnlib.reestimate(model.train(), [(x, ids)])
    assert not torch.allclose(model[2].running_var, expected.var(0), rtol=0.1)
    assert all(layer.training for layer in model)
