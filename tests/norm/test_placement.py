"""use_context: contexts for deep layers."""

import copy
import shutil
import threading

import pytest
import torch
from cases import assert_same
from torch import nn

import cnlib


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), cnlib.ContextNorm(4, 3), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(4, 4, 3), cnlib.ContextNorm(4, 3), nn.Flatten())
    for layer in model.modules():
        if isinstance(layer, cnlib.ContextNorm):
            nn.init.normal_(layer.mean)
    return model


X, IDS = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])


def by_hand(model, x=X, ids=IDS):
    body, conv, norm, flat = model
    return flat(norm(conv(body[2](body[1](body[0](x), ids))), ids))


def test_it_reaches_deep_layers():
    model = network()
    with cnlib.use_context(model, IDS):
        assert_same(model(X), by_hand(model))


def test_an_explicit_context_wins():
    layer, x = network()[0][1], torch.randn(6, 4)
    with cnlib.use_context(layer, IDS):
        assert_same(layer(x, IDS.flip(0)), copy.deepcopy(layer)(x, IDS.flip(0)))


def test_blocks_nest_and_end():
    model = network()
    with cnlib.use_context(model, IDS):
        with cnlib.use_context(model, IDS.flip(0)):
            assert_same(model(X), by_hand(model, ids=IDS.flip(0)))
        assert_same(model(X), by_hand(model))
    with pytest.raises(ValueError, match="ContextNorm '0.1': no context"):
        model(X)


def test_an_error_inside_ends_the_block():
    model = network()
    with pytest.raises(KeyError), cnlib.use_context(model, IDS):
        raise KeyError
    assert all(layer.given_ids is None for layer in model.modules() if isinstance(layer, cnlib.ContextNorm))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (IDS[:4], ValueError, r"'0\.1'.*shape \(4,\).*\(6,\)"),
        (IDS + 1, ValueError, r"'0\.1'.*1 to 3.*\[0, 3\)"),
        (IDS.float(), TypeError, r"'0\.1'.*float32"),
        (IDS.tolist(), TypeError, "list"),
    ],
)
def test_errors_name_the_layer_what_came_and_what_was_expected(ids, error, message):
    model = network()
    with pytest.raises(error, match=message), cnlib.use_context(model, ids):
        model(X)


def test_responsibilities_reach_mixture_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), cnlib.MixtureNorm(4, 3))
    tau = torch.rand(6, 3).softmax(1)
    with cnlib.use_context(model, IDS, responsibilities=tau):
        y = model(X)
    assert_same(y, copy.deepcopy(model[1])(model[0](X), tau))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_models_see_each_new_context():
    torch.compiler.reset()
    model = network()
    compiled = torch.compile(model, fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for step in range(4):
        ids = IDS.roll(step)
        with cnlib.use_context(compiled, ids):
            assert_same(compiled(X), by_hand(model, ids=ids), atol=1e-5, rtol=1e-5)
    assert model[0][1].name == "0.1"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "a new context must not compile again"


def test_replicas_in_threads_keep_their_contexts_apart():
    models, out = [network() for _ in range(4)], {}
    barrier = threading.Barrier(4)

    def work(i):
        with cnlib.use_context(models[i], IDS.roll(i)):
            barrier.wait()
            out[i] = models[i](X)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    for i in range(4):
        assert_same(out[i], by_hand(models[i], ids=IDS.roll(i)))


class TwoReplicas(nn.DataParallel):
    """nn.DataParallel's own forward needs GPUs; this one scatters, replicates and gathers the same way on a CPU."""

    def forward(self, *inputs, **kwargs):
        halves = [slice(0, 2), slice(2, None)]
        outputs = []
        for half in halves:
            replica = shallow_replica(self.module)
            args = [a[half] for a in inputs]
            outputs.append(replica(*args, **{k: v[half] if torch.is_tensor(v) else v for k, v in kwargs.items()}))
        return torch.cat(outputs)


def shallow_replica(module):
    """As torch.nn.parallel.replicate: shared hooks, replaced children."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = shallow_replica(child)
    for name, parameter in module._parameters.items():
        replica._parameters[name] = parameter
    return replica


def test_data_parallel_replicas_get_their_part_of_the_context():
    model = network()
    parallel = TwoReplicas(model)
    for _ in range(2):
        with cnlib.use_context(parallel, IDS):
            assert_same(parallel(X), by_hand(model))
    assert not parallel._forward_pre_hooks and not model._forward_pre_hooks


def test_data_parallel_without_gpus_is_the_module():
    model = network()
    parallel = nn.DataParallel(model)
    with cnlib.use_context(parallel, IDS):
        assert_same(parallel(X), by_hand(model))
        assert_same(model(X), by_hand(model))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with cnlib.use_context(wrapped, IDS):
            y = wrapped(X)
        assert_same(y, by_hand(model))
        y.sum().backward()
        assert model[0][1].mean.grad is not None
    finally:
        torch.distributed.destroy_process_group()
