"""What is measured: of answers, by one confusion matrix kept on the device; of scores; of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnlib.training import distributed


def macro_scores(confusion: Tensor) -> tuple[float, float, float]:
    """Macro precision, recall and F1 of a (K, K) matrix of counts, rows true and columns predicted.

    As scikit-learn computes them: averaged over the classes that occur as truth or prediction; 0/0 counts as 0.
    """
    scores, true, predicted = _of_classes(confusion)
    present = (true + predicted) > 0
    precision, recall, f1 = (float(score[present].mean()) for score in scores)
    return precision, recall, f1


def weighted_scores(confusion: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of a (K, K) matrix of counts, averaged over classes, weighted by their true counts: what
    scikit-learn calls "weighted". The recall is then the accuracy. 0/0 counts as 0."""
    scores, true, _ = _of_classes(confusion)
    precision, recall, f1 = (float((score * true).sum() / true.sum()) for score in scores)
    return precision, recall, f1


def _of_classes(confusion: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Precision, recall and F1 of each class (K,), and how often it is true and predicted."""
    counts = confusion.double()
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    scores = (hits / predicted.clamp_min(1), hits / true.clamp_min(1), 2 * hits / (true + predicted).clamp_min(1))
    return scores, true, predicted


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive (N, bool) scores higher than a negative, ties one half.

    NaN where a score is NaN. Raises ValueError where one of the kinds is missing. Source: Mann & Whitney (1947);
    Hanley & McNeil (1982).
    """
    first, second = scores[positive], scores[~positive].sort().values
    if not len(first) or not len(second):
        raise ValueError(f"auc: {len(first)} positives and {len(second)} negatives, expected at least one of each")
    if bool(scores.isnan().any()):  # a search puts it above everything
        return math.nan
    below, up_to = (torch.searchsorted(second, first, right=right).double() for right in (False, True))
    return float((below + up_to).mean()) / (2 * len(second))


def above_half(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the authors' programs count as predictions: every class of an image whose logit (N, K) is above 0.5.

    "logits_above": how many an image; "their_recall": share of the images whose label (N,) is among them. Their
    precision, over all pairs of image and class ("micro"), is the second over the first.
    """
    above = logits > 0.5
    recall = above.gather(1, labels[:, None]).to(logits.dtype).mean()
    return {"logits_above": above.sum(1).to(logits.dtype).mean(), "their_recall": recall}


def gradients_of(value: Tensor, weights: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """Zeros where a weight had no part in it; nothing is added to anybody's `.grad`."""
    return torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)


def gradient_scores(of_logits: Sequence[Tensor], of_losses: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """Of the gradients of the sum of all logits of one batch, a tensor each weight, and of the losses of several.

    "gradient_variance_max", "gradient_variance_mean": the variance over the entries of each weight tensor's gradient of
    the logits; its largest and mean over tensors. This is the published Figure 3 (ICDM paper), by the program of its
    authors; it is no variance of a stochastic gradient. "noise_scale": of the losses, the sum over weights of the
    gradient's variance, over the squared length of its mean (McCandlish et al. 2018, without their correction for few
    batches).
    """
    variances = torch.stack([g.var(correction=0) for g in of_logits])
    each = torch.stack([torch.cat([g.flatten() for g in grads]) for grads in of_losses])  # (batches, weights)
    scale = each.var(0).sum() / each.mean(0).square().sum()
    numbers = torch.stack((variances.max(), variances.mean(), scale)).tolist()
    return dict(zip(("gradient_variance_max", "gradient_variance_mean", "noise_scale"), numbers, strict=True))


class Meter:
    """Adds up batches without waiting for the device; `compute` waits once."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.numbers: dict[str, list[Tensor]] = {}
        self.sizes: list[int] = []
        self.classified = 0
        self.count, self.pooled = 0, self.confusion  # samples and confusion of all processes, once computed

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """One batch: "loss" and any other mean over its samples, by name; "logits" (N, K) and "labels" (N,), where the
        task classifies, give the metrics of classification."""
        values = dict(values)
        logits, labels = values.pop("logits", None), values.pop("labels", None)
        if logits is not None and labels is not None:
            self._classify(logits, labels)
        self.sizes.append(len(labels) if labels is not None else 1)
        for name, value in values.items():
            self.numbers.setdefault(name, []).append(torch.as_tensor(value).detach())

    def _classify(self, logits: Tensor, labels: Tensor) -> None:
        k = len(self.confusion)
        pairs = labels * k + logits.argmax(1)
        self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))
        # Counting the classes below the true one takes ties, and NaN, against the model.
        below = (logits < logits.gather(1, labels[:, None])).sum(1)
        self.top5 += (below >= k - 5).sum()
        self.classified += len(labels)

    def compute(self) -> dict[str, float]:
        """{name: value} over what all processes saw; a mean is not finite once one batch's was not.

        Five classes or fewer have no top-5: it would be 1 whatever the model.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        sums = {name: float(torch.stack(n).cpu().double() @ sizes) for name, n in self.numbers.items()}
        seen = distributed.from_all((sum(self.sizes), self.classified, int(self.top5), self.confusion.cpu(), sums))
        self.count, classified, top5 = (sum(values) for values in zip(*(part[:3] for part in seen), strict=True))
        self.pooled = confusion = torch.stack([part[3] for part in seen]).sum(0)
        names = dict.fromkeys(name for *_, sums in seen for name in sums)
        means = {name: sum(sums.get(name, 0.0) for *_, sums in seen) / self.count for name in names}
        found = {"loss": means.pop("loss")} if "loss" in means else {}
        if classified:
            found["accuracy"] = float(confusion.diagonal().sum()) / classified
            if len(confusion) > 5:
                found["top5"] = top5 / classified
            found |= dict(zip(("precision", "recall", "f1"), macro_scores(confusion), strict=True))
        return found | means


def json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as null. A list is one number a context."""
    if isinstance(value, list):
        return [json_number(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
