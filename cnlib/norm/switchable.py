"""Switchable normalization (Luo et al. 2019): one learned mixture of the moments of IN, LN and BN for all samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import add_product_, affine_, narrow, of_nothing, wide_type, widen
from cnlib.norm.batch import Count
from cnlib.norm.calling import by_hand, drop_in
from cnlib.norm.checks import check_eps, check_gradient, check_input, check_priors
from cnlib.norm.index_sets import (
    NORMALIZERS,
    Moments,
    NormOfSets,
    batch_moments,
    center,
    moments_of,
    samples,
    through_moments,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Everywhere below: x (N, C, L), one ratio a normalizer (K,), weight and bias (C,) or None, running moments (1, C).


def mixed(ratios: Tensor, values: Iterable[Tensor]) -> Tensor:
    """sum_k ratio_k value_k of moments of different index sets: (N, C), or less where they allow."""
    products = [ratio * value for ratio, value in zip(ratios.unbind(), values, strict=True)]
    return sum(products[1:], products[0])


def switch(
    x: Tensor,
    mean_ratios: Tensor,
    var_ratios: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Moments | None,
    normalizers: tuple[str, ...],
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Count]:
    """(x - m) / sqrt(v + eps) weight + bias with m = sum_k w_k m_k and v = sum_k u_k v_k.

    running: moments that "bn" takes in place of the batch's. Returns y, the moments of each sample and channel (N, C),
    those of the batch (1, C), and the number of values these are over.
    """
    centered, mean, var = center(widen(x))
    batch_mean, batch_var, m = batch_moments(mean, var, x.shape[2], group)
    moments = moments_of(normalizers, mean, var, running or (batch_mean, batch_var))
    scale = (mixed(var_ratios, (v for _, v in moments)) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = (mean - mixed(mean_ratios, (m for m, _ in moments))) * scale
    if bias is not None:
        shift = shift + bias
    y = narrow(affine_(centered, scale.unsqueeze(-1), shift.unsqueeze(-1)), x.dtype)
    return y, mean, var, batch_mean, batch_var, m


class Switch(torch.autograd.Function):
    """``switch`` with its gradient by hand. With s = (v + eps)^(1/2), h = g * weight, and sums over positions:

        a = - sum h / s            b = - 1/2 sum h (x - m) / s^3          of each sample and channel
        dl/dm_k = w_k a^k          dl/dv_k = u_k b^k                      a^k, b^k: summed over what shares m_k, v_k
        dl/dw_k = sum_NC a m_k     dl/du_k = sum_NC b v_k
        dl/dx   = h / s + sum_k [ dl/dm_k + 2 (x - m_k) dl/dv_k ] / M_k   without "bn" where its moments are running

    The moments are outputs, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, w, u, weight, bias, running_mean, running_var, normalizers, eps, group=None):  # type: ignore[no-untyped-def]
        running = None if running_mean is None else (running_mean, running_var)
        y, *moments, m = switch(x, w, u, weight, bias, running, normalizers, eps, group)
        ctx.save_for_backward(x, w, u, weight, running_mean, running_var, *moments)
        ctx.normalizers, ctx.eps, ctx.group = normalizers, eps, group
        if group is not None:
            ctx.mark_non_differentiable(m)
        return y, *moments, m

    @staticmethod
    def backward(ctx, g, *d_found):  # type: ignore[no-untyped-def]
        x, w, u, weight, running_mean, running_var, *found = ctx.saved_tensors
        running = None if running_mean is None else (running_mean, running_var)
        mean, var, *batch = found
        moments = moments_of(ctx.normalizers, mean, var, running or batch)
        rstd = (mixed(u, (v for _, v in moments)) + ctx.eps).rsqrt()  # (N, C), or (1, C), (N, 1) with one set alone
        off = mean - mixed(w, (m for m, _ in moments))  # (N, C): x - m is x - m_in + off
        centered = widen(x) - mean.unsqueeze(-1)  # (N, C, L)
        g = widen(g)  # (N, C, L)

        # all other sums are sums of these two
        sum_h = g.sum(-1)  # (N, C)
        sum_hc = (g * centered).sum(-1) + off * sum_h  # (N, C)
        d_weight = (sum_hc * rstd).sum(0) if ctx.needs_input_grad[3] else None  # (C,)
        d_bias = sum_h.sum(0) if ctx.needs_input_grad[4] else None  # (C,)
        scale = rstd
        if weight is not None:
            sum_h, sum_hc, scale = sum_h * weight, sum_hc * weight, rstd * weight
        a, b = -sum_h * rstd, -0.5 * sum_hc * rstd**3  # (N, C)
        d_w = torch.stack([(a * m).sum() for m, _ in moments])  # (K,)
        d_u = torch.stack([(b * v).sum() for _, v in moments])  # (K,)

        d_means, d_vars = [w_k * a for w_k in w.unbind()], [u_k * b for u_k in u.unbind()]  # (N, C) each
        slope, offset = through_moments(
            ctx.normalizers, d_means, d_vars, found, d_found, running, x.shape[2], ctx.group
        )  # (N, C)
        through = affine_(centered, slope.unsqueeze(-1), offset.unsqueeze(-1))  # (N, C, L)
        dx = narrow(add_product_(through, g, scale.unsqueeze(-1)), x.dtype)
        return dx, d_w, d_u, d_weight, d_bias, None, None, None, None, None


