"""use_context: contexts for deep layers."""

import asyncio
import copy
import shutil
import threading

import pytest
import torch
from cases import assert_same
from torch import nn
from torch.utils.checkpoint import checkpoint

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


class Meet(nn.Module):
    """All threads are inside before any goes on."""

    def __init__(self, parties):
        super().__init__()
        self.barrier = threading.Barrier(parties)

    def forward(self, x):
        self.barrier.wait(60)
        return x


def shared_model(*rest):
    """Context k is a shift by -100 k."""
    model = nn.Sequential(*rest, cnlib.ContextNorm(2, 4, eps=0.0), *rest).eval().requires_grad_(False)
    model[len(rest)].mean.copy_(100 * torch.arange(4.0)[:, None].expand(4, 2))
    return model, model[len(rest)]


def answer(model, n=3):
    return float(model(torch.zeros(n, 2))[0, 0])


def test_threads_share_one_model_and_each_gets_its_own():
    meet = Meet(3)
    (model, layer), out = shared_model(meet), {}

    def serve(k):
        with cnlib.use_context(model, torch.full((3,), k)):
            out[k] = answer(model)

    threads = [threading.Thread(target=serve, args=(k,)) for k in range(3)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert out == {0: 0.0, 1: -100.0, 2: -200.0} and layer.given_ids is None


def test_a_thread_outside_all_blocks_has_none():
    (model, _), errors = shared_model(), []

    def serve():
        try:
            answer(model)
        except ValueError as error:
            errors.append(str(error))

    with cnlib.use_context(model, torch.full((3,), 1)):
        thread = threading.Thread(target=serve)
        thread.start(), thread.join()
    assert "no context was given" in errors[0]


def test_asynchronous_tasks_each_get_their_own():
    model, layer = shared_model()

    async def serve(k, first):
        with cnlib.use_context(model, torch.full((3,), k)):
            await asyncio.sleep(first)
            one = answer(model)
            await asyncio.sleep(0.02 - first)
            return one, answer(model)

    async def serve_all():
        return await asyncio.gather(*(serve(k, 0.01 * (k % 2)) for k in range(4)))

    assert asyncio.run(serve_all()) == [(-100.0 * k, -100.0 * k) for k in range(4)]
    assert layer.given_ids is None


def test_generators_that_wait_inside_a_block():
    model, layer = shared_model()

    def stream(k):
        with cnlib.use_context(model, torch.full((3,), k)):
            yield answer(model)
            yield answer(model)
        yield None

    one, two = stream(1), stream(2)
    assert [next(g) for g in (one, two, one, two)] == [-100.0, -200.0, -100.0, -200.0]
    next(one), two.close()  # closed in the order of opening
    assert layer.given_ids is None
    with pytest.raises(ValueError, match="no context"):
        answer(model)


def test_a_block_can_be_entered_again_while_it_is_open():
    model, layer = shared_model()
    block = cnlib.use_context(model, torch.full((3,), 1))
    with block:
        with block, cnlib.use_context(model, torch.full((3,), 2)):
            assert answer(model) == -200.0
        assert answer(model) == -100.0
    with block:
        assert answer(model) == -100.0
    assert layer.given_ids is None


def test_layers_that_read_the_attribute_themselves_find_nothing_left():
    class Plain(nn.Module):
        given_ids = None

        def forward(self, x):
            return self.given_ids

    model = nn.Sequential(Plain())
    one, two = (cnlib.use_context(model, torch.tensor([k])) for k in (1, 2))
    one.__enter__(), two.__enter__()
    assert int(model(None)) == 2
    one.__exit__(None, None, None)  # not the newest
    assert int(model(None)) == 2
    two.__exit__(None, None, None)
    assert model(None) is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_computed_again_in_the_backward_pass(reentrant):
    model = network()
    x = X.clone().requires_grad_()
    with cnlib.use_context(model, IDS):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    other = X.clone().requires_grad_()
    by_hand(model, other).sum().backward()
    assert_same(x.grad, other.grad)


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
