"""What every layer owes its user: types, devices, memory formats, compilation, state."""

import copy
import io
import pickle
import shutil
from functools import partial

import pytest
import torch
from cases import GRADIENTS, LAYERS, assert_same, double, leaf, run, shake
from torch import nn
from torch.utils.checkpoint import checkpoint

import cnlib

every_layer = pytest.mark.parametrize(("make", "extra"), LAYERS.values(), ids=LAYERS)
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


def settled(make, extra, x):
    """The layer after a first batch, so that EM no longer draws its start."""
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        layer(x, *extra)
    return layer


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_types(make, extra, dtype, gradient):
    """The output has the type of x, statistics are float32 at least, parameters keep their type."""
    x = double((4, 6, 8), 0, scale=2, shift=1).to(dtype)
    torch.manual_seed(0)
    layer = make(gradient=gradient)
    y, dx, grads = run(layer, x, *extra)
    assert y.dtype == dx.dtype == dtype
    assert all(t.dtype == torch.float32 for t in [*grads.values(), *layer.parameters()])
    assert all(b.dtype == torch.float32 for b in layer.buffers() if b.is_floating_point())
    assert layer.eval()(x, *extra).dtype == dtype
    torch.manual_seed(0)
    exact = make().double()
    exact.load_state_dict(make().state_dict())
    torch.manual_seed(0)
    wide = run(make().double(), x.double(), *extra) if "embedder" not in repr(layer) else (y.double(), dx.double())
    tolerance = {torch.bfloat16: 4e-2, torch.float16: 5e-3}.get(dtype, 1e-4)
    assert_same(y.double(), wide[0].double(), atol=tolerance, rtol=tolerance)
    assert_same(dx.double(), wide[1].double(), atol=tolerance, rtol=tolerance)


@every_layer
def test_autocast_leaves_statistics_wide(make, extra):
    """Under autocast the moments of float32 x are those without it, and a half x keeps its type."""
    x = double((4, 6, 8), 0, shift=100).float()
    layer = settled(make, extra, x)
    other = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, *extra)
        assert layer(x.bfloat16(), *extra).dtype == torch.bfloat16
    assert_same(y, other(x, *extra))


@every_layer
def test_half_parameters_still_compute_wide(make, extra):
    x = double((4, 6, 8), 0).half()
    y, dx, _ = run(make().half(), x, *extra)
    assert y.dtype == dx.dtype == torch.float16
    assert torch.isfinite(y).all() and torch.isfinite(dx).all()


@every_layer
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
def test_memory_formats(make, extra, memory_format):
    shape = (4, 6, 5, 3) if memory_format is torch.channels_last else (4, 6, 2, 3, 2)
    x = double(shape, 0).float()
    layer = settled(make, extra, x)
    other = copy.deepcopy(layer)
    plain = run(layer, x, *extra)
    last = run(other, x.contiguous(memory_format=memory_format), *extra)
    assert last[0].is_contiguous(memory_format=memory_format)
    assert_same(last, plain, atol=2e-5, rtol=1e-4)
    layer, other = layer.eval(), copy.deepcopy(layer).eval()
    assert other(x.contiguous(memory_format=memory_format), *extra).is_contiguous(memory_format=memory_format)
    strided = x.transpose(-1, -2)[..., ::2, :]
    assert_same(layer(strided, *extra), other(strided.contiguous(), *extra), atol=2e-5, rtol=1e-4)


@every_layer
def test_state_copies(make, extra):
    x = double((4, 6, 8), 0).float()
    layer = settled(make, extra, x)
    through_file = io.BytesIO()
    torch.save(layer.state_dict(), through_file)
    through_file.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(through_file, weights_only=True), strict=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert_same(run(copy.deepcopy(layer), x, *extra), run(other, x, *extra))


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(make, extra, reentrant):
    """A layer whose activations are computed again in the backward pass has the gradients of one whose are kept."""
    x = double((4, 6, 8), 0).float()
    layer = settled(make, extra, x)
    other = copy.deepcopy(layer)
    kept = run(layer, x, *extra)
    other.forward = partial(checkpoint, other.forward, use_reentrant=reentrant)
    assert_same(run(other, x, *extra), kept)


