"""Batch normalization (Ioffe & Szegedy 2015), and the standardization it shares with its family.

Seeds: eq. (1)-(2) of the French CN paper, eq. (1)-(4) of the ICDM paper. Chapter 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cnlib.norm.arithmetic import (
    add_product_,
    affine_,
    channelwise,
    narrow,
    of_nothing,
    positions,
    sum_squares,
    sums_with,
    wide_type,
    widen,
)
from cnlib.norm.calling import by_hand, drop_in
from cnlib.norm.checks import check_eps, check_gradient, check_input
from cnlib.norm.layer import Norm
from cnlib.norm.processes import group_of, pool, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Every layer of the family sees x as (N, G, D, L): G groups of D channels, L positions. One equation serves
# all of them; what differs is the index set B_i the moments are taken over (family.py).
BATCH = (0, 2, 3)
SAMPLE = (2, 3)

Count = Tensor | int


def moments(x: Tensor, axes: tuple[int, ...], group: ProcessGroup | None = None) -> tuple[Tensor, Tensor, Count]:
    """Mean and biased variance of x over ``axes``, and the number m of values each is taken over.

    x: (N, G, D, L); axes: ``BATCH`` or ``SAMPLE``. Mean and variance are float32 at least, with size 1 on these axes.
    group: B_i also runs over the samples these processes hold, and m counts them too.
    """
    mean, var, m, _ = _center(x, axes)
    return _over_processes(mean, var, m, group)


def standardize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, in the type of x.

    x: (N, G, D, L); mean, var: as ``moments`` gives them; weight, bias: (1, G, D, 1) or None.
    """
    return narrow(affine_(widen(x) - mean, _scale(var, weight, eps), bias), x.dtype)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axes: tuple[int, ...],
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Count]:
    """``standardize`` x with its own ``moments``, and return these too. x - mean is formed once and serves both."""
    own_mean, own_var, own_m, centered = _center(x, axes)
    mean, var, m = _over_processes(own_mean, own_var, own_m, group)
    scale = _scale(var, weight, eps)
    if group is not None and own_m:
        # centered is x - own_mean: the rest goes into the shift, not over x once more
        shift = (own_mean - mean) * scale
        bias = shift if bias is None else shift + bias
    return narrow(affine_(centered, scale, bias), x.dtype), mean, var, m


def _center(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, int, Tensor]:
    """Mean, variance and m of this process's x, and x - mean."""
    x = widen(x)
    # positions first, so that long sums are short sums of short sums
    lead, m = axes[:-1], _size(x, axes)
    if torch.compiler.is_compiling():
        # one pass over x: each row of positions is still in the cache when its scatter about its own mean is summed
        own = x.mean(-1, keepdim=True)
        mean = own.mean(lead, keepdim=True)
        within, between = x - own, own - mean
        # far from 0 rounding moves own, and the sum of within is then not 0
        scatter = sum_squares(within) + between * (2 * within.sum(-1, keepdim=True) + between * x.shape[-1])
        return mean, scatter.sum(lead, keepdim=True) / m, m, x - mean
    mean = x.sum(-1, keepdim=True).sum(lead, keepdim=True) / m
    # two passes: E[x^2] - E[x]^2 loses every digit when |mean| >> std
    centered = x - mean
    return mean, sum_squares(centered).sum(lead, keepdim=True) / m, m, centered


def _size(x: Tensor, axes: tuple[int, ...]) -> int:
    m = 1
    for axis in axes:
        m *= x.shape[axis]
    return m


def _over_processes(mean: Tensor, var: Tensor, m: int, group: ProcessGroup | None) -> tuple[Tensor, Tensor, Count]:
    if group is None:
        return mean, var, m
    count, mean, var = pool(group, mean.new_full((1,) * mean.dim(), m), mean, var)
    return mean, var, count.reshape(())


