"""Two numbers that papers call the variance of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