@every_layer
def test_repr_names_the_sizes(make, extra):
    assert "6" in repr(make()) and "gradient='manual'" in repr(make())


@every_layer
def test_meta_device(make, extra):
    layer = make().to("meta")
    y = layer(torch.empty(4, 6, 8, device="meta"), *(e.to("meta") for e in extra))
    assert y.shape == (4, 6, 8) and y.device.type == "meta"
    torch.manual_seed(0)
    layer.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(0)
    fresh = make()
    assert list(fresh.state_dict()) == list(layer.state_dict())
    if "embedder" not in repr(layer):
        assert_same(dict(layer.state_dict()), dict(fresh.state_dict()))


@every_layer
def test_built_on_a_device_in_a_type(make, extra):
    layer = make(device="meta", dtype=torch.float64)
    assert all(p.device.type == "meta" and p.dtype == torch.float64 for p in layer.parameters())


@needs_compiler
@every_layer
def test_compiles_without_graph_breaks(make, extra):
    torch.compiler.reset()
    x = double((4, 6, 8), 0).float()
    layer = settled(make, extra, x)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    for step in range(3):
        plain, fast = run(layer, x + step, *extra), run(compiled, x + step, *extra)
        assert_same(fast[:2], plain[:2], atol=1e-4, rtol=1e-4)
        for name, grad in plain[2].items():
            assert_same(fast[2]["_orig_mod." + name], grad, atol=1e-3, rtol=1e-4)
    assert_same(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()), atol=1e-4, rtol=1e-4)
    layer.eval(), compiled.eval()
    assert_same(compiled(x, *extra), layer(x, *extra), atol=1e-4, rtol=1e-4)


@needs_compiler
def test_compiled_mixture_norm_also_starts_compiled():
    torch.compiler.reset()
    torch.manual_seed(0)
    compiled = torch.compile(cnlib.MixtureNorm(6, 3), fullgraph=True)
    for _ in range(3):
        assert torch.isfinite(compiled(torch.randn(8, 6, 4))).all()
    assert int(compiled.num_batches_tracked) == 3


@needs_compiler
def test_compiled_context_norm_refuses_ids_out_of_range():
    torch.compiler.reset()
    compiled = torch.compile(cnlib.ContextNorm(2, 3), fullgraph=True)
    compiled(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(RuntimeError, match="out of range"):
        compiled(torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_layer
def test_cuda_is_cpu(make, extra):
    x = double((4, 6, 5, 3), 0).float()
    layer = settled(make, extra, x)
    there = copy.deepcopy(layer).cuda()
    assert_same(
        [t.cpu() for t in run(there, x.cuda(), *(e.cuda() for e in extra))[:2]],
        list(run(layer, x, *extra)[:2]),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_backward_keeps_no_copy_of_x(name, gradient):
    """What autograd holds beyond x: small statistics, and K values a position where the mixture is fitted."""
    make, extra = LAYERS[name]
    x = leaf(double((4, 6, 64, 64), 0).float())
    layer = settled(lambda: make(gradient=gradient), extra, x)
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x, *extra)
    held.pop(x.untyped_storage().data_ptr(), None)
    size = x.untyped_storage().nbytes()
    if gradient == "manual":
        # tau: K floats a position, C is usually far larger
        per_position = 3 * 4 * 64 * 64 * 4 if name == "mn" else 0
        assert sum(held.values()) < per_position + 4096
    elif name != "rms":
        # the reason to derive by hand; RMSNorm is a product with x, which autograd has already
        assert sum(held.values()) > 0.9 * size


def test_layers_train_a_network():
    """Each layer in a small network lowers the loss on two classes of real structure."""
    x, ids = double((64, 6), 0).float(), torch.arange(64) % 3
    target = (x[:, 0] * x[:, 1] > 0).long()
    for name, (make, _) in LAYERS.items():
        # IN needs positions
        if name == "in":
            continue
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), make(), nn.ReLU(), nn.Linear(6, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        losses = []
        for _ in range(60):
            with cnlib.use_context(model, ids):
                loss = nn.functional.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # groups of 2 features keep only their sign
        assert losses[-1] < 0.9 * losses[0], name


def test_shaking_changes_every_parameter():
    layer = shake(cnlib.BatchNorm(3))
    assert (layer.weight != 1).all() and (layer.bias != 0).all()
