"""A layer and the reference it is held against: inputs that both take, parameters that both have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS = 4


def batch(
    *shape: int, mean: float = 2.0, std: float = 3.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Normal values of the given shape that depend on nothing but the arguments."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mean + std * values).to(dtype)


@dataclass
class Pair:
    """What a check is given. Arguments and errors as for ``cnlib.testing.check_norm``."""

    make: Callable[[int], nn.Module]
    reference: Callable[[int], nn.Module]
    extra: Callable[[Tensor], tuple[Any, ...]] | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for role, factory in (("make", self.make), ("reference", self.reference)):
            if not isinstance(layer := factory(CHANNELS), nn.Module):
                raise TypeError(f"{role}({CHANNELS}) returned a {type(layer).__name__}, expected a new nn.Module")
        # asked at once, so that a reference of no use is an error and not eleven failures
        _ = self.ranks

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks from 2 to 5 that the reference takes as (N, C, *)."""
        taken, refusals = [], []
        for rank in range(2, 6):
            try:
                with warnings.catch_warnings():
                    # nn.InstanceNorm2d takes three axes for one sample without a batch axis, and only warns
                    warnings.filterwarnings("error", message="input's size at dim")
                    # no other axis has C values, so nn.LayerNorm takes no rank in which it would not be on axis 1
                    self.call(self.reference(CHANNELS).double(), batch(6, CHANNELS, *(3,) * (rank - 2)))
                taken.append(rank)
            except Exception as error:
                refusals.append(f"{type(error).__name__}: {error}")
        if not taken:
            raise ValueError(
                f"the reference takes no x of shape (N, {CHANNELS}) or (N, {CHANNELS}, *): {refusals[0]}. "
                "Has it the channels on axis 1, and does it need extra arguments (extra=...)?"
            )
        return taken

    @property
    def remembers(self) -> bool:
        """Whether the reference has running statistics."""
        return any(buffer.is_floating_point() for buffer in self.reference(CHANNELS).buffers())

    def batch(self, n: int, **options: Any) -> Tensor:
        """x (n, C), or (n, C, *) with a few positions where the reference takes no vectors."""
        return batch(n, CHANNELS, *(3, 2, 2)[: self.ranks[0] - 2], **options)

    def arguments(self, x: Tensor) -> tuple[Any, ...]:
        return (x, *(self.extra(x.detach()) if self.extra else ()))

    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(*self.arguments(x))

    @torch.no_grad()
    def evaluate(self, layer: nn.Module) -> Tensor:
        """The output in evaluation, under no_grad as in a usual test loop: "mode" asks whether that matters."""
        return self.call(layer.eval(), self.batch(16))

    def build(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
        """A new layer, and a new reference in float64, with the same parameters, away from their special start."""
        layer, theirs = self.make(CHANNELS).to(dtype), self.reference(CHANNELS).double()
        # a first batch, for a layer that makes its parameters there
        self.call(layer, self.batch(16, dtype=dtype))
        self.call(theirs, self.batch(16))
        parameters, wanted = dict(layer.named_parameters()), dict(theirs.named_parameters())
        if len(parameters) != len(wanted):
            raise AssertionError(f"the layer has the parameters {list(parameters)}, the reference {list(wanted)}")
        if parameters.keys() != wanted.keys():
            wanted = dict(zip(parameters, wanted.values(), strict=True))
        with torch.no_grad():
            for index, (name, value) in enumerate(wanted.items()):
                value.copy_(batch(*value.shape, mean=1.5, std=0.2, seed=100 + index))
                # a layer may keep its weight as (1, C, 1, 1)
                parameters[name].copy_(value.reshape(parameters[name].shape))
        return layer, theirs

    def train(self, layer: nn.Module) -> nn.Module:
        """The layer after 15 batches, whose mean wanders."""
        for step in range(15):
            self.call(layer.train(), self.batch(16, mean=1.0 + step % 3, seed=step))
        return layer

    def compare(self, what: str, value: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
        """Raise AssertionError where the two differ in shape, by more than the tolerance, or by a NaN."""
        if value.shape != expected.shape:
            raise AssertionError(f"{what} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
        limit = self.tolerance if tolerance is None else tolerance
        gap = (value.detach() - expected.detach()).abs().max().item()
        if not gap <= limit:
            raise AssertionError(f"{what} is off by {gap:.2g}, tolerance {limit:g}")
