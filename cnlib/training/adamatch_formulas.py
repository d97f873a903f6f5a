"""The formulas of AdaMatch, and beside them what the Keras example has in their places: one table for each choice.

Sources as in `cnlib.training.adamatch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.norm import frozen

DECAY = 0.999  # of the average of the source's classes
LAST = 128  # batches in the average of the target's
FLOOR = 1e-6  # of both in their ratio


class Alignment(nn.Module):
    """How often each class is predicted: source (K,), a moving average over batches; target (128, K), a row for each of
    the last batches. Both start uniform."""

    source: Tensor
    target: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("target", torch.full((LAST, num_classes), 1 / num_classes))

    def update(self, source: Tensor, target: Tensor, step: int) -> None:
        """With the means (K,) of a batch; step: counted from 0."""
        self.source.lerp_(source, 1 - DECAY)
        self.target[step % LAST] = target


def aligned(p: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Probabilities (N, K) of the target times (1e-6 + source) / (1e-6 + target), (K,), each row to the sum 1: classes
    that are predicted more often than in the source become less probable."""
    p = p * (FLOOR + source) / (FLOOR + target)
    return p / p.sum(1, keepdim=True)


def aligned_over_all(p: Tensor, source: Tensor) -> Tensor:
    """Probabilities (N, K) of the target times mean(source) / mean(p), over classes too: as rows sum to 1, both means
    are 1/K and nothing is aligned."""
    return p * (source.mean() / p.mean())


def interpolated(joint: Tensor, alone: Tensor, share: Tensor) -> Tensor:
    """Logits between those of the joint pass (share 0) and of the pass without the target (share 1), each with a share
    of its own: (N, K) all three."""
    return joint + (alone - joint) * share


def target_weight(done: float) -> float:
    """mu: from 0 to 1 along half a wave over the first half of the schedule, then 1. done: its share, 0 to 1."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * done))


def unit_length(p: Tensor) -> Tensor:
    """Rows of Euclidean length 1; of K equal numbers each is then 1 / sqrt(K), and they sum to sqrt(K)."""
    return F.normalize(p, dim=1)


@contextmanager
def by_running_statistics(model: nn.Module) -> Iterator[None]:
    """A with block in which layers that have running statistics normalize with them, as in evaluation."""
    layers = [m for m in model.modules() if m.training and getattr(m, "running_mean", None) is not None]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


# the rows of the table of differences that are choices of the algorithm itself: {option: {value: what it does}}
FIRST_PASS: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "batch": frozen,
    "running": by_running_statistics,
}
ALIGNMENTS: dict[str, Callable[[Tensor, Tensor, Alignment], Tensor]] = {
    "class": lambda p, source, running: aligned(p, running.source, running.target.mean(0)),
    "all": lambda p, source, running: aligned_over_all(p, source),
}
LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard": lambda p: F.one_hot(p.argmax(1), p.shape[1]).to(p),
    "l2": unit_length,
}
CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {"sum": lambda p: p, "l2": unit_length}
# by what pixels are divided once nothing is subtracted; None: standardized by the moments of all training images
PIXELS: dict[str, float | None] = {"standardized": None, "unit": 255.0, "bytes": 1.0}
TABLES: dict[str, Mapping[str, Any]] = {
    "first_pass": FIRST_PASS,
    "alignment": ALIGNMENTS,
    "labels": LABELS,
    "confidence": CONFIDENCES,
    "pixels": PIXELS,
}
