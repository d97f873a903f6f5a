"""What the tests of all layers share: drawn inputs, and gradients checked against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from cnlib.norm.registry import NORMS, create

GRADIENTS = ("manual", "autograd")

# ranks 2 to 5: (N, C) and (N, C, *) with up to three trailing axes; sizes small enough for finite differences
shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3).map(tuple)).map(
    lambda t: (t[0], t[1], *t[2])
)
seeds = st.integers(0, 2**16)


def double(shape: tuple[int, ...], seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Standard normal float64 values that do not depend on what was drawn before."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def draw_tau(n: int, k: int, positions: tuple[int, ...], seed: int) -> Tensor:
    return double((n, k, *positions), seed, scale=2.0).softmax(1)


def shake(layer: nn.Module, seed: int = 1) -> nn.Module:
    """The layer in float64 with parameters away from their special starting values."""
    layer = layer.double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * double(tuple(parameter.shape), seed + i))
    return layer


def check_gradients(function: Callable[..., Any], *inputs: Tensor) -> None:
    """First and second derivatives of ``function`` with respect to all ``inputs`` by finite differences."""
    leaves = tuple(leaf(t) for t in inputs)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def check_layer_gradients(layer: nn.Module, x: Tensor, *extra: Tensor) -> None:
    """As ``check_gradients`` for x, the floating ones of ``extra``, and every parameter of the layer."""
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    floating = [t for t in extra if t.is_floating_point()]

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        given, parameters = list(rest[: len(floating)]), rest[len(floating) :]
        args = [given.pop(0) if t.is_floating_point() else t for t in extra]
        state = dict(zip(names, parameters, strict=True)) | {k: v.clone() for k, v in buffers.items()}
        return torch.func.functional_call(layer, state, (x, *args))

    check_gradients(function, x, *floating, *(p.detach() for p in layer.parameters()))


def run(layer: nn.Module, x: Tensor, *extra: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, dx and parameter gradients for a fixed incoming gradient."""
    x = leaf(x)
    layer.zero_grad()
    y = layer(x, *extra)
    y.backward(double(tuple(y.shape), 99).to(y))
    assert x.grad is not None
    return y.detach(), x.grad, {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}


def assert_same(one: Any, two: Any, **tolerance: float) -> None:
    torch.testing.assert_close(one, two, **tolerance)


IDS = torch.tensor([0, 2, 1, 2])
# how the contract tests make a layer of the registry, where its defaults are not enough: name of the case, options
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "in": {"": {"track_running_stats": True}},
    "gn": {"": {"num_groups": 3}},
    "en": {"": {"reduction": 3, "hidden": 4}},
    "cn": {"": {"affine": True}, " linear": {"encoder": "linear"}, " embedder": {"encoder": "embedder"}},
}


def cases(names: Mapping[str, Any] = NORMS) -> dict[str, tuple[Callable[..., nn.Module], tuple[Tensor, ...]]]:
    """Of each layer of the registry with 6 channels: how to make it, and what its forward takes after x (4, 6, *)."""
    found: dict[str, tuple[Callable[..., nn.Module], tuple[Tensor, ...]]] = {}
    for name in names:
        if name == "none":
            continue
        for case, options in OPTIONS.get(name, {"": {}}).items():
            make = partial(create, name, 6, **options)
            layer = make()
            found[name + case] = make, (IDS,) if hasattr(layer, "given_ids") else ()
            if hasattr(layer, "given_responsibilities"):
                found[f"{name}{case} given"] = make, (double((4, 3), 5).softmax(1).float(),)
    return found


LAYERS = cases()
