"""Exemplar normalization (Zhang et al. 2020): the outputs of IN, LN and BN, mixed by ratios of each sample's own.

The mean over positions, from which the ratios are made, is what IN subtracts: so IN's row of q is 0, and
its ratio moves through those of the others and the biases alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import add_product_, affine_, narrow, no_autocast, of_nothing, wide_type, widen
from cnlib.norm.batch import Count
from cnlib.norm.calling import by_hand, drop_in
from cnlib.norm.checks import check_eps, check_gradient, check_input, check_responsibilities
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
from cnlib.norm.ratios import Network, RatioNetwork, ratios_gradient, ratios_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Everywhere below: x (N, C, L), ratios (N, K), weight and bias (K, C), running moments (1, C).


def offsets(mean: Tensor, moments: list[Moments], eps: float) -> tuple[Tensor, Tensor]:
    """m_in - m_k and 1 / sqrt(v_k + eps) of each sample, normalizer and channel: (N, K, C) each."""
    off = torch.stack([mean - m for m, _ in moments], 1)
    return off, torch.stack([(v + eps).rsqrt().expand_as(mean) for _, v in moments], 1)


def exemplar(
    x: Tensor,
    ratios: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    network: Network | None,
    running: Moments | None,
    normalizers: tuple[str, ...],
    r: int,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Count]:
    """sum_k ratio_nk (weight_k (x - m_k) / sqrt(v_k + eps) + bias_k), as A x + B with A, B (N, C).

    Ratios that are not given are the network's, with r channels a block. running: moments that "bn" takes in place of
    the batch's. Returns y, the ratios, the moments of each sample and channel (N, C), those of the batch (1, C), and
    the number of values these are over.
    """
    centered, mean, var = center(widen(x))
    batch_mean, batch_var, m = batch_moments(mean, var, x.shape[2], group)
    off, rstd = offsets(mean, moments_of(normalizers, mean, var, running or (batch_mean, batch_var)), eps)
    if ratios is None:
        assert network is not None
        ratios = ratios_of(off * rstd, network, r)
    slopes = ratios.unsqueeze(2) * weight * rstd
    with no_autocast(x):
        shift = (slopes * off).sum(1) + torch.matmul(ratios, bias)
    y = narrow(affine_(centered, slopes.sum(1).unsqueeze(-1), shift.unsqueeze(-1)), x.dtype)
    return y, ratios, mean, var, batch_mean, batch_var, m


class Exemplar(torch.autograd.Function):
    """``exemplar`` with its gradient by hand, also through the ratios. With s_k = (v_k + eps)^(1/2), sums over
    positions S = sum g and X_k = sum g (x - m_k) / s_k of each sample and channel, and d_k = dl/dq_k of the network
    (``ratios_gradient``; 0 where the ratios are given), q_k = (m_in - m_k) / s_k:

        dl/dratio_k = sum_C (weight_k X_k + bias_k S)
        dl/dweight_k = sum_N ratio_k X_k           dl/dbias_k = sum_N ratio_k S
        a_k = - (ratio_k weight_k S + d_k) / s_k   b_k = - 1/2 (ratio_k weight_k X_k + d_k q_k) / s_k^2
        dl/dm_k = a_k, dl/dv_k = b_k               summed over what shares m_k, v_k
        dl/dm_in += sum_k d_k / s_k                q has the mean of a sample itself
        dl/dx = g sum_k ratio_k weight_k / s_k + sum_k [ dl/dm_k + 2 (x - m_k) dl/dv_k ] / M_k

    Ratios and moments are outputs, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, given, weight, bias, *rest):  # type: ignore[no-untyped-def]
        *network, running_mean, running_var, normalizers, r, eps, group = rest
        network = Network(*network) if given is None else None
        running = None if running_mean is None else (running_mean, running_var)
        own = None if given is None else given.clone()  # an output may not be an input
        y, *found, m = exemplar(x, own, weight, bias, network, running, normalizers, r, eps, group)
        ctx.save_for_backward(x, given, weight, bias, *rest[:7], *found)
        ctx.normalizers, ctx.r, ctx.eps, ctx.group = normalizers, r, eps, group
        if group is not None:
            ctx.mark_non_differentiable(m)
        return y, *found, m

    @staticmethod
    def backward(ctx, g, g_ratios, *d_found):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors  # read once: activation checkpointing gives each tensor one time
        x, given, weight, bias, *network, running_mean, running_var = saved[:11]
        ratios, *found = saved[11:]
        running = None if running_mean is None else (running_mean, running_var)
        mean, var, *batch = found
        moments = moments_of(ctx.normalizers, mean, var, running or batch)
        off, rstd = offsets(mean, moments, ctx.eps)  # (N, K, C)
        centered, g = widen(x) - mean.unsqueeze(-1), widen(g)  # (N, C, L)

        # all other sums are sums of these two
        s = g.sum(-1).unsqueeze(1)  # (N, 1, C)
        x_k = ((g * centered).sum(-1).unsqueeze(1) + off * s) * rstd  # (N, K, C)
        by_ratio = ratios.unsqueeze(2)  # (N, K, 1)
        d_weight, d_bias = (by_ratio * x_k).sum(0), (by_ratio * s).sum(0)  # (K, C)
        d_ratios = (weight * x_k + bias * s).sum(2) + g_ratios  # (N, K)
        d_q, d_network = torch.zeros_like(off), [None] * 5
        if given is None:
            d_q, d_network = ratios_gradient(d_ratios, ratios, off * rstd, Network(*network), ctx.r)
        slopes = by_ratio * weight  # (N, K, C)
        a = -(slopes * s + d_q) * rstd
        b = -0.5 * (slopes * x_k + d_q * off * rstd) * rstd**2

        # the mean of a sample, which q is made of, is m_in
        direct = (d_found[0] + (d_q * rstd).sum(1), *d_found[1:])
        rest = (found, direct, running, x.shape[2], ctx.group)
        slope, offset = through_moments(ctx.normalizers, a.unbind(1), b.unbind(1), *rest)  # (N, C)
        through = affine_(centered, slope.unsqueeze(-1), offset.unsqueeze(-1))  # (N, C, L)
        dx = narrow(add_product_(through, g, (slopes * rstd).sum(1).unsqueeze(-1)), x.dtype)
        return dx, None if given is None else d_ratios, d_weight, d_bias, *d_network, *[None] * 6


