"""What layers with batch or sample moments have in common: affine parameters and running moments."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import channelwise, widen
from cnlib.norm.checks import check_gradient, check_positive


class Norm(nn.Module):
    """Base of the layers in batch.py and family.py: parameters and buffers as torch's layers have them.

    track_running_stats: whether there are running moments and training moves them. Set later, it says whether training
    moves those there are.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    # whether num_batches_tracked counts: torch's InstanceNorm has the buffer and leaves it at 0
    counts_batches: ClassVar[bool] = True

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
        if self.running_mean is None or self.running_var is None:
            return
        rate: Tensor | float = 0.0 if self.momentum is None else self.momentum
        if self.counts_batches and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            # momentum None asks for the plain average over all batches so far
            rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = var * (m / (m - 1))
        self.running_mean.copy_((1 - rate) * self.running_mean + rate * mean)
        self.running_var.copy_((1 - rate) * self.running_var + rate * unbiased)

    def normalize_running(self, x: Tensor) -> Tensor:
        """x (N, C, *) standardized with the running moments: a fixed affine map."""
        wide, shape = widen(x), (1, -1) + (1,) * (x.dim() - 2)
        mean, var, weight, bias = (
            channelwise(values, wide.dtype, shape)
            for values in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        assert mean is not None and var is not None
        y = (wide - mean) * (var + self.eps).rsqrt()
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, gradient={self.gradient!r}"
        )
