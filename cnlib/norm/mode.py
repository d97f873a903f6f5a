"""Mode normalization (Deecke et al. 2019): mixture normalization whose responsibilities a gate learns.

With gates g (N, K) for responsibilities and priors 1/K, eq. (3)-(4) of the French CN paper are sqrt(K) times it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import narrow, of_nothing, wide_type, widen
from cnlib.norm.batch import check_batch
from cnlib.norm.calling import drop_in
from cnlib.norm.checks import (
    check_eps,
    check_gradient,
    check_input,
    check_momentum,
    check_positive,
    check_responsibilities,
)
from cnlib.norm.gate import Gate
from cnlib.norm.index_sets import samples
from cnlib.norm.layer import reset_affine
from cnlib.norm.mixture import mixture_affine, normalize_and_track, normalize_mixture
from cnlib.norm.processes import group_of
from cnlib.norm.running_mixture import RunningMixture

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def equal_priors(num_modes: int, x: Tensor) -> Tensor:
    """1/K for each mode, (K,)."""
    return x.new_full((num_modes,), 1 / num_modes, dtype=wide_type(x))


def per_mode(weight: Tensor | None, num_modes: int, x: Tensor) -> Tensor:
    """The weight (C,) over sqrt(K), which takes back what priors of 1/K multiply."""
    weight = x.new_ones(x.shape[1], dtype=wide_type(x)) if weight is None else weight.to(wide_type(x))
    return weight * num_modes**-0.5


def mode_norm(x: Tensor, gates: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """Normalize x with the weighted batch moments of each mode, and mix the results by each sample's gates.

    x: (N, C) or (N, C, *), any real floating type; gates: (N, K), each row at least 0 with sum 1. Moments of the batch,
    as in training; no affine map. Gradients flow to both. K = 1 is batch normalization.
    Returns the shape and type of x. Raises ValueError / TypeError for wrong shapes, types and sums.
    Source: eq. (6)-(8) of Deecke et al. (2019).
    """
    check_input(x, None, "mode_norm")
    check_responsibilities(gates, x, None, "mode_norm", "gates", by_position=False)
    k = gates.shape[1]
    args = (equal_priors(k, x), per_mode(None, k, x), None, check_eps(eps), check_gradient(gradient))
    return normalize_mixture(x, gates, *args)[0]


class ModeNorm(RunningMixture):
    """Mode normalization with K modes over (N, C) or (N, C, *) inputs.

    y_n = weight sum_k g_nk (x_n - m_k) / sqrt(v_k + eps) + bias. The gates g_n = softmax(W p_n + b) are those of the
    sample's mean p_n over positions; m_k, v_k (C,) are the moments of the batch weighted by them. Evaluation uses the
    running means and variances of each mode (K, C); the running prior (K,) is how much of the data a mode has had.

    momentum: rate of the running moments, None for a plain average over batches; the first batch replaces their
    arbitrary start. bias: whether the affine map has a shift. Parameters and buffers may be set to None later.
    Raises ValueError / TypeError as ``BatchNorm``. Source: Deecke et al. (2019), eq. (5)-(8), Algorithms 1-2.
    """

    def __init__(
        self,
        num_features: int,
        num_modes: int = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        c, k = check_positive(num_features=num_features, num_modes=num_modes)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(k, c, check_momentum(momentum), at)
        self.num_features, self.num_modes, self.eps, self.affine = c, k, check_eps(eps), affine
        self.gradient = check_gradient(gradient)
        self.weight = nn.Parameter(torch.empty(c, **at)) if affine else None
        self.bias = nn.Parameter(torch.empty(c, **at)) if affine and bias else None
        self.gate = Gate(c, k, **at)
        # set by cnlib.synchronize
        self.synchronized = False
        self.process_group: ProcessGroup | None = None
        reset_affine(self)
        self.reset_running_stats()

    def reset_parameters(self) -> None:
        """weight 1, bias 0; gates nearly equal; no running moments."""
        reset_affine(self)
        self.gate.reset_parameters()
        self.reset_running_stats()

    def gates(self, x: Tensor) -> Tensor:
        """How much of each sample of x belongs to each mode: (N, K), rows sum to 1."""
        check_input(x, self.num_features, "ModeNorm")
        return self.gate.logits(samples(x), self.gradient).softmax(1)

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "ModeNorm")
        group = group_of(self)
        if x.numel() == 0 and group is None:
            return of_nothing(x, self.weight, self.bias, *self.gate.parameters())
        flat, gates = samples(x), self.gates(x)
        priors, weight = equal_priors(self.num_modes, x), per_mode(self.weight, self.num_modes, x)
        running = None if self.training else self.running()
        if running is None:
            check_batch(x, group, "ModeNorm")
            y = normalize_and_track(self, flat, gates, weight, self.bias, group, priors)
        else:
            wide = widen(flat)
            _, mean, var = (values.to(wide.dtype) for values in running)
            bias = torch.zeros_like(weight) if self.bias is None else self.bias.to(wide.dtype)
            y = mixture_affine(wide, gates.unsqueeze(2), priors, mean, var, weight, bias, self.eps)
        return narrow(y, x.dtype).reshape(x.shape)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_modes={self.num_modes}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, gradient={self.gradient!r}"
        )
