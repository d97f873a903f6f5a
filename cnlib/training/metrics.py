"""Loss, accuracy, top-5, and macro precision, recall and F1, from one confusion matrix kept on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cnlib.training import distributed

NAMES = ("loss", "accuracy", "top5", "precision", "recall", "f1")


def macro_scores(confusion: Tensor) -> tuple[float, float, float]:
    """Macro precision, recall and F1 of a (K, K) matrix of counts, rows true and columns predicted.

    As scikit-learn computes them: averaged over the classes that occur as truth or prediction; 0/0 counts as 0.
    """
    counts = confusion.double()
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    present = (true + predicted) > 0
    scores = (hits / predicted.clamp_min(1), hits / true.clamp_min(1), 2 * hits / (true + predicted).clamp_min(1))
    precision, recall, f1 = (float(score[present].mean()) for score in scores)
    return precision, recall, f1


class Meter:
    """Adds up batches without waiting for the device; `compute` waits once."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.losses: list[Tensor] = []
        self.sizes: list[int] = []

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """logits (N, K), labels (N,), loss: mean over the N samples."""
        k = len(self.confusion)
        pairs = labels * k + logits.argmax(1)
        self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))
        # Counting the classes below the true one takes ties, and NaN, against the model.
        below = (logits < logits.gather(1, labels[:, None])).sum(1)
        self.top5 += (below >= k - 5).sum()
        self.losses.append(loss.detach())
        self.sizes.append(len(labels))

    def compute(self) -> dict[str, float]:
        """{name: value} for NAMES, over what all processes saw; the loss is not finite once one batch's was not.

        Five classes or fewer have no top-5: it would be 1 whatever the model.
        """
        losses = torch.stack(self.losses).cpu().double() if self.losses else torch.zeros(0, dtype=torch.float64)
        loss = float(losses @ torch.tensor(self.sizes, dtype=torch.float64))
        seen = distributed.from_all((sum(self.sizes), loss, int(self.top5), self.confusion.cpu()))
        n, loss, top5, confusion = (sum(values) for values in zip(*seen, strict=True))
        self.count = n
        values = (
            loss / n,
            float(confusion.diagonal().sum()) / n,
            top5 / n,
            *macro_scores(confusion),
        )
        found = dict(zip(NAMES, values, strict=True))
        return found if len(confusion) > 5 else {key: value for key, value in found.items() if key != "top5"}


def plain(value: float | list[float]) -> float | None | list[Any]:
    """JSON has no NaN and no infinity: they are written as null. A list is one number a context."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value if math.isfinite(value) else None
