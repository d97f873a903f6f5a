"""Layers under torch.func, forward mode, batched gradients, export and tracing: the numbers of the plain call."""

import copy
import io
import itertools

import pytest
import torch
from cases import GRADIENTS, LAYERS, assert_same, double
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import cnlib

X = double((4, 6, 3), 0).float()


def settled(name, training, gradient="manual"):
    """A layer after one batch, so that EM has started, and what its forward takes."""
    make, extra = LAYERS[name]
    torch.manual_seed(0)
    layer = make(gradient=gradient)
    layer(X, *extra)
    return layer.train(training), extra


def pure(layer, extra):
    """The layer as a function of x that moves nothing."""
    buffers = {key: value.clone() for key, value in layer.named_buffers()}
    return lambda x: functional_call(layer, {k: v.clone() for k, v in buffers.items()}, (x, *extra))


def plain_jacobian(function):
    x = X.clone().requires_grad_()
    y = function(x)
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in y.flatten()]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


def batched(function):
    x = X.clone().requires_grad_()
    y = function(x)
    units = torch.eye(y.numel()).reshape(-1, *y.shape)
    return torch.autograd.grad(y, x, units, is_grads_batched=True)[0].reshape(*y.shape, *x.shape)


every_layer = pytest.mark.parametrize("name", LAYERS)
both_modes = pytest.mark.parametrize("training", [True, False])


@every_layer
@both_modes
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node", "ignore:`torch.jit.script` is deprecated")
def test_jacobians(name, training, gradient):
    function = pure(*settled(name, training, gradient))
    wanted = plain_jacobian(function)
    for given in (jacrev(function)(X), jacfwd(function)(X), batched(function)):
        assert_same(given, wanted, atol=1e-5, rtol=1e-4)
    direction = double(tuple(X.shape), 7).float()
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(X, direction))).tangent
    along = torch.tensordot(wanted, direction, X.dim())
    for given in (dual, jvp(function, (X,), (direction,))[1], linearize(function, X)[1](direction)):
        assert_same(given, along, atol=1e-5, rtol=1e-4)
    (back,) = vjp(function, X)[1](direction)
    assert_same(back, torch.tensordot(direction, wanted, X.dim()), atol=1e-5, rtol=1e-4)


