"""Responsibilities of a mixture of diagonal Gaussians, and the sums over components that need no K copies of x.

The mixture lives in R^C: one of its samples is the channel vector at one position. Chapters 4 and 5.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnlib.norm.arithmetic import ROW, flatten, no_autocast, product_, widen
from cnlib.norm.calling import by_hand
from cnlib.norm.checks import check_gradient, check_input, check_moments, check_priors
from cnlib.norm.processes import gather, pool, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Everywhere below: x (N, C, L), tau (N, K, L) or (N, K, 1), one value a component and channel (K, C).


def mix(tau: Tensor, values: Tensor) -> Tensor:
    """sum_k tau_k values_k: (N, C, L). Never K copies of x: one matrix product, or one fused loop."""
    if torch.compiler.is_compiling():
        # written out, so that it fuses with whatever reads it
        return reduce(torch.add, (tau[:, k, None] * values[k, :, None] for k in range(len(values))))
    with no_autocast(tau):
        return torch.matmul(values.t(), tau)


def collect(tau: Tensor, z: Tensor) -> Tensor:
    """sum over samples and positions of tau_k z: (K, C)."""
    if tau.shape[2] == 1:
        # one row of tau a sample: its positions need no K products
        z = z.sum(-1, keepdim=True)
    if torch.compiler.is_compiling():
        return torch.stack([(tau[:, k, None] * z).sum(-1).sum(0) for k in range(tau.shape[1])])
    with no_autocast(tau):
        # a product that sums a long row at once loses digits
        rows, rest = z.shape[2] // ROW, z.shape[2] % ROW
        if rows == 0 or z.shape[2] == ROW:
            return torch.matmul(tau, z.transpose(1, 2)).sum(0)
        whole = [t[..., : rows * ROW].unflatten(2, (rows, ROW)).transpose(1, 2) for t in (tau, z)]
        held = torch.matmul(whole[0], whole[1].transpose(2, 3)).sum((0, 1))
        return held + torch.matmul(tau[..., -rest:], z[..., -rest:].transpose(1, 2)).sum(0) if rest else held


def mass(tau: Tensor, positions: int) -> Tensor:
    """sum over samples and positions of tau: (K, 1)."""
    # not positions // max(tau.shape[2], 1): torch.export takes that max for 1
    return tau.sum((0, 2)).mul(positions if tau.shape[2] == 1 else 1).unsqueeze(1)


def equal_values(held: Tensor, squares: Tensor) -> Tensor:
    """(sum tau)^2 / sum tau^2, from both sums: the number of values of weight 1 that spread as these weights do.

    The variance under weights tau-hat that sum to 1 is too small by 1 - sum tau-hat^2 = (n - 1) / n with this n, so
    ``unbiased`` takes it. For tau 0 or 1 it is their sum.
    """
    return held.square() * invert(squares)


def least(dtype: torch.dtype) -> float:
    """The least number of a type whose inverse can be squared, 1e-19 in float32: as 1/v^2 enters each gradient."""
    return math.sqrt(torch.finfo(dtype).tiny)


def invert(values: Tensor) -> Tensor:
    """1 / values, and 0 where a component is empty or as good as empty: it then takes no part in anything."""
    floor = least(values.dtype)
    return torch.where(values >= floor, 1 / values.clamp_min(floor), 0.0)


def mixture_moments(x: Tensor, tau: Tensor, group: ProcessGroup | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """sum_B tau_k (K, 1), and E_B[tau-hat_k x] and E_B[tau-hat_k (x - m_k)^2], each (K, C).

    The weights tau-hat_k = tau_k / sum_B tau_k sum to 1 over the batch: these expectations are sums.
    group: the batch B is all that these processes hold.
    """
    held = mass(tau, x.shape[2])
    inverse = invert(held)
    mean = collect(tau, x) * inverse
    rows = []
    if tau.shape[2] == 1:
        # one row of tau a sample: its scatter is that within it plus that of its own mean
        own = x.mean(-1, keepdim=True)
        centered = x - own
        within = product_(centered, centered).sum(-1, keepdim=True)
        for k in range(len(mean)):
            between = (own - mean[k, :, None]).square() * x.shape[2]
            rows.append(collect(tau[:, k : k + 1], within + between))
        return pool(group, held, mean, torch.cat(rows) * inverse)
    # one component at a time: exact where E[x^2] - m^2 is not, one copy of x
    for k in range(len(mean)):
        centered = x - mean[k, :, None]
        rows.append(collect(tau[:, k : k + 1], product_(centered, centered)))
    return pool(group, held, mean, torch.cat(rows) * inverse)


def diagonal_log_joint(x: Tensor, priors: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """log lambda_k + log N(x; m_k, diag v_k) up to the constant all components share: (N, K, L).

    The squares are summed as they are, not expanded: |x|^2 - 2 x m + m^2 cancels far from 0.
    """
    tiny, floor = torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).min
    var = var.clamp_min(tiny)
    constant = priors.clamp_min(tiny).log() - 0.5 * var.log().sum(1)
    rows = []
    for k in range(len(mean)):
        centered = x - mean[k, :, None]
        rows.append(constant[k] - 0.5 * (centered * centered * (1 / var)[k, :, None]).sum(1))
    # far from every component all squares overflow: an equal floor keeps the softmax a probability
    return torch.stack(rows, 1).clamp_min(floor)


class Responsibilities(torch.autograd.Function):
    """softmax_k of ``diagonal_log_joint`` with its gradient by hand. h_k = tau_k (g_k - sum_j tau_j g_j):

    dl/dx = - sum_k h_k (x - m_k) / v_k      dl/dm_k = sum h_k (x - m_k) / v_k
    dl/dv_k = 1/2 sum h_k ((x - m_k)^2 / v_k^2 - 1 / v_k)      dl/dlambda_k = sum h_k / lambda_k
    """

    @staticmethod
    def forward(ctx, x, priors, mean, var):  # type: ignore[no-untyped-def]
        tau = diagonal_log_joint(x, priors, mean, var).softmax(1)
        ctx.save_for_backward(x, priors, mean, var, tau)
        return tau

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, priors, mean, var, tau = ctx.saved_tensors  # (N, C, L), (K,), (K, C), (K, C), (N, K, L)
        h = tau * (g - (tau * g).sum(1, keepdim=True))  # (N, K, L)
        center = (priors.unsqueeze(1) * mean).sum(0)  # (C,)
        shifted, offset, precision = x - center[:, None], mean - center, 1 / var  # (N, C, L), (K, C), (K, C)
        total = mass(h, x.shape[2])  # (K, 1)
        d_x = mix(h, precision * offset) - shifted * mix(h, precision)  # (N, C, L)
        d_mean = (collect(h, shifted) - offset * total) * precision  # (K, C)
        squares = []
        for k in range(len(mean)):
            centered = x - mean[k, :, None]
            squares.append(collect(h[:, k : k + 1], centered * centered))  # (1, C)
        d_var = 0.5 * (torch.cat(squares) * precision - total) * precision  # (K, C)
        return d_x, total[:, 0] * invert(priors), d_mean, d_var


def responsibilities(x: Tensor, priors: Tensor, mean: Tensor, var: Tensor, gradient: str = "manual") -> Tensor:
    """tau_k(x) = p(k | x) under a mixture of diagonal Gaussians over the channel vector.

    x: (N, C) or (N, C, *); priors: (T,); mean, var: (T, C). Returns (N, T) or (N, T, *), float32 at least,
    computed in log space: at C = 128 the densities themselves underflow.
    Raises ValueError for wrong shapes, negative variances, priors that do not sum to 1.
    Source: the unnumbered definition of tau_k before eq. (3), French paper; after eq. (5), ICDM paper.
    """
    check_input(x, None, "responsibilities")
    check_moments(mean, var, x.shape[1], "responsibilities")
    check_priors(priors, mean.shape[0], "responsibilities")
    return posterior(x, priors, mean, var, check_gradient(gradient))


def posterior(x: Tensor, priors: Tensor, mean: Tensor, var: Tensor, gradient: str) -> Tensor:
    """``responsibilities`` of what is known to be valid."""
    wide = widen(x)
    priors, mean, var = (t.to(wide.dtype) for t in (priors, mean, var))
    # neither a square of a distance nor that of a precision may overflow: 0 times inf would be the gradient
    flat, var = flatten(wide).clamp(-0.1 / least(wide.dtype), 0.1 / least(wide.dtype)), var.clamp_min(least(wide.dtype))
    if by_hand(gradient):
        tau = Responsibilities.apply(flat, priors, mean, var)
    else:
        tau = diagonal_log_joint(flat, priors, mean, var).softmax(1)
    return tau.reshape(x.shape[0], mean.shape[0], *x.shape[2:])


@torch.no_grad()
def start_means(x: Tensor, num_components: int, group: ProcessGroup | None = None) -> Tensor:
    """k-means++ on the channel vectors of x (N, C, L): means (K, C), each a vector of the batch.

    group: the batch is all that these processes hold, in their order; the first process's random numbers count.
    """
    n, _, length = x.shape
    rank = 0 if group is None else group.rank()
    distance = x.new_full((n, length), 1.0)
    means: list[Tensor] = []
    for _ in range(num_components):
        # inverse-CDF draw of a process, then of a vector; a tensor index keeps it inside a compiled graph
        cumulative = distance.flatten().double().cumsum(0)
        weights, draws = gather(group, cumulative[-1:], torch.rand(1, device=x.device).double())
        ends = weights[:, 0].cumsum(0)
        target = draws[0] * ends[-1]
        owner = torch.searchsorted(ends, target).clamp_max(len(ends) - 1)
        pick = torch.searchsorted(cumulative, target - (ends - weights[:, 0])[rank]).clamp_max(n * length - 1)
        vector = x[pick // length, :, pick % length]
        if group is not None:
            (vector,) = total(group, torch.where(owner == rank, vector, 0))
        means.append(vector)
        to_new = (x - means[-1][:, :, None]).square().sum(1)
        distance = to_new if len(means) == 1 else torch.minimum(distance, to_new)
    return torch.cat(means)


def em_step(
    x: Tensor, tau: Tensor, mean: Tensor, var: Tensor, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """M-step from tau (N, K, L): priors (K,), means and variances (K, C); an empty component stays put."""
    held, new_mean, new_var = mixture_moments(x, tau, group)
    return (held / held.sum())[:, 0], torch.where(held > 0, new_mean, mean), torch.where(held > 0, new_var, var)


def fit_diagonal(
    x: Tensor,
    num_components: int,
    start: tuple[Tensor, Tensor, Tensor] | None,
    steps: int,
    eps: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """tau (N, K, L) under the mixture that steps - 1 steps of EM on x (N, C, L) reach.

    start: priors (K,), means, variances (K, C); None: equal priors, k-means++ means, the variance of the batch. eps is
    added to variances in the E-step, as the normalization adds it.
    """
    if start is None:
        mean = start_means(x, num_components, group)
        var, center = torch.var_mean(x, (0, 2), correction=0)
        _, _, var = pool(group, var.new_full((1,), x.shape[0] * x.shape[2]), center, var)
        var = var.expand_as(mean)
        priors = torch.full_like(mean[:, 0], 1 / num_components)
    else:
        priors, mean, var = start
    tau = diagonal_log_joint(x, priors, mean, var + eps).softmax(1)
    for _ in range(steps - 1):
        priors, mean, var = em_step(x, tau, mean, var, group)
        tau = diagonal_log_joint(x, priors, mean, var + eps).softmax(1)
    return tau
