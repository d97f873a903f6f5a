"""Batch normalization (Ioffe & Szegedy 2015), and the standardization it shares with its family.

Seeds: eq. (1)-(2) of the French CN paper, eq. (1)-(4) of the ICDM paper. Chapter 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import add_product, affine, narrow, wide_type, widen
from cnlib.norm.checks import check_gradient, check_input, check_positive
from cnlib.norm.processes import group_of, pool, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Every layer of the family sees x as (N, G, D, L): G groups of D channels, L positions. One equation serves
# all of them; what differs is the index set B_i the moments are taken over (family.py).
BATCH = (0, 2, 3)
SAMPLE = (2, 3)


def standardize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axes: tuple[int, ...],
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, ...]:
    """Standardize x over ``axes``, then scale and shift.

    x: (N, G, D, L); weight, bias: (1, G, D, 1) or None; axes: ``BATCH`` or ``SAMPLE``.
    Returns y like x, and the mean and the biased variance, float32 at least, with size 1 on reduced axes.
    group: B_i also runs over the samples these processes hold; then the number of values in B_i is returned as well.
    """
    dtype, x = x.dtype, widen(x)
    lead = axes[:-1]  # positions first, so that long sums are short sums of short sums
    m = x.numel() // _kept(x, axes)
    mean = x.mean(-1, keepdim=True).mean(lead, keepdim=True)
    centered = x - mean  # two passes: E[x^2] - E[x]^2 loses every digit when |mean| >> std
    norms = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)
    var = norms.square().sum(lead, keepdim=True) / m
    own, counted = mean, []
    if group is not None:
        count, mean, var = pool(group, mean.new_full((1,) * mean.dim(), m), mean, var)
        counted = [count]
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    if group is not None and m:  # centered is x - own: the rest goes into the shift, not over x once more
        shift = (own - mean) * scale
        bias = shift if bias is None else shift + bias
    return narrow(affine(centered, scale, bias), dtype), mean, var, *counted


def _kept(x: Tensor, axes: tuple[int, ...]) -> int:
    kept = 1
    for axis, size in enumerate(x.shape):
        kept *= 1 if axis in axes else size
    return kept


class Standardize(torch.autograd.Function):
    """``standardize`` with its gradient by hand. With h = g (var + eps)^(-1/2), and sums over the index set B_i:

        dl/dmean = - sum h                                    (times weight, where there is one)
        dl/dvar  = - 1/2 sum h (x - mean) / (var + eps)       (times weight)
        dl/dx    = h + (dl/dmean + 2 (x - mean) dl/dvar) / m  (h times weight)

    mean and var are outputs, not scratch: so the backward can itself be differentiated.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, axes, eps, group=None):  # type: ignore[no-untyped-def]
        y, mean, var, *counted = standardize(x, weight, bias, axes, eps, group)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.axes, ctx.eps, ctx.group = axes, eps, group
        ctx.mark_non_differentiable(*counted)
        ctx.set_materialize_grads(False)
        return y, mean, var, *counted

    @staticmethod
    def backward(ctx, g, g_mean, g_var, *_):  # type: ignore[no-untyped-def]
        x, weight, mean, var = ctx.saved_tensors
        lead, m = ctx.axes[:-1], x.numel() // mean.numel()
        rstd = (var + ctx.eps).rsqrt()
        g = torch.zeros_like(x, dtype=mean.dtype) if g is None else widen(g)

        centered, h = widen(x) - mean, g * rstd
        sum_h = h.sum(-1, keepdim=True)  # (N, G, D, 1): all other sums are sums of these two
        sum_hc = (h * centered).sum(-1, keepdim=True)
        d_weight = d_bias = None
        if weight is not None:
            d_weight, d_bias = sum_hc.sum(0, keepdim=True), (sum_h / rstd).sum(0, keepdim=True)
            sum_h, sum_hc = sum_h * weight, sum_hc * weight

        d_mean = -sum_h.sum(lead, keepdim=True)
        d_var = -0.5 * rstd**2 * sum_hc.sum(lead, keepdim=True)
        if g_mean is not None:
            d_mean = d_mean + g_mean
        if g_var is not None:
            d_var = d_var + g_var
        if ctx.group is not None:  # B_i runs over all processes, and so do m and the two sums
            d_mean, d_var, m = total(ctx.group, d_mean, d_var, mean.new_full((1,), m))
        through_moments = affine(centered, 2 * d_var / m, d_mean / m)
        dx = through_moments + h if weight is None else add_product(through_moments, h, weight)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | int]:
    """Standardize x (N, C, *) over ``axes`` of its view (N, G, D, L) and return y (N, C, *), mean, var, m.

    mean and var are (1, G) over ``BATCH`` and (N, G) over ``SAMPLE``, in float32 at least; y has the type of x. Each is
    over m values, those of all processes of ``group``.
    """
    n, c = x.shape[:2]
    view = x.reshape(n, num_groups, c // num_groups, x.shape[2:].numel())
    if weight is not None and bias is not None:
        weight = weight.to(wide_type(x)).view(1, num_groups, -1, 1)
        bias = bias.to(wide_type(x)).view(1, num_groups, -1, 1)
    run = Standardize.apply if gradient == "manual" else standardize
    y, mean, var, *counted = run(view, weight, bias, axes, eps, group)
    m = counted[0].reshape(()) if counted else x.numel() // mean.numel()
    return y.reshape(x.shape), mean.flatten(1), var.flatten(1), m


def batch_norm(x: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """Standardize each channel with its batch mean and biased batch variance; no affine map.

    x: (N, C) or (N, C, *), any real floating type. Returns the shape and type of x.
    Source: eq. (1) of both papers.
    """
    check_input(x, None, "batch_norm")
    return normalize_groups(x, x.shape[1], BATCH, None, None, eps, check_gradient(gradient))[0]


class Norm(nn.Module):
    """What the layers with batch or sample moments have in common: affine parameters and running moments."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        gradient: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.gradient = check_gradient(gradient)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_features, **at)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **at)) if affine else None
        stats = track_running_stats
        self.register_buffer("running_mean", torch.empty(num_features, **at) if stats else None)
        self.register_buffer("running_var", torch.empty(num_features, **at) if stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if stats else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1, bias 0, running mean 0, running variance 1."""
        for tensor, value in ((self.weight, 1.0), (self.bias, 0.0), (self.running_mean, 0.0), (self.running_var, 1.0)):
            if tensor is not None:
                nn.init.constant_(tensor, value)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor, m: Tensor | int) -> None:
        """Move the running moments towards a batch: mean, var (C,), biased; m values each (eq. (3), ICDM)."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        # momentum None asks for the plain average over all batches so far
        rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = var * (m / (m - 1))
        self.running_mean.copy_((1 - rate) * self.running_mean + rate * mean)
        self.running_var.copy_((1 - rate) * self.running_var + rate * unbiased)

    def normalize_running(self, x: Tensor) -> Tensor:
        """x (N, C, *) standardized with the running moments: a fixed affine map."""
        assert self.running_mean is not None and self.running_var is not None
        wide, shape = widen(x), (1, -1) + (1,) * (x.dim() - 2)
        scale = (self.running_var.to(wide.dtype) + self.eps).rsqrt()
        y = (wide - self.running_mean.to(wide.dtype).view(shape)) * scale.view(shape)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.to(wide.dtype).view(shape) + self.bias.to(wide.dtype).view(shape)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, gradient={self.gradient!r}"
        )


class BatchNorm(Norm):
    """Batch normalization over (N, C) or (N, C, *) inputs of any rank.

    Training standardizes each channel over the batch and all positions; evaluation uses the running mean and
    the running unbiased variance. State dicts are those of ``torch.nn.BatchNorm1d/2d/3d``.

    num_features: C. momentum: rate of the running moments, None for their plain average.
    gradient: "manual" for the derivation of chapter 2, "autograd" for torch's own; same numbers.
    Raises ValueError for a wrong rank or channel count, and in training for one value per channel;
    TypeError for integer or complex x. Source: Ioffe & Szegedy (2015), Algorithms 1-2; eq. (1)-(3), ICDM paper.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, gradient, device, dtype)
        self.synchronized = False  # set by cnlib.synchronize, as is
        self.process_group: ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "BatchNorm")
        if not self.training and self.track_running_stats:
            return self.normalize_running(x)
        group, own = group_of(self), x.numel() // self.num_features
        if own < 2 and group is None:
            raise ValueError(
                f"BatchNorm: shape {tuple(x.shape)} has {own} value per channel, expected at least 2. "
                "Use a larger batch, or call .eval()"
            )
        y, mean, var, m = normalize_groups(
            x, self.num_features, BATCH, self.weight, self.bias, self.eps, self.gradient, group
        )
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            self.update_running(mean[0], var[0], m)
        return y