def normalize_switchable(
    x: Tensor,
    mean_ratios: Tensor,
    var_ratios: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Moments | None,
    normalizers: tuple[str, ...],
    eps: float,
    gradient: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Count]:
    """``switch`` on (N, C, *) inputs in any floating type: y like x, mean, var (C,) of the batch, and their number."""
    c, dtype = x.shape[1], wide_type(x)
    w, u = mean_ratios.to(dtype), var_ratios.to(dtype)
    if x.numel() == 0 and group is None:
        none = x.new_zeros(c, dtype=dtype)
        return of_nothing(x, weight, bias, w, u), none, none, 0
    weight, bias = (None if values is None else values.to(dtype) for values in (weight, bias))
    args = (samples(x), w, u, weight, bias)
    if by_hand(gradient):
        found = Switch.apply(*args, *(running or (None, None)), normalizers, eps, group)
    else:
        found = switch(*args, running, normalizers, eps, group)
    y, _, _, batch_mean, batch_var, m = found
    return y.reshape(x.shape), batch_mean[0], batch_var[0], m


def switchable_norm(
    x: Tensor, mean_weights: Tensor, var_weights: Tensor, eps: float = 1e-5, gradient: str = "manual"
) -> Tensor:
    """Standardize x with a mixture of the means, and one of the variances, of instance, layer and batch norm.

    x: (N, C) or (N, C, *), any real floating type; mean_weights, var_weights: (3,), of "in", "ln", "bn", each at least
    0 with sum 1. Moments of the batch, as in training; no affine map. Gradients flow to all three.
    Returns the shape and type of x. Raises ValueError / TypeError for wrong shapes, types and sums.
    Source: eq. (3)-(5) of Luo et al. (2019).
    """
    check_input(x, None, "switchable_norm")
    for name, values in (("mean_weights", mean_weights), ("var_weights", var_weights)):
        check_priors(values, len(NORMALIZERS), "switchable_norm", name)
    args = (None, None, None, NORMALIZERS, check_eps(eps), check_gradient(gradient))
    return normalize_switchable(x, mean_weights, var_weights, *args)[0]


class SwitchableNorm(NormOfSets):
    """Switchable normalization over (N, C) or (N, C, *) inputs: instance, layer and batch norm, mixed as is learned.

    y = (x - m) / sqrt(v + eps) weight + bias, with m = sum_k w_k m_k and v = sum_k u_k v_k over ``normalizers``, biased
    moments, and w, u the softmax of ``mean_logits`` and ``var_logits`` (K,), equal at the start. They are shared by all
    channels and samples. Evaluation takes the running moments for "bn", where there are any.

    normalizers: of "in", "ln", "bn", each once. Without "bn" there are no running moments. Without positions, (N, C),
    the moments of "in" are x and 0, so use ("ln", "bn") there. momentum: rate of the running moments, None for their
    plain average (the paper's "batch average": ``cnlib.reestimate``). bias: whether the affine map has a shift.
    State dicts hold those of ``torch.nn.BatchNorm1d/2d/3d`` and the logits.
    Raises ValueError / TypeError as ``BatchNorm``, and ValueError for other normalizers.
    Source: Luo et al. (2019), eq. (3)-(5).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        normalizers: Iterable[str] = NORMALIZERS,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalizers, num_features, eps, momentum, affine, gradient, device, dtype, bias)
        k = len(self.normalizers)
        self.mean_logits = nn.Parameter(torch.ones(k, device=device, dtype=dtype))
        self.var_logits = nn.Parameter(torch.ones(k, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Equal ratios; weight 1, bias 0, running mean 0, running variance 1."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.endswith("logits"):
                nn.init.ones_(parameter)

    def ratios(self) -> tuple[Tensor, Tensor]:
        """The weights w of the means and u of the variances, (K,) each, in the order of ``normalizers``."""
        return widen(self.mean_logits).softmax(0), widen(self.var_logits).softmax(0)

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        running, group = self.before(x)
        y, mean, var, m = normalize_switchable(
            x, *self.ratios(), self.weight, self.bias, running, self.normalizers, self.eps, self.gradient, group
        )
        self.after(mean, var, m)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"normalizers={self.normalizers}, gradient={self.gradient!r}"
        )
