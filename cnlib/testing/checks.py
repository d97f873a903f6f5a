"""The eleven checks. Each returns nothing, raises AssertionError where a layer fails, SkipTest without a premise.

"gradient", "mode", "reload", "float32" and "half" compare a layer with itself, on purpose: a layer with another forward
has another gradient, and that is for "output" to find. So one mistake does not fail every check.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import SkipTest

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from cnlib.testing.pair import CHANNELS, Pair, batch


def output(pair: Pair) -> None:
    layer, theirs = pair.build()
    x = pair.batch(16)
    pair.compare("the output in training", pair.call(layer, x), pair.call(theirs, x))
    if not pair.remembers:
        pair.compare("the output in evaluation", pair.evaluate(layer), pair.evaluate(theirs))


def axes(pair: Pair) -> None:
    ranks = [rank for rank in pair.ranks if rank > 2]
    if not ranks:
        raise SkipTest("the reference takes vectors only")
    for rank in ranks:
        layer, theirs = pair.build()
        x = batch(*(CHANNELS,) * rank)
        pair.compare(f"the output for shape {tuple(x.shape)}", pair.call(layer, x), pair.call(theirs, x))


def gradient(pair: Pair) -> None:
    layer, _ = pair.build()
    values = {name: parameter.detach() for name, parameter in layer.named_parameters()} | {"input x": pair.batch(5)}
    for name, value in values.items():

        def run(value: Tensor, name: str = name) -> Tensor:
            given = values | {name: value}
            x = given.pop("input x")
            return functional_call(layer, given, pair.arguments(x))

        if not gradcheck(run, (value.clone().requires_grad_(),), raise_exception=False):
            raise AssertionError(f"the gradient of {name} is not the derivative of the forward (autograd.gradcheck)")


def flat(pair: Pair) -> None:
    layer, _ = pair.build()
    x = torch.full_like(pair.batch(8), 7.0).requires_grad_()
    y = pair.call(layer, x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    for what, value in (("output", y), ("gradient of x", dx)):
        if not value.isfinite().all():
            raise AssertionError(f"the {what} for a constant x is not finite")


def mode(pair: Pair) -> None:
    layer, _ = pair.build()
    x = pair.batch(16)
    pair.train(layer)
    for training, name in ((True, "training"), (False, "evaluation")):
        y = pair.call(layer.train(training), x)
        with torch.no_grad():
            pair.compare(f"the output in {name} under no_grad", pair.call(layer, x), y)


def running(pair: Pair) -> None:
    if not pair.remembers:
        raise SkipTest("the reference has no running statistics")
    layer, theirs = (pair.train(each) for each in pair.build())
    pair.compare("the output in evaluation", pair.evaluate(layer), pair.evaluate(theirs))


def reload(pair: Pair) -> None:
    layer, fresh = pair.train(pair.build()[0]), pair.make(CHANNELS).double()
    fresh.load_state_dict(layer.state_dict())
    pair.compare("the output in evaluation of the loaded layer", pair.evaluate(fresh), pair.evaluate(layer))


def graph(pair: Pair) -> None:
    layer, _ = pair.build()
    pair.call(layer, pair.batch(16).requires_grad_())
    held = dict(layer.named_buffers())
    for module in layer.modules():
        held |= {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    on_graph = [name for name, value in held.items() if value.requires_grad]
    if on_graph:
        raise AssertionError(f"after a training step these belong to an autograd graph: {on_graph}")


def float32(pair: Pair) -> None:
    layer, _ = pair.build(torch.float32)
    x = pair.batch(4096, mean=1e4, std=1.0, dtype=torch.float32)
    y, exact = pair.call(layer, x).double(), pair.call(layer.double(), x.double())
    # root mean square: among thousands of samples of a layer norm, some have channels that are equal up to rounding
    gap = (y - exact).square().mean().sqrt()
    pair.compare("the output in float32 (root mean square)", gap, torch.zeros_like(gap), 0.02)


def half(pair: Pair) -> None:
    layer, _ = pair.build(torch.float32)
    x = pair.batch(64, mean=0.0, std=300.0, dtype=torch.float16)
    y, exact = pair.call(layer, x), pair.call(layer.double(), x.double())
    if y.dtype != torch.float16:
        raise AssertionError(f"the output has type {y.dtype}, expected that of x, torch.float16")
    largest = exact.abs().max()
    pair.compare("the output in float16, beside its largest value,", y / largest, exact / largest, 0.01)


def one(pair: Pair) -> None:
    x = batch(1, CHANNELS, *(1,) * (pair.ranks[0] - 2))

    def takes(layer: nn.Module) -> bool:
        try:
            pair.call(layer, x)
        except Exception:
            return False
        return True

    ours, theirs = (takes(layer) for layer in pair.build())
    if ours != theirs:
        who, whom = ("layer", "reference") if ours else ("reference", "layer")
        raise AssertionError(f"one value per channel, shape {tuple(x.shape)}: the {who} takes it, the {whom} refuses")


CHECKS: dict[str, Callable[[Pair], None]] = {
    check.__name__: check for check in (output, axes, gradient, flat, mode, running, reload, graph, float32, half, one)
}
