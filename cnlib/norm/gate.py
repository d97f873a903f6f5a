"""A gate: how much of a sample belongs to each mode or context, as the network itself finds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import no_autocast, wide_type, widen
from cnlib.norm.calling import by_hand
from cnlib.norm.gaussians import em_step, start_means

# Everywhere below: x (N, C, L), weight (K, C), bias (K,), gates (N, K), whose rows sum to 1.


def logits_of(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W p + b (N, K), of p (N, C), the mean of a sample over its positions. Deecke et al. (2019), section 3.2."""
    with no_autocast(pooled):
        return torch.matmul(pooled, weight.t()) + bias


def gate_logits(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``logits_of`` x, and the means p (N, C) that they are of."""
    pooled = widen(x).mean(-1)
    return logits_of(pooled, weight, bias), pooled


class GateLogits(torch.autograd.Function):
    """``gate_logits`` with its gradient by hand:

        dl/dW = sum_N g p^T      dl/db = sum_N g      dl/dp = W^T g      dl/dx = dl/dp / L

    p is an output, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        logits, pooled = gate_logits(x, weight, bias)
        ctx.save_for_backward(weight, pooled)
        ctx.positions, ctx.dtype = x.shape[2], x.dtype
        return logits, pooled

    @staticmethod
    def backward(ctx, g, g_pooled):  # type: ignore[no-untyped-def]
        weight, pooled = ctx.saved_tensors
        with no_autocast(g):
            d_pooled = torch.matmul(g, weight) + g_pooled  # (N, C)
            d_weight = torch.matmul(g.t(), pooled)  # (K, C)
        dx = (d_pooled / ctx.positions).to(ctx.dtype).unsqueeze(-1).expand(-1, -1, ctx.positions)  # (N, C, L)
        return dx, d_weight, g.sum(0)


class Gate(nn.Module):
    """The parameters of ``gate_logits`` for C channels and K modes or contexts."""

    def __init__(
        self,
        num_features: int,
        num_gates: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_gates, num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_gates, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of Deecke et al.: weights 1/K and a little noise, so that gates are nearly equal; bias 0."""
        nn.init.normal_(self.weight, mean=1 / len(self.bias), std=0.01)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def start_from(self, x: Tensor, eps: float) -> None:
        """Gates of clusters: k-means on the means p of the samples of x, N > K, with centers c_k, and

            g_k = softmax_k of - |p - c_k|^2 / (2 s)        W_k = (c_k - c) / s    b_k = - (c_k - c) (c_k + c) / (2 s)

        with c the mean of the centers and s the mean squared distance of a sample to its center, plus eps. So gates are
        the surer the further apart clusters are, and clusters that are none give gates that are not sure.
        Random numbers are torch's own. Raises ValueError where there are not more samples than gates.
        """
        pooled, k = widen(x).mean(-1), len(self.bias)
        if len(pooled) <= k:
            raise ValueError(f"start_from: {len(pooled)} samples for {k} clusters, expected more; use a larger batch")
        centers = k_means(pooled, k)
        distance = torch.cdist(pooled, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
        scale, middle = distance.amin(1).mean() + eps, centers.mean(0)
        self.weight.copy_((centers - middle) / scale)
        self.bias.copy_(-((centers - middle) * (centers + middle)).sum(1) / (2 * scale))

    def logits(self, x: Tensor, gradient: str) -> Tensor:
        """(N, K) of x (N, C, L)."""
        run = GateLogits.apply if by_hand(gradient) else gate_logits
        logits: Tensor = run(x, self.weight.to(wide_type(x)), self.bias.to(wide_type(x)))[0]
        return logits

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {len(self.bias)}"


def k_means(points: Tensor, count: int, steps: int = 50) -> Tensor:
    """Lloyd's k-means on points (N, C) from k-means++: centers (K, C), after ``steps`` at most."""
    centers = start_means(points.unsqueeze(2), count)
    for _ in range(steps):
        nearest = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        held = torch.nn.functional.one_hot(nearest, count).to(points.dtype).unsqueeze(2)  # (N, K, 1)
        _, moved, _ = em_step(points.unsqueeze(2), held, centers, centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def entropy(gates: Tensor) -> Tensor:
    """- sum_k g_k log g_k over the last axis, in nats; 0 log 0 is 0."""
    return -torch.special.xlogy(gates, gates).sum(-1)


def effective_number(gates: Tensor) -> Tensor:
    """exp H(mean_n g_n): how many modes or contexts a batch's gates (N, K) use, from 1 to K. Near 1 all is one mode."""
    return entropy(gates.mean(0)).exp()


def imbalance(gates: Tensor) -> Tensor:
    """log K - H(mean_n g_n), at least 0: a loss to add, times 0.01 say, where one mode would take all samples."""
    return gates.new_tensor(gates.shape[1]).log() - entropy(gates.mean(0))
