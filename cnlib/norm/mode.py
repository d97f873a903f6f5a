"""Mode normalization (Deecke et al. 2019): batch norm for each of K modes, mixed by the gates of each sample.

With gates g (N, K) for responsibilities and priors 1/K, eq. (3)-(4) of the French CN paper are sqrt(K) times it. A gate
is one number a sample: so the moments of modes follow from those of samples, and y = A x + B with A, B (N, C).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import add_product_, affine_, narrow, no_autocast, of_nothing, wide_type, widen
from cnlib.norm.batch import check_batch
from cnlib.norm.calling import by_hand, drop_in, in_backward
from cnlib.norm.checks import (
    check_eps,
    check_gradient,
    check_input,
    check_momentum,
    check_positive,
    check_responsibilities,
)
from cnlib.norm.gate import Gate, logits_of
from cnlib.norm.gaussians import equal_values, invert
from cnlib.norm.index_sets import Moments, center, samples
from cnlib.norm.layer import reset_affine
from cnlib.norm.processes import group_of, pool, total
from cnlib.norm.running_mixture import RunningMixture

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Everywhere below: x (N, C, L), gates (N, K), moments of samples (N, C), of modes (K, C), weight and bias (C,) or None.


def mode_moments(gates: Tensor, mean: Tensor, var: Tensor, positions: int, group: ProcessGroup | None) -> Moments:
    """Mean and biased variance of each mode, weighted by the gates, from those of each sample over its positions.

    group: the batch is all that these processes hold.
    """
    held = gates.sum(0).unsqueeze(1) * positions  # (K, 1)
    share = (gates * (positions * invert(held)).t()).unsqueeze(2)  # (N, K, 1)
    # counted from the mean of all, so that values far from 0 keep their digits
    whole = mean.mean(0)
    off = (mean - whole).unsqueeze(1)  # (N, 1, C)
    own = (share * off).sum(0)  # (K, C)
    spread = (share * (var.unsqueeze(1) + (off - own).square())).sum(0)
    return pool(group, held, whole + own, spread)[1:]


def modes(
    x: Tensor,
    gates: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Moments | None,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """weight sum_k gate_nk (x - m_k) / sqrt(v_k + eps) + bias, as A x + B with A, B (N, C).

    Gates that are not given are softmax(W p + b) of the mean p of each sample. running: moments that the modes have in
    place of the batch's. Returns y, the gates, and the moments of each sample and of each mode.
    """
    centered, mean, var = center(widen(x))
    if gates is None:
        assert gate_weight is not None and gate_bias is not None
        gates = logits_of(mean, gate_weight, gate_bias).softmax(1)
    mode_mean, mode_var = mode_moments(gates, mean, var, x.shape[2], group) if running is None else running
    slopes = gates.unsqueeze(2) * (mode_var + eps).rsqrt()  # (N, K, C)
    scale, shift = slopes.sum(1), (slopes * (mean.unsqueeze(1) - mode_mean)).sum(1)  # (N, C)
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    y = narrow(affine_(centered, scale.unsqueeze(-1), shift.unsqueeze(-1)), x.dtype)
    return y, gates, mean, var, mode_mean, mode_var


class Modes(torch.autograd.Function):
    """``modes`` with its gradient by hand, also through the gates. With r_k = (v_k + eps)^(-1/2), h = g * weight, p and
    v the moments of a sample, L its positions, s_k = L sum_N gate_k, and sums over positions S = sum h and
    Q_k = sum h (x - m_k) of each sample and channel:

        dl/dm_k    = - r_k sum_N gate_k S       (v_k does not move with m_k: sum_NL gate_k (x - m_k) = 0)
        dl/dv_k    = - 1/2 r_k^3 sum_N gate_k Q_k
        dl/dgate_k = sum_C [ r_k Q_k + L / s_k ((p - m_k) dl/dm_k + (v + (p - m_k)^2 - v_k) dl/dv_k) ]
        dl/dx      = h sum_k gate_k r_k + sum_k gate_k / s_k (dl/dm_k + 2 (x - m_k) dl/dv_k) + dl/dp / L
        e_k        = gate_k (dl/dgate_k - sum_j gate_j dl/dgate_j)
        dl/dW      = sum_N e p^T               dl/db = sum_N e               dl/dp = W^T e

    Of the third line only the first term, and of the fourth only the first and last, where moments are running; without
    the last two lines where gates are given. Gates and moments are outputs, not scratch: so the backward can itself be
    differentiated.
    """

    @staticmethod
    def forward(ctx, x, given, gate_weight, gate_bias, weight, bias, running_mean, running_var, eps, group=None):  # type: ignore[no-untyped-def]
        # an output may not be an input
        own, running_mean, running_var = (t if t is None else t.clone() for t in (given, running_mean, running_var))
        running = None if running_mean is None else (running_mean, running_var)
        y, *found = modes(x, own, gate_weight, gate_bias, weight, bias, running, eps, group)
        ctx.save_for_backward(x, gate_weight, weight, *found)
        ctx.given, ctx.running, ctx.eps, ctx.group = given is not None, running is not None, eps, group
        return y, *found

    @staticmethod
    def backward(ctx, g, d_gates, d_mean, d_var, d_mode_mean, d_mode_var):  # type: ignore[no-untyped-def]
        x, gate_weight, weight, gates, mean, var, mode_mean, mode_var = ctx.saved_tensors
        positions, by_gate = x.shape[2], gates.unsqueeze(2)  # L, (N, K, 1)
        rstd = (mode_var + ctx.eps).rsqrt()  # (K, C)
        off = mean.unsqueeze(1) - mode_mean  # (N, K, C): x - m_k is x - p + off
        centered, g = widen(x) - mean.unsqueeze(-1), widen(g)  # (N, C, L)

        # all other sums are sums of these two
        s = g.sum(-1).unsqueeze(1)  # (N, 1, C)
        q = (g * centered).sum(-1).unsqueeze(1) + off * s  # (N, K, C)
        held_s, held_q = (by_gate * s).sum(0), (by_gate * q).sum(0)  # (K, C)
        d_weight = (held_q * rstd).sum(0) if ctx.needs_input_grad[4] else None  # (C,)
        d_bias = s.sum((0, 1)) if ctx.needs_input_grad[5] else None  # (C,)
        scale = rstd if weight is None else rstd * weight  # (K, C)
        d_gates = d_gates + (scale * q).sum(2)  # (N, K)

        slope, offset = 2 * d_var / positions, d_mean / positions  # (N, C)
        if not ctx.running:
            d_mode_mean = d_mode_mean - scale * held_s  # (K, C)
            d_mode_var = d_mode_var - 0.5 * scale * rstd**2 * held_q
            # the batch is that of all processes, and so are these sums
            held = gates.sum(0).unsqueeze(1) * positions  # (K, 1)
            d_mode_mean, d_mode_var, held = total(ctx.group, d_mode_mean, d_mode_var, held)
            inverse = invert(held)
            by_mean, by_var = d_mode_mean * inverse, d_mode_var * inverse  # (K, C)
            spread = var.unsqueeze(1) + off.square() - mode_var  # (N, K, C)
            d_gates = d_gates + positions * (by_mean * off + by_var * spread).sum(2)
            by_var = 2 * by_gate * by_var  # (N, K, C)
            slope, offset = slope + by_var.sum(1), offset + (by_gate * by_mean + by_var * off).sum(1)
        d_gate_weight = d_gate_bias = None
        if not ctx.given:
            e = gates * (d_gates - (gates * d_gates).sum(1, keepdim=True))  # (N, K)
            with no_autocast(x):
                d_gate_weight, d_gate_bias = torch.matmul(e.t(), mean), e.sum(0)  # (K, C), (K,)
                offset = offset + torch.matmul(e, gate_weight) / positions
        through = affine_(centered, slope.unsqueeze(-1), offset.unsqueeze(-1))  # (N, C, L)
        dx = narrow(add_product_(through, g, (by_gate * scale).sum(1).unsqueeze(-1)), x.dtype)
        d_given = d_gates if ctx.given else None
        return dx, d_given, d_gate_weight, d_gate_bias, d_weight, d_bias, *[None] * 4


def normalize_modes(
    x: Tensor,
    gates: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Moments | None,
    eps: float,
    gradient: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``modes`` on (N, C, *) inputs in any floating type: y like x, the gates, and mean and variance of each mode."""
    dtype = wide_type(x)
    args: tuple[Any, ...] = (gates, gate_weight, gate_bias, weight, bias)
    args = (samples(x), *(None if t is None else t.to(dtype) for t in args))
    running = None if running is None else (running[0].to(dtype), running[1].to(dtype))
    if by_hand(gradient):
        found = Modes.apply(*args, *(running or (None, None)), eps, group)
    else:
        args = (*args, running, eps, group)
        found = modes(*args)
    y, gates, _, _, mean, var = found
    return y.reshape(x.shape), gates, mean, var


