"""What a network without contexts knows of them, and what it would answer if it were told one: Bayes' rule only.

`given_label` is p(c | y), (K, T), for contexts c that are made from the label y (see `Contexts.given_label`). Such a
context needs no network: p(y | x, c) is proportional to p(y | x) p(c | y). A network that is trained with it has to
beat this to show more than what the label gave away.
"""

import torch
from torch import Tensor

FLOOR = 1e-12  # of p(c | y): a class that the context rules out is not ruled out for good


def combine(logits: Tensor, ids: Tensor, given_label: Tensor) -> Tensor:
    """Logits (N, K) of a network without contexts, told the contexts `ids` (N,) afterwards: plus log p(c | y).

    Where each class has one context this masks the classes of the others; where p(c | y) is equal for all y it changes
    no probability.
    """
    return logits + given_label.clamp_min(FLOOR).log().to(logits).t()[ids]


def context_posterior(logits: Tensor, given_label: Tensor) -> Tensor:
    """p(c | x) = sum over y of p(y | x) p(c | y), (N, T): how probable a network without contexts holds each; its
    argmax is the context it predicts."""
    return logits.softmax(1) @ given_label.to(logits)


def marginal(each: Tensor, posterior: Tensor) -> Tensor:
    """log p(y | x) = log sum over c of p(c | x) p(y | x, c), (N, K): a network with contexts as one that needs none.

    each: its logits (T, N, K) under every context; posterior: p(c | x), (N, T).
    """
    weights = posterior.clamp_min(torch.finfo(posterior.dtype).tiny).log().t()[:, :, None].to(each)
    return (each.log_softmax(2) + weights).logsumexp(0)
