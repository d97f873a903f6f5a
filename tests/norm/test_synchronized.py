"""Layers with batch statistics over two processes, each with a part of the batch, are those over the whole batch."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import GRADIENTS, assert_same, double, draw_tau, leaf, shake

import cnlib

IMAGES, VECTORS = (7, 3, 2, 2), (7, 3)
PARTS = {"unequal": [2, 5], "one empty": [0, 7]}
LAYERS = {
    "batch": lambda **o: cnlib.BatchNorm(3, **o),
    "batch average": lambda **o: cnlib.BatchNorm(3, momentum=None, affine=False, **o),
    "mixture": lambda **o: cnlib.MixtureNorm(3, 2, **o),
    "switchable": lambda **o: cnlib.SwitchableNorm(3, **o),
    "mode": lambda **o: cnlib.ModeNorm(3, 2, **o),
    "exemplar": lambda **o: cnlib.ExemplarNorm(3, hidden=4, **o),
}
TAU = {"": None, "tau a sample": draw_tau(7, 2, (), 5), "tau a position": draw_tau(7, 2, (2, 2), 6)}
CASES = {
    f"{layer}, {len(shape)} axes, {tau or 'no tau'}, {parts} parts, {gradient}": (layer, shape, tau, parts, gradient)
    for layer in LAYERS
    for shape in (IMAGES, VECTORS)
    for tau in TAU
    for parts in PARTS
    for gradient in GRADIENTS
    if (not tau or layer == "mixture")
    and not (tau == "tau a position" and shape == VECTORS)
    # k-means++ needs a vector in every process
    and (layer != "mixture" or tau or parts == "unequal")
}


def both_steps(case, part=slice(None), group=None):
    """What two training steps on this part of two batches give, in float64: all that a user could see."""
    name, shape, tau, _, gradient = CASES[case]
    torch.manual_seed(0)
    layer = shake(LAYERS[name](gradient=gradient))
    if group is not None:
        cnlib.synchronize(layer)
    seen = {}
    for step in range(2):
        x = leaf(double(shape, step, scale=2, shift=5)[part])
        given = [] if TAU[tau] is None else [leaf(TAU[tau].roll(step, 0)[part])]
        y = layer(x, *given)
        layer.zero_grad()
        (y * double(shape, 90 + step)[part]).sum().backward()
        samples = {"y": y.detach(), "dx": x.grad} | ({"dtau": given[0].grad} if given else {})
        seen |= {f"{key} {step}": value for key, value in samples.items()}
        seen |= {f"grad {key} {step}": p.grad for key, p in layer.named_parameters()}
        seen |= {f"buffer {key} {step}": b.clone() for key, b in layer.named_buffers()}
    return seen


def squared_gradient(part=slice(None), group=None):
    """A gradient of a gradient: of the squares of dx, with respect to x."""
    layer = cnlib.BatchNorm(3).double()
    if group is not None:
        cnlib.synchronize(layer)
    x = leaf(double(IMAGES, 0)[part])
    (dx,) = torch.autograd.grad((layer(x) * double(IMAGES, 90)[part]).sum(), x, create_graph=True)
    dx.square().sum().backward()
    return x.grad


def reestimated(part=slice(None), group=None):
    """The buffers of a model whose statistics are taken anew from two batches, of which this process has a part."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(cnlib.BatchNorm(3), torch.nn.Conv2d(3, 3, 2), cnlib.MixtureNorm(3, 2)).double()
    if group is not None:
        cnlib.synchronize(model)
    batches = [double(IMAGES, 0, scale=2, shift=5), double((*IMAGES[:2], 4, 3), 1)]
    cnlib.reestimate(model, [(x[part], None, TAU["tau a sample"][part]) for x in batches])
    return dict(model.named_buffers())


def far_from_zero(part=slice(None), group=None):
    layer = cnlib.BatchNorm(3, momentum=1.0)
    if group is not None:
        cnlib.synchronize(layer)
    return layer(double((64, 3), 0, shift=3e4).float()[part]).detach(), layer.running_var


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        result = {}
        for case, (*_, parts, _) in CASES.items():
            first = PARTS[parts][0]
            result[case] = both_steps(case, slice(first) if rank == 0 else slice(first, None), dist.group.WORLD)
        part = slice(3) if rank == 0 else slice(3, None)
        result["squared"] = squared_gradient(part, dist.group.WORLD)
        result["far"] = far_from_zero(part, dist.group.WORLD)
        result["reestimated"] = reestimated(part, dist.group.WORLD)
        layer = cnlib.synchronize(cnlib.BatchNorm(3).double())
        twins = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer
        result["twins"] = [twin(double(IMAGES, rank)).detach() for twin in twins]
        result["alone"] = cnlib.synchronize(layer, False)(double(IMAGES, rank)).detach()
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_the_parts_are_the_whole(processes, case):
    """Samples' values one after the other; gradients of parameters add up; buffers are the same everywhere."""
    whole, (first, second) = both_steps(case), (p[case] for p in processes)
    for key, value in whole.items():
        if key.startswith("buffer"):
            assert_same(first[key], second[key], atol=0, rtol=0)
            found = first[key]
        else:
            found = first[key] + second[key] if key.startswith("grad") else torch.cat((first[key], second[key]))
        assert_same(found, value, atol=1e-9, rtol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_second_derivatives(processes):
    assert_same(torch.cat([p["squared"] for p in processes]), squared_gradient(), atol=1e-9, rtol=1e-9)


def test_no_digits_are_lost_far_from_zero(processes):
    """float32 at a mean of 30,000: E[x^2] - E[x]^2 would be off by more than the variance."""
    y, var = far_from_zero()
    assert_same(torch.cat([p["far"][0] for p in processes]), y, atol=4e-3, rtol=0)
    assert_same(processes[0]["far"][1], var, atol=0, rtol=1e-3)


def test_statistics_taken_anew_are_those_of_all_processes(processes):
    first, second = (p["reestimated"] for p in processes)
    assert_same(first, second, atol=0, rtol=0)
    assert_same(first, reestimated(), atol=1e-9, rtol=1e-9)


def test_copies_share_and_undoing_ends_it(processes):
    for rank, result in enumerate(processes):
        copied, unpickled, original = result["twins"]
        assert_same(copied, original)
        assert_same(unpickled, original)
        assert_same(result["alone"], cnlib.BatchNorm(3).double()(double(IMAGES, rank)).detach())
        assert not torch.allclose(result["alone"], original)


def test_without_processes_the_error_says_so():
    with pytest.raises(RuntimeError, match="init_process_group first"):
        cnlib.synchronize(cnlib.BatchNorm(3))
    layer = cnlib.BatchNorm(3)
    layer.synchronized = True
    with pytest.raises(RuntimeError, match=r"call cnlib.synchronize\(model, False\)"):
        layer(torch.randn(4, 3))
    assert cnlib.synchronize(layer, False)(torch.randn(4, 3)).shape == (4, 3)