def mode_norm(x: Tensor, gates: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """Normalize x with the weighted batch moments of each mode, and mix the results by each sample's gates.

    x: (N, C) or (N, C, *), any real floating type; gates: (N, K), each row at least 0 with sum 1. Moments of the batch,
    as in training; no affine map. Gradients flow to both. K = 1 is batch normalization.
    Returns the shape and type of x. Raises ValueError / TypeError for wrong shapes, types and sums.
    Source: eq. (6)-(8) of Deecke et al. (2019).
    """
    check_input(x, None, "mode_norm")
    check_responsibilities(gates, x, None, "mode_norm", "gates", by_position=False)
    eps, gradient = check_eps(eps), check_gradient(gradient)
    if x.numel() == 0:
        return of_nothing(x, None, None, gates)
    return normalize_modes(x, gates, None, None, None, None, None, eps, gradient)[0]


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

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Start the gates from clusters of the samples of a first batch x (N, C, *), N > K: see ``Gate.start_from``.

        At their own start gates are nearly equal, and where they are equal so are the modes, and the gates have no
        gradient: a saddle. With one mode nothing changes. Source: ours.
        """
        check_input(x, self.num_features, "ModeNorm")
        self.gate.start_from(samples(x), self.eps)

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "ModeNorm")
        group = group_of(self)
        if x.numel() == 0 and group is None:
            return of_nothing(x, self.weight, self.bias, *self.gate.parameters())
        running = None if self.training else self.running()
        if running is None:
            check_batch(x, group, "ModeNorm")
        args = (None, self.gate.weight, self.gate.bias, self.weight, self.bias, running and running[1:])
        y, gates, mean, var = normalize_modes(x, *args, self.eps, self.gradient, group)
        if self.training and self.track_running_stats and not in_backward():
            self._track(gates, mean, var, samples(x).shape[2], group)
        return y

    @torch.no_grad()
    def _track(self, gates: Tensor, mean: Tensor, var: Tensor, count: int, group: ProcessGroup | None) -> None:
        """The running moments move towards those of a batch: its gates (N, K), each that of ``count`` values."""
        own = count * gates.sum(0), count * gates.square().sum(0), gates.new_full((1,), count * gates.shape[0])
        held, squares, m = total(group, *own)
        self.update_running(mean, var, m, held / m, equal_values(held, squares).unsqueeze(1))

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_modes={self.num_modes}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, gradient={self.gradient!r}"
        )
