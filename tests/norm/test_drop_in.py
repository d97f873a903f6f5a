"""A layer of ours where torch's stood: torch's numbers in every mode it documents, or a sentence."""

import copy
import itertools

import pytest
import torch
from cases import GRADIENTS, LAYERS, assert_same, double
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import cnlib

PAIRS = {
    "bn": (cnlib.BatchNorm, nn.BatchNorm1d),
    "in": (cnlib.InstanceNorm, nn.InstanceNorm1d),
}
every_layer = pytest.mark.parametrize(("make", "extra"), LAYERS.values(), ids=LAYERS)
RUNNING = ("running_mean", "running_var")


def history(layer, none, flag, shape):
    """All that a layer gives in training, evaluation and training again, after what was changed on it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    for _ in range(2):
        layer(torch.randn(8, 4, 5, generator=generator) + 1)
    for name in none:
        setattr(layer, name, None)
    if flag is not None:
        layer.track_running_stats = flag
    seen = []
    for training in (True, False, True):
        x = torch.randn(shape, generator=generator, requires_grad=True)
        y = layer.train(training)(x)
        grads = torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True)
        seen += [y.detach(), *grads]
    return [*seen, dict(layer.state_dict())]


PARTS = [(), ("weight",), ("bias",), RUNNING, ("num_batches_tracked",), (*RUNNING, "num_batches_tracked")]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("affine", "track", "bias"), [*itertools.product((True, False), repeat=3)])
@pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
def test_flags_and_parts_are_torchs(name, affine, track, bias, momentum):
    for none, flag, shape in itertools.product(PARTS, (None, True, False), ((6, 4, 5), (0, 4, 5), (3, 4, 0), (6, 4))):
        options = {"affine": affine, "track_running_stats": track, "momentum": momentum}
        gone = RUNNING[0] in none or not track
        if name == "in" and (len(shape) == 2 or shape[0] == 0 or (gone and (track or flag)) or flag is False):
            continue  # torch raises there, or moves statistics it was told not to track
        ours, theirs = PAIRS[name][0](4, bias=bias, **options), PAIRS[name][1](4, **options)
        if affine and not bias:
            theirs.bias = None  # torch 2.11 has no keyword for it
        assert_same(
            history(ours, none, flag, shape),
            history(theirs, none, flag, shape),
            atol=1e-5,
            rtol=1e-4,
            msg=lambda text, at=(none, flag, shape): f"{at}: {text}",
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 5), (0, 4, 5), (2, 4, 3, 3), (3, 4)])
def test_group_and_layer_norm_are_torchs(shape, bias, training):
    pairs = [(cnlib.GroupNorm(num_groups=2, num_channels=4, bias=bias), nn.GroupNorm(2, 4))]
    if len(shape) == 2:
        pairs += [
            (cnlib.LayerNorm(normalized_shape=4, bias=bias), nn.LayerNorm(4)),
            (cnlib.RMSNorm(normalized_shape=4, elementwise_affine=bias), nn.RMSNorm(4, elementwise_affine=bias)),
        ]
    for ours, theirs in pairs:
        if not bias and hasattr(theirs, "bias"):
            theirs.bias = None
        for layer in (ours, theirs):
            for parameter, value in zip(layer.parameters(), double((2, 4), 3).float(), strict=False):
                parameter.data.copy_(value)
        x = double(shape, 0).float()
        outcomes = []
        for layer in (ours.train(training), theirs.train(training)):
            own = x.clone().requires_grad_()
            y = layer(input=own) if layer is ours else layer(own)
            outcomes.append([y.detach(), *torch.autograd.grad(y.pow(2).sum(), [own, *layer.parameters()])])
        assert_same(*outcomes, atol=1e-5, rtol=1e-4)


@every_layer
@pytest.mark.parametrize("shape", [(0, 6, 8), (4, 6, 0), (0, 6, 0), (0, 6, 2, 2)])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_in_nothing_out(make, extra, shape, gradient, training):
    layer = make(gradient=gradient).train(training)
    state = copy.deepcopy(layer.state_dict())
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x, *(e[: shape[0]] for e in extra))
    assert y.shape == x.shape and y.dtype == x.dtype
    # zeros, not None: DistributedDataParallel waits for each
    own = [p for n, p in layer.named_parameters() if n in ("weight", "bias")]
    for grad in torch.autograd.grad(y.sum(), [x, *own]):
        assert not grad.any()
    del state["num_batches_tracked" if "num_batches_tracked" in state else next(iter(state), "")]
    assert_same({key: layer.state_dict()[key] for key in state}, state)


def test_one_running_moment_alone_is_refused():
    layer = cnlib.BatchNorm(2)
    layer.running_var = None
    for training in (True, False):
        with pytest.raises(ValueError, match="one of running_mean and running_var is None"):
            layer.train(training)(torch.randn(4, 2))
    mixture = cnlib.MixtureNorm(2)
    mixture.running_prior = None
    with pytest.raises(ValueError, match="some of running_prior"):
        mixture.eval()(torch.randn(4, 2))


class TestTools:
    def test_update_bn(self):
        model = AveragedModel(nn.Sequential(nn.Linear(3, 4), cnlib.BatchNorm(4)))
        data = [2 * torch.randn(16, 3) + 1 for _ in range(5)]
        update_bn(data, model)
        assert_same(model.module[1].running_mean, model.module[0](torch.cat(data)).mean(0))

    def test_replace_all_batch_norm_modules(self):
        model = nn.Sequential(cnlib.BatchNorm(4))
        torch.func.replace_all_batch_norm_modules_(model)
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        x = torch.randn(8, 4, 3)
        assert_same(model.eval()(x), nn.BatchNorm1d(4)(x))

    def test_loops_over_torchs_classes_find_them(self):
        base, instance = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
        assert isinstance(cnlib.BatchNorm(2), base) and isinstance(cnlib.InstanceNorm(2), instance)
        assert not isinstance(cnlib.MixtureNorm(2), base), "torch would make a batch norm of it"

    def test_torchs_synchronized_layer_takes_over_all_it_has(self):
        layer = cnlib.BatchNorm(4, eps=1e-3, momentum=0.3).eval()
        layer(torch.randn(8, 4))
        other = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))[0]
        assert (other.eps, other.momentum, other.training) == (1e-3, 0.3, False)
        assert_same(dict(other.state_dict()), dict(layer.state_dict()))

    def test_state_dicts_without_a_counter(self):
        theirs = nn.BatchNorm1d(4)
        theirs(torch.randn(8, 4))
        old = {key: value for key, value in theirs.state_dict().items() if "tracked" not in key}
        ours = cnlib.BatchNorm(4)
        ours.load_state_dict(old)  # strict: torch fills the counter in
        assert_same(ours.running_mean, theirs.running_mean)

    @pytest.mark.parametrize("name", ["bn", "in", "mn", "sn", "en", "mode"])
    def test_reset_running_stats(self, name):
        make, extra = LAYERS[name]
        layer = make()
        fresh = copy.deepcopy(layer)
        layer(torch.randn(4, 6, 8), *extra)
        layer.reset_running_stats()
        assert_same(dict(layer.state_dict()), dict(fresh.state_dict()))

    @every_layer
    def test_torch_fx_sees_one_node(self, make, extra):
        model = nn.Sequential(nn.Conv1d(2, 6, 1), make(), nn.ReLU()).eval()
        graph = torch.fx.symbolic_trace(model)
        assert [node.op for node in graph.graph.nodes].count("call_module") == 3
        x = torch.randn(4, 2, 8)
        ids, tau = [None if not extra or e.is_floating_point() != soft else e for e, soft in _both(extra)]
        with cnlib.use_context(graph, ids, tau), cnlib.use_context(model, ids, tau):
            assert_same(graph(x), model(x))
        with pytest.raises(TypeError, match=r"trace a model that contains it"):
            torch.fx.symbolic_trace(make())


def _both(extra):
    return [(extra[0] if extra else None, soft) for soft in (False, True)]


class TestARunningMixtureIsInItsBuffers:
    """Nothing that a forward depends on is left behind by what copies buffers."""

    def bunch(self, n, shift=0.0):
        return torch.randn(n, 2) + 6 * (torch.arange(n) % 2).view(-1, 1) + shift

    def trained(self):
        torch.manual_seed(0)
        layer = cnlib.MixtureNorm(2, 2, affine=False)
        for _ in range(20):
            layer(self.bunch(64))
        return layer

    def moved(self, layer):
        before = layer.running_mean.clone()
        layer.train()(self.bunch(64, 50.0))
        return float((layer.running_mean - before).abs().max())

    def test_averages_of_models(self):
        layer = self.trained()
        for use_buffers in (True, False):
            average = AveragedModel(cnlib.MixtureNorm(2, 2, affine=False), use_buffers=use_buffers)
            average.update_parameters(layer)
            assert 4 < self.moved(average.module) < 6

    def test_state_dicts_with_and_without_a_counter(self):
        state = self.trained().state_dict()
        for lacking in ((), ("num_batches_tracked",)):
            other = cnlib.MixtureNorm(2, 2, affine=False)
            other.load_state_dict({k: v for k, v in state.items() if k not in lacking}, strict=not lacking)
            assert 4 < self.moved(other) < 6

    def test_a_counter_set_to_none(self):
        layer = self.trained()
        layer.num_batches_tracked = None
        assert 4 < self.moved(layer) < 6
        fresh = cnlib.MixtureNorm(2, 2, affine=False)
        fresh.num_batches_tracked = None
        assert self.moved(fresh) > 40

    def test_replicas_that_share_buffers(self):
        layer = cnlib.MixtureNorm(2, 2, affine=False)
        for shift in (0.0, 50.0):
            replica = layer._replicate_for_data_parallel()
            replica._buffers = layer._buffers
            replica(self.bunch(64, shift))
        assert layer.started and layer.running_mean.max() < 20

    def test_functional_call_with_other_buffers(self):
        layer, fresh = self.trained(), cnlib.MixtureNorm(2, 2, affine=False)
        buffers = {key: value.clone() for key, value in layer.named_buffers()}
        x = self.bunch(64)
        assert_same(torch.func.functional_call(fresh, buffers, (x,)), copy.deepcopy(layer)(x))
        assert not fresh.started and int(buffers["num_batches_tracked"]) == 21

    def test_a_plain_average(self):
        layer = cnlib.MixtureNorm(2, 1, momentum=None)
        batches = [torch.randn(16, 2) + i for i in range(4)]
        for batch in batches:
            layer(batch)
        assert_same(layer.running_mean[0], torch.cat(batches).mean(0), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("batches_before", [0, 3])
    @pytest.mark.parametrize("dead", [None, "channel", "sample"])
    def test_a_forward_run_again_for_its_gradient_is_the_same(self, reentrant, batches_before, dead):
        torch.manual_seed(0)
        layer = cnlib.MixtureNorm(4, 3)
        for i in range(batches_before):
            layer(torch.randn(16, 4, 5) + i)
        other = copy.deepcopy(layer)
        outcomes = []
        inputs = [torch.randn(n, 4, 5) for n in (16, 8)]
        for x in inputs:  # what is 0 in every batch tells none from another
            x[:, :1] *= dead != "channel"
            x[:1] *= dead != "sample"
        for one, run in ((layer, layer), (other, lambda x: checkpoint(other, x, use_reentrant=reentrant))):
            torch.manual_seed(1)
            own = [x.clone().requires_grad_() for x in inputs]
            sum(run(x).pow(3).sum() for x in own).backward()  # both batches before any gradient
            outcomes.append(([x.grad for x in own], [p.grad for p in one.parameters()], dict(one.state_dict())))
        assert_same(*outcomes, atol=0, rtol=0)
