"""Layer, instance, group and root mean square normalization: batch.py's standardization over other index sets.

Eq. (2) of the French CN paper, eq. (4) of the ICDM paper, with B_i = the indices j that share with i

    BatchNorm       the channel                      (all samples, all positions)
    LayerNorm       the sample                       (all channels, all positions)
    InstanceNorm    the sample and the channel       (all positions)
    GroupNorm       the sample and the channel group (the channels of the group, all positions)
    RMSNorm         the sample                       (all channels, all positions), nothing subtracted

Chapter 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from cnlib.norm.arithmetic import (
    add_product_,
    channelwise,
    flatten,
    narrow,
    of_nothing,
    positions,
    sum_squares,
    wide_type,
    widen,
)
from cnlib.norm.batch import SAMPLE, normalize_groups
from cnlib.norm.calling import also_named, by_hand, drop_in
from cnlib.norm.checks import check_eps, check_input, check_positive
from cnlib.norm.layer import Norm


class GroupNorm(Norm):
    """Group normalization (Wu & He 2018): moments over the channels of a group and all positions of a sample.

    x: (N, C) or (N, C, *); num_groups must divide num_features = C. The same in training and evaluation.
    State dicts are those of ``torch.nn.GroupNorm``. Raises ValueError / TypeError as ``BatchNorm``.
    """

    @also_named(num_channels="num_features")
    def __init__(
        self,
        num_groups: int,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, None, affine, False, gradient, device, dtype, bias)
        (num_groups,) = check_positive(num_groups=num_groups)
        if num_features % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide num_features={num_features}")
        self.num_groups = num_groups

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, type(self).__name__)
        return normalize_groups(x, self.num_groups, SAMPLE, self.weight, self.bias, self.eps, self.gradient)[0]

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {_repr_of_sample(self)}"


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016): moments over all channels and positions of a sample.

    x: (N, C) or (N, C, *). The affine map is per channel, so on (N, C) this is ``torch.nn.LayerNorm(C)`` and on
    (N, C, *) ``torch.nn.GroupNorm(1, C)``: group normalization with one group.
    """

    @also_named(normalized_shape="num_features", elementwise_affine="affine")
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, num_features, eps, affine, gradient, bias=bias, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return _repr_of_sample(self)


def _repr_of_sample(layer: Norm) -> str:
    """Of a layer without running moments."""
    return f"{layer.num_features}, eps={layer.eps}, affine={layer.affine}, gradient={layer.gradient!r}"


class InstanceNorm(Norm, _InstanceNorm):
    """Instance normalization (Ulyanov et al. 2016): moments over the positions of one channel of one sample.

    x: (N, C, *) with at least two positions. One sample alone, (C, *), is no input, as it is of torch's layer: (C, L)
    is read as (N, C) and refused, (C, H, W) as (N, C, W), refused only where H is not ``num_features``. Give x[None].
    Defaults and state dicts are those of ``torch.nn.InstanceNorm``: no affine map, no running moments. With
    ``track_running_stats`` evaluation uses their running averages; without it, or with it off, the sample's own. Raises
    ValueError for a single position, where every output would be 0.
    """

    counts_batches = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        gradient: str = "manual",
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, gradient, device, dtype, bias)

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "InstanceNorm")
        if not self.training and self.track_running_stats and self.has_running():
            return self.normalize_running(x)
        if positions(x) == 1:
            raise ValueError(
                f"InstanceNorm: shape {tuple(x.shape)} has 1 position per channel, expected at least 2; "
                "use LayerNorm or GroupNorm for inputs without positions"
            )
        y, mean, var, m = normalize_groups(
            x, self.num_features, SAMPLE, self.weight, self.bias, self.eps, self.gradient
        )
        if self.training and self.track_running_stats and x.numel():
            self.update_running(mean.mean(0), var.mean(0), m)
        return y


def rms_scale(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square q^(1/2), times weight: y like x, and q (N, 1, 1), the mean of x^2 over a sample.

    x: (N, C, L); weight: (1, C, 1) or None.
    """
    wide = widen(x)
    square = sum_squares(wide).sum(1, keepdim=True) / (x.shape[1] * x.shape[2])
    scale = (square + eps).rsqrt()
    return narrow(wide * (scale if weight is None else scale * weight), x.dtype), square


class RootMeanSquare(torch.autograd.Function):
    """``rms_scale`` with its gradient by hand. With r = (q + eps)^(-1/2), h = g * weight, and sums over a sample:

        dl/dq = - 1/2 r^3 sum h x
        dl/dx = r h + 2 x dl/dq / m

    q is an output, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        y, square = rms_scale(x, weight, eps)
        ctx.save_for_backward(x, weight, square)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, square

    @staticmethod
    def backward(ctx, g, g_square):  # type: ignore[no-untyped-def]
        x, weight, square = ctx.saved_tensors
        m, rstd = x.shape[1] * x.shape[2], (square + ctx.eps).rsqrt()  # (N, 1, 1)
        dtype, x = x.dtype, widen(x)  # (N, C, L)
        g = torch.zeros_like(x) if g is None else widen(g)  # (N, C, L)
        sum_gx = (g * x).sum(-1, keepdim=True)  # (N, C, 1)
        sum_hx = sum_gx if weight is None else sum_gx * weight
        d_weight = None if weight is None else (sum_gx * rstd).sum(0, keepdim=True)  # (1, C, 1)
        d_square = -0.5 * rstd**3 * sum_hx.sum(1, keepdim=True)  # (N, 1, 1)
        if g_square is not None:
            d_square = d_square + g_square
        dx = add_product_(x * (2 * d_square / m), g, rstd if weight is None else rstd * weight)
        return narrow(dx, dtype), d_weight, None


class RMSNorm(Norm):
    """Root mean square normalization (Zhang & Sennrich 2019): x over its root mean square in a sample, times a weight.

    x: (N, C) or (N, C, *); the mean is over all channels and positions of a sample, the weight is per channel. So on
    (N, C) this is ``torch.nn.RMSNorm(C)``, whose state dicts it shares. Nothing is subtracted, and nothing added.
    eps: None is the smallest step of the type of x, ``torch.finfo(x.dtype).eps``, as in torch.
    Raises ValueError / TypeError as ``BatchNorm``.
    """

    @also_named(normalized_shape="num_features", elementwise_affine="affine")
    def __init__(
        self,
        num_features: int,
        eps: float | None = None,
        affine: bool = True,
        gradient: str = "manual",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, 0.0, None, affine, False, gradient, device, dtype, bias=False)
        self.eps: float | None = None if eps is None else check_eps(eps)  # type: ignore[assignment]

    @drop_in
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "RMSNorm")
        if x.numel() == 0:
            return of_nothing(x, self.weight, None)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        weight = channelwise(self.weight, wide_type(x), (1, self.num_features, 1))
        run = RootMeanSquare.apply if by_hand(self.gradient) else rms_scale
        return run(flatten(x), weight, eps)[0].reshape(x.shape)

    def extra_repr(self) -> str:
        return _repr_of_sample(self)