@every_layer
@both_modes
def test_hessians_of_both_gradients(name, training):
    functions = [pure(*settled(name, training, gradient)) for gradient in GRADIENTS]
    one, two = (hessian(lambda x, f=f: f(x).pow(3).sum())(X) for f in functions)
    assert_same(one, two, atol=1e-4, rtol=1e-3)
    x = X.clone().requires_grad_()  # as double backward gives it
    (first,) = torch.autograd.grad(pure(*settled(name, training))(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_same(second, one.flatten(0, 2).sum(0), atol=2e-3, rtol=1e-3)


@every_layer
def test_gradients_a_sample(name):
    layer, extra = settled(name, False)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(parameters, x, *extra):
        return functional_call(layer, parameters, (x[None], *(e[None] for e in extra))).pow(3).sum()

    rows = vmap(grad(loss), (None, 0, *[0] * len(extra)))(parameters, X, *extra)
    for i in range(len(X)):
        layer.zero_grad()
        loss(dict(layer.named_parameters()), X[i], *(e[i] for e in extra)).backward()
        for key, parameter in layer.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_same(rows[key][i], wanted, atol=1e-4, rtol=1e-4)


@every_layer
@both_modes
def test_many_models_at_once(name, training):
    layers = [settled(name, training)[0] for _ in range(3)]
    extra = LAYERS[name][1]
    for i, layer in enumerate(layers):
        with torch.no_grad():
            [parameter.add_(0.1 * i) for parameter in layer.parameters()]
    parameters, buffers = stack_module_state(layers)

    def run(parameters, buffers):
        return functional_call(layers[0], (parameters, buffers), (X, *extra))

    y = vmap(run, randomness="different")(parameters, buffers)
    for i, layer in enumerate(layers):
        # in float32 the order of sums differs
        assert_same(y[i], layer(X, *extra), atol=1e-4, rtol=1e-4)
        assert_same({k: v[i] for k, v in buffers.items()}, dict(layer.named_buffers()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bn", "mn", "mn given", "sn", "en", "mode"])
def test_vmap_over_samples_in_training_names_the_way_out(name):
    layer, extra = settled(name, True)

    def run(x, *extra):
        return layer(x[None], *(e[None] for e in extra))

    with pytest.raises(RuntimeError, match=r"cnlib\.frozen"):
        vmap(run)(X, *extra)
    with cnlib.frozen(layer):
        assert vmap(run)(X, *extra).shape == (4, 1, 6, 3)


@every_layer
@both_modes
def test_export_with_any_batch_and_space(name, training):
    layer, extra = settled(name, training)
    check_export(layer, *extra)


def test_export_of_the_average_of_contexts():
    layer, _ = settled("cn", False)
    layer.inference = "average"
    check_export(layer)


def check_export(layer, *extra):
    dynamic = torch.export.Dim.DYNAMIC
    x = double((4, 6, 5, 5), 0).float()
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, *[{0: dynamic}] * len(extra))
    graph = torch.export.export(layer, (x, *extra), dynamic_shapes=shapes).module()
    other, extra = double((5, 6, 3, 7), 1).float(), [torch.cat((e, e[:1])) for e in extra]
    wanted = copy.deepcopy(layer)(other, *extra)  # the graph moves the layer's own buffers
    assert_same(graph(other, *extra), wanted, atol=1e-3, rtol=1e-3)  # sums in another order


@every_layer
@pytest.mark.filterwarnings("ignore")  # torch says that TorchScript is deprecated
def test_traced_and_saved(name):
    layer, extra = settled(name, False)
    traced = torch.jit.trace(layer, (X, *extra))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    assert_same(torch.jit.load(file)(X, *extra), layer(X, *extra))


@every_layer
def test_tensors_that_stand_for_any_values(name):
    """As in an estimate of memory: checks that need values are left out."""
    from torch._subclasses import FakeTensorMode

    make, extra = LAYERS[name]
    with FakeTensorMode():
        y = make()(torch.empty(4, 6, 8), *(torch.empty(e.shape, dtype=e.dtype) for e in extra))
    assert y.shape == (4, 6, 8)


@pytest.mark.parametrize("function", ["context_norm_plus", "mixture_norm", "responsibilities"])
@pytest.mark.parametrize("case", range(12))
def test_both_gradients_of_mixtures_agree_everywhere(function, case):
    """Also where a component is nearly empty, a variance underflows, or x is far from all components."""
    far, spread = list(itertools.product((0.0, 3.0, 30.0, 1e4), (1.0, 1e-12, 1e-44)))[case]
    x = double((8, 5, 3), case).float()
    mean = torch.stack([torch.zeros(5), torch.full((5,), far)])
    var = torch.stack([torch.ones(5), torch.full((5,), spread)])
    tau = torch.stack([torch.ones(8), torch.full((8,), spread)], 1) / (1 + spread)
    call = {
        "context_norm_plus": lambda t, g: cnlib.functional.context_norm_plus(t[0], t[1], t[2], gradient=g),
        "responsibilities": lambda t, g: cnlib.functional.responsibilities(t[0], tau[0], t[1], t[2], gradient=g),
        "mixture_norm": lambda t, g: cnlib.functional.mixture_norm(t[0], t[3], tau[0], gradient=g),
    }[function]
    used = {"mixture_norm": (0, 3)}.get(function, (0, 1, 2))
    grads = []
    for gradient in GRADIENTS:
        leaves = [t.clone().requires_grad_() for t in (x, mean, var, tau)]
        y = call(leaves, gradient)
        assert y.isfinite().all()
        grads.append(torch.autograd.grad((y * double(tuple(y.shape), 3)).sum(), [leaves[i] for i in used]))
        assert all(g.isfinite().all() for g in grads[-1])
    assert_same(*grads, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("norm", [cnlib.GroupNorm(2, 4), cnlib.RMSNorm(4), cnlib.BatchNorm(4), cnlib.SwitchableNorm(4)])
def test_layers_of_a_model_under_vmap_and_grad(norm):
    """As a user has them, and `book/using.md` says: per-sample gradients of a network by torch.func."""
    model = nn.Sequential(nn.Conv1d(2, 4, 1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 1))
    x, parameters = torch.randn(5, 2, 3), dict(model.named_parameters())
    model.train(not list(norm.buffers()))(x)
    rows = vmap(grad(lambda p, s: functional_call(model, p, (s[None],)).sum()), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).sum().backward()
        for key, parameter in model.named_parameters():
            assert_same(rows[key][i], parameter.grad, atol=1e-5, rtol=1e-4)


def test_expanded_weights_are_refused():
    """Why `book/using.md` names another way: should torch come to take them, the sentence there can go."""
    model = nn.Sequential(nn.Conv1d(2, 4, 1), cnlib.GroupNorm(2, 4))
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle"):
        call_for_per_sample_grads(model)(torch.randn(5, 2, 3))


def test_instance_norm_reads_a_single_sample_as_a_batch():
    """As its docstring says."""
    layer, sample = cnlib.InstanceNorm(4), torch.randn(4, 6, 5)
    with pytest.raises(ValueError, match="6 channels on axis 1"):
        layer(sample)
    with pytest.raises(ValueError, match="1 position per channel"):
        layer(torch.randn(4, 4))
    square = torch.randn(3, 4, 5)  # three channels of 4 x 5, for a layer of 4
    assert torch.equal(layer(square), torch.stack([layer(row[None])[0] for row in square]))
    assert_same(layer(sample[:, None].transpose(0, 1))[0], nn.InstanceNorm2d(4)(sample))