def normalize_exemplar(
    x: Tensor,
    ratios: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    network: Network | None,
    running: Moments | None,
    normalizers: tuple[str, ...],
    r: int,
    eps: float,
    gradient: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Count]:
    """``exemplar`` on (N, C, *) inputs in any floating type: y like x, ratios, mean, var (C,) of the batch, count."""
    (n, c), k, dtype = x.shape[:2], len(normalizers), wide_type(x)
    weight = x.new_ones(k, c, dtype=dtype) if weight is None else weight.to(dtype)
    bias = x.new_zeros(k, c, dtype=dtype) if bias is None else bias.to(dtype)
    ratios = None if ratios is None else ratios.to(dtype)
    network = None if network is None else Network(*(value.to(dtype) for value in network))
    if x.numel() == 0 and group is None:
        none, others = x.new_zeros(c, dtype=dtype), network or (ratios,)
        y = of_nothing(x, weight.sum(0), bias.sum(0), *(value for value in others if value is not None))
        return y, x.new_full((n, k), 1 / k, dtype=dtype), none, none, 0
    args = (samples(x), ratios, weight, bias)
    if by_hand(gradient):
        rest = (*(network or [None] * 5), *(running or [None] * 2), normalizers, r, eps, group)
        found = Exemplar.apply(*args, *rest)
    else:
        found = exemplar(*args, network, running, normalizers, r, eps, group)
    y, ratios, _, _, batch_mean, batch_var, m = found
    return y.reshape(x.shape), ratios, batch_mean[0], batch_var[0], m


def exemplar_norm(x: Tensor, ratios: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """The outputs of instance, layer and batch norm, mixed by ratios of each sample's own.

    x: (N, C) or (N, C, *), any real floating type; ratios: (N, 3), of "in", "ln", "bn", each row at least 0 with sum 1.
    Moments of the batch, as in training; no affine map. Gradients flow to both.
    Returns the shape and type of x. Raises ValueError / TypeError for wrong shapes, types and sums.
    Source: Zhang et al. (2020).
    """
    check_input(x, None, "exemplar_norm")
    check_responsibilities(ratios, x, len(NORMALIZERS), "exemplar_norm", "ratios", by_position=False)
    args = (None, None, None, None, NORMALIZERS, 1, check_eps(eps), check_gradient(gradient))
    return normalize_exemplar(x, ratios, *args)[0]


class ExemplarNorm(NormOfSets):
    """Exemplar normalization over (N, C) or (N, C, *) inputs: instance, layer and batch norm, mixed for each sample.

    y_n = sum_k ratio_nk (weight_k (x_n - m_k) / sqrt(v_k + eps) + bias_k) over ``normalizers``, biased moments, weight
    and bias (K, C). A sample's ratios are ``network``'s of q_k = (p - m_k) / sqrt(v_k + eps), with p its mean over
    positions (``RatioNetwork``), and equal at the start. Evaluation takes the running moments for "bn", in q too.

    normalizers: of "in", "ln", "bn", each once. Without "bn" there are no running moments. Without positions, (N, C),
    the output of "in" is its bias, so use ("ln", "bn") there. momentum: rate of the running moments, None for their
    plain average. reduction: the most channels that one output of the grouped convolution sees. hidden: units of the
    hidden layer a normalizer.
    Raises ValueError / TypeError as ``BatchNorm``, and ValueError for other normalizers.
    Source: Zhang et al. (2020); the default reduction and the start are this book's own choice.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        normalizers: Iterable[str] = NORMALIZERS,
        reduction: int = 32,
        hidden: int = 50,
        gradient: str = "manual",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalizers, num_features, eps, momentum, False, gradient, device, dtype)
        self.affine, k = True, len(self.normalizers)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(k, self.num_features, **at))
        self.bias = nn.Parameter(torch.zeros(k, self.num_features, **at))
        self.network = RatioNetwork(self.num_features, k, reduction, hidden, **at)

    def reset_parameters(self) -> None:
        """Equal ratios; weight 1, bias 0, running mean 0, running variance 1."""
        super().reset_parameters()
        if hasattr(self, "network"):
            self.network.reset_parameters()

    def ratios(self, x: Tensor) -> Tensor:
        """The ratios (N, K) of the samples of x, in the order of ``normalizers``, as ``forward`` takes them there."""
        return self._normalize(x)[1]

    def _normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Count]:
        running, group = self.before(x)
        args = (running, self.normalizers, self.network.block, self.eps, self.gradient, group)
        return normalize_exemplar(x, None, self.weight, self.bias, self.network.parts(), *args)

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        y, _, mean, var, m = self._normalize(x)
        self.after(mean, var, m)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, normalizers={self.normalizers}, "
            f"gradient={self.gradient!r}"
        )
