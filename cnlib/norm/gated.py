"""Context normalization without given contexts: a gate finds them, one learned affine map each.

Eq. (5) of the French CN paper, (8) of the ICDM paper, with the gates of mode normalization (Deecke et al. 2019) where
these have the one-hot context of a sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import narrow, no_autocast, of_nothing, product_, widen
from cnlib.norm.calling import by_hand, drop_in
from cnlib.norm.checks import check_eps, check_gradient, check_input, check_number, check_positive
from cnlib.norm.gate import Gate
from cnlib.norm.gaussians import mix, mixture_moments
from cnlib.norm.index_sets import samples
from cnlib.norm.mixture import mixture_affine

# Everywhere below: x (N, C, L), gates (N, K), mean and var (K, C).


def gated_standardize(x: Tensor, gates: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """sum_k g_nk (x - m_k) / sqrt(v_k + eps), as A x + B with A, B (N, C). Nothing here looks at the batch.

    It is ``mixture_affine`` of given moments, with priors 1/K for the point from which x is counted; the weight takes
    their root back.
    """
    k, c = mean.shape
    priors, weight = mean.new_full((k,), 1 / k), mean.new_full((c,), k**-0.5)
    y = mixture_affine(widen(x), gates.unsqueeze(2), priors, mean, var, weight, torch.zeros_like(weight), eps)
    return narrow(y, x.dtype)


class GatedStandardize(torch.autograd.Function):
    """``gated_standardize`` with its gradient by hand. With a_k = (v_k + eps)^(-1/2), and sums over positions
    S = sum g and Q_k = sum g (x - m_k) of each sample and channel:

        dl/dx    = g sum_k gate_k a_k          dl/dgate_k = sum_C a_k Q_k
        dl/dm_k  = - a_k sum_N gate_k S        dl/dv_k    = - 1/2 a_k^3 sum_N gate_k Q_k
    """

    @staticmethod
    def forward(ctx, x, gates, mean, var, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, gates, mean, var)
        ctx.eps = eps
        return gated_standardize(x, gates, mean, var, eps)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, gates, mean, var = ctx.saved_tensors
        rstd = (var + ctx.eps).rsqrt()  # (K, C)
        center = mean.mean(0)  # (C,): sums of x counted from here keep their digits
        g = widen(g)  # (N, C, L)
        sum_g = g.sum(-1)  # (N, C)
        sum_gx = product_(widen(x) - center[:, None], g).sum(-1)  # (N, C)
        with no_autocast(g):
            by_mean = torch.matmul(gates.t(), sum_g)  # (K, C): sum_N gate_k S
            q = torch.matmul(gates.t(), sum_gx) - (mean - center) * by_mean  # (K, C): sum_N gate_k Q_k
            d_gates = torch.matmul(sum_gx, rstd.t()) - torch.matmul(sum_g, (rstd * (mean - center)).t())  # (N, K)
        dx = g * mix(gates.unsqueeze(2), rstd)  # (N, C, L)
        return narrow(dx, x.dtype), d_gates, -rstd * by_mean, -0.5 * rstd**3 * q, None


class GatedContextNorm(nn.Module):
    """Context normalization over (N, C) or (N, C, *) inputs whose contexts the network finds itself.

    y_n = sum_k g_nk (x_n - m_k) / sqrt(v_k + eps): means and log variances of K contexts (K, C) are learned as weights
    are, and the gates g_n = softmax(W p_n + b) are those of the sample's mean p_n over positions. There are no batch
    statistics: training and evaluation differ in nothing but the noise of ``hard``.

    hard: one context a sample. Training draws it, the largest of the logits plus Gumbel noise, with the gradient of
    softmax((logits + noise) / ``temperature``) straight through; lower ``temperature``, from 2 to 0.5 say, as training
    goes on. Evaluation takes the largest logit.

    With equal contexts y does not depend on the gates, which then have no gradient: a saddle, where all of them stay
    equal. So means start as N(0, 0.1^2); ``start_from`` starts from clusters of a batch.
    Raises ValueError / TypeError for wrong shapes and types. Source: eq. (5), French paper; (8), ICDM paper; gates of
    Deecke et al. (2019); straight-through: Jang et al. (2017).
    """

    def __init__(
        self,
        num_features: int,
        num_contexts: int,
        eps: float = 1e-5,
        gradient: str = "manual",
        *,
        hard: bool = False,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c, k = check_positive(num_features=num_features, num_contexts=num_contexts)
        self.num_features, self.num_contexts, self.eps = c, k, check_eps(eps)
        self.gradient, self.hard = check_gradient(gradient), hard
        self.temperature = check_number("temperature", temperature, 1e-3, 1e3, "a number from 0.001 to 1000")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mean = nn.Parameter(torch.empty(k, c, **at))
        self.log_var = nn.Parameter(torch.empty(k, c, **at))
        self.gate = Gate(c, k, **at)
        self._reset_moments()

    def _reset_moments(self) -> None:
        """Means normal with standard deviation 0.1, variances 1."""
        nn.init.normal_(self.mean, std=0.1)
        nn.init.zeros_(self.log_var)

    def reset_parameters(self) -> None:
        """Gates nearly equal, means a little apart, variances 1."""
        self.gate.reset_parameters()
        self._reset_moments()

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Start the gates from clusters of the samples of a first batch x (N, C, *), N > K: see ``Gate.start_from``.

        Contexts start from the moments of this batch, weighted by these gates, with eps in the variance: so the layer
        starts as mode normalization of it. Source: ours.
        """
        check_input(x, self.num_features, "GatedContextNorm")
        flat = samples(widen(x))
        self.gate.start_from(flat, self.eps)
        gates = self.gate.logits(flat, self.gradient).softmax(1)
        _, mean, var = mixture_moments(flat, gates.unsqueeze(2))
        self.mean.copy_(mean)
        self.log_var.copy_((var + self.eps).log())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every context, (K, C) each, in float32 at least."""
        return widen(self.mean), widen(self.log_var).exp()

    def gates(self, x: Tensor) -> Tensor:
        """How much of each sample of x belongs to each context, (N, K), rows sum to 1; with ``hard`` 0 and 1."""
        check_input(x, self.num_features, "GatedContextNorm")
        logits = self.gate.logits(samples(x), self.gradient)
        if not self.hard:
            return logits.softmax(1)
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            logits = (logits + noise) / self.temperature
        soft = logits.softmax(1)
        chosen = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0)
        return chosen + (soft - soft.detach())

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "GatedContextNorm")
        if x.numel() == 0:
            return of_nothing(x, None, None, *self.parameters())
        mean, var = self.moments()
        dtype = widen(x).dtype
        run = GatedStandardize.apply if by_hand(self.gradient) else gated_standardize
        y: Tensor = run(samples(x), self.gates(x), mean.to(dtype), var.to(dtype), self.eps)
        return y.reshape(x.shape)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, {self.num_contexts}, eps={self.eps}, hard={self.hard}, "
            f"temperature={self.temperature}, gradient={self.gradient!r}"
        )