def _scale(var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    rstd = (var + eps).rsqrt()
    return rstd if weight is None else rstd * weight


class Standardize(torch.autograd.Function):
    """``normalize`` with its gradient by hand. With h = g (var + eps)^(-1/2), and sums over the index set B_i:

        dl/dmean = - sum h                                    (times weight, where there is one)
        dl/dvar  = - 1/2 sum h (x - mean) / (var + eps)       (times weight)
        dl/dx    = h + (dl/dmean + 2 (x - mean) dl/dvar) / m  (h times weight)

    mean and var are outputs, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, axes, eps, group=None):  # type: ignore[no-untyped-def]
        y, mean, var, m = normalize(x, weight, bias, axes, eps, group)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.axes, ctx.eps, ctx.group = axes, eps, group
        if group is not None:
            ctx.mark_non_differentiable(m)
        ctx.set_materialize_grads(False)
        return y, mean, var, m

    @staticmethod
    def backward(ctx, g, g_mean, g_var, _):  # type: ignore[no-untyped-def]
        x, weight, mean, var = ctx.saved_tensors
        m = _size(x, ctx.axes)
        rstd = (var + ctx.eps).rsqrt()  # (1, G, 1, 1) over BATCH, (N, G, 1, 1) over SAMPLE; so are mean, var
        scale = rstd if weight is None else rstd * weight  # rstd, or with D for its third axis
        g = torch.zeros_like(x, dtype=mean.dtype) if g is None else widen(g)  # (N, G, D, L)

        # all other sums are sums of these two
        centered = widen(x) - mean  # (N, G, D, L)
        sum_g, sum_gc = sums_with(g, centered, rstd)  # (N, G, D, 1)
        if 0 in ctx.axes:
            sum_g, sum_gc = sum_g.sum(0, keepdim=True), sum_gc.sum(0, keepdim=True)  # (1, G, D, 1)
        by_channel = (1, *x.shape[1:3], 1)
        d_weight = (sum_gc * rstd).sum_to_size(by_channel) if ctx.needs_input_grad[1] else None  # (1, G, D, 1)
        d_bias = sum_g.sum_to_size(by_channel) if ctx.needs_input_grad[2] else None  # (1, G, D, 1)

        d_mean = -(sum_g * scale).sum_to_size(mean.shape)  # as mean
        d_var = (sum_gc * scale).sum_to_size(mean.shape) * rstd.square() * -0.5  # as var
        if g_mean is not None:
            d_mean = d_mean + g_mean
        if g_var is not None:
            d_var = d_var + g_var
        if ctx.group is not None:
            # B_i runs over all processes, and so do m and the two sums
            d_mean, d_var, m = total(ctx.group, d_mean, d_var, mean.new_full((1,), m))
        dx = add_product_(affine_(centered, d_var * (2 / m), d_mean / m), g, scale)  # (N, G, D, L)
        return narrow(dx, x.dtype), d_weight, d_bias, None, None, None


def normalize_groups(
    x: Tensor,
    num_groups: int,
    axes: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gradient: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor, Count]:
    """Normalize x (N, C, *) over ``axes`` of its view (N, G, D, L) and return y (N, C, *), mean, var, m.

    weight, bias: (C,) or None. mean and var are (1, G) over ``BATCH`` and (N, G) over ``SAMPLE``, in float32 at least;
    y has the type of x. Each is over m values, those of all processes of ``group``.
    """
    n, c = x.shape[:2]
    if x.numel() == 0 and group is None:
        none = x.new_zeros((1 if axes == BATCH else n, num_groups), dtype=wide_type(x))
        return of_nothing(x, weight, bias), none, none, 0
    view = x.reshape(n, num_groups, c // num_groups, positions(x))
    per_channel = (1, num_groups, c // num_groups, 1)
    weight, bias = (channelwise(values, wide_type(x), per_channel) for values in (weight, bias))
    run = Standardize.apply if by_hand(gradient) else normalize
    y, mean, var, m = run(view, weight, bias, axes, eps, group)
    return y.reshape(x.shape), mean.flatten(1), var.flatten(1), m


def batch_norm(x: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """Standardize each channel with its batch mean and biased batch variance; no affine map.

    x: (N, C) or (N, C, *), any real floating type. Returns the shape and type of x.
    Source: eq. (1) of both papers.
    """
    check_input(x, None, "batch_norm")
    return normalize_groups(x, x.shape[1], BATCH, None, None, check_eps(eps), check_gradient(gradient))[0]


class BatchNorm(Norm, _BatchNorm):
    """Batch normalization over (N, C) or (N, C, *) inputs of any rank.

    Training standardizes each channel over the batch and all positions; evaluation uses the running mean and
    the running unbiased variance, where there are any. State dicts are those of ``torch.nn.BatchNorm1d/2d/3d``.

    num_features: C. momentum: rate of the running moments, None for their plain average. bias: whether the affine map
    has a shift. gradient: "manual" for the derivation of chapter 2, "autograd" for torch's own; same numbers. Under
    torch.func's transforms and forward-mode differentiation both are torch's own.
    Raises ValueError for a wrong rank or channel count, and in training for one value per channel; TypeError for
    integer or complex x. Source: Ioffe & Szegedy (2015), Algorithms 1-2; eq. (1)-(3), ICDM paper.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, gradient, device, dtype, bias)
        # set by cnlib.synchronize
        self.synchronized = False
        self.process_group: ProcessGroup | None = None

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "BatchNorm")
        if not self.training and self.has_running():
            return self.normalize_running(x)
        group = group_of(self)
        check_batch(x, group, "BatchNorm")
        y, mean, var, m = normalize_groups(
            x, self.num_features, BATCH, self.weight, self.bias, self.eps, self.gradient, group
        )
        if self.training and self.track_running_stats:
            self.update_running(mean[0], var[0], m)
        return y


def check_batch(x: Tensor, group: ProcessGroup | None, who: str) -> None:
    """One value a channel has no variance. None at all is an empty batch, from which an empty one follows."""
    if group is None and x.shape[0] * positions(x) == 1:
        raise ValueError(
            f"{who}: shape {tuple(x.shape)} has 1 value per channel, expected at least 2. "
            "Use a larger batch, or call .eval()"
        )
