"""What layers with batch or sample moments have in common: affine parameters and running moments.

The bookkeeping (parameters, buffers, state dicts of every age) is torch's own, inherited. So what asks for torch's
classes finds these layers: `swa_utils.update_bn`, `torch.func.replace_all_batch_norm_modules_`, loops that freeze.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import channelwise, widen
from cnlib.norm.calling import move
from cnlib.norm.checks import check_eps, check_gradient, check_momentum, check_positive


def reset_affine(layer: nn.Module) -> None:
    """weight 1, bias 0, where the layer has them."""
    for parameter, value in ((layer.weight, 1.0), (layer.bias, 0.0)):
        if parameter is not None:
            nn.init.constant_(parameter, value)  # type: ignore[arg-type]


class Norm(nn.modules.batchnorm._NormBase):
    """Base of the layers in batch.py and family.py: parameters and buffers as torch's layers have them.

    track_running_stats: whether there are running moments and training moves them. Set later, it says whether training
    moves those there are. weight, bias, running_mean, running_var and num_batches_tracked may be set to None at any
    time. bias: whether an affine map has a shift.
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
        bias: bool = True,
    ) -> None:
        (num_features,) = check_positive(num_features=num_features)
        super().__init__(
            num_features, check_eps(eps), check_momentum(momentum), affine, track_running_stats, device, dtype
        )
        if not bias:
            self.bias = None  # type: ignore[assignment]
        self.gradient = check_gradient(gradient)

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batch counted."""
        for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(value)

    def reset_parameters(self) -> None:
        """weight 1, bias 0, running mean 0, running variance 1."""
        self.reset_running_stats()
        reset_affine(self)

    def has_running(self) -> bool:
        """Whether there are running moments. Raises ValueError where one of the two was set to None."""
        if (self.running_mean is None) != (self.running_var is None):
            raise ValueError(
                f"{type(self).__name__}: one of running_mean and running_var is None, expected both or neither; "
                "set the other to None too, or restore it"
            )
        return self.running_mean is not None

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor, m: Tensor | int) -> None:
        """Move the running moments towards a batch: mean, var (C,), biased; m values each (eq. (3), ICDM)."""
        rate: Tensor | float = 0.0 if self.momentum is None else self.momentum
        if self.counts_batches and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            # momentum None asks for the plain average over all batches so far
            rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        if not self.has_running() or (isinstance(m, int) and m == 0):
            return  # an empty batch has no moments
        assert self.running_mean is not None and self.running_var is not None
        unbiased = var * (m / (m - 1))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            wide = torch.promote_types(running.dtype, value.dtype)  # neither loses digits
            move(running, torch.lerp(running.to(wide), value.to(wide), rate), type(self).__name__)

    def normalize_running(self, x: Tensor) -> Tensor:
        """x (N, C, *) standardized with the running moments: a fixed affine map."""
        wide, shape = widen(x), (1, self.num_features) + (1,) * (x.dim() - 2)
        mean, var, weight, bias = (
            channelwise(values, wide.dtype, shape)
            for values in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        assert mean is not None and var is not None
        y = (wide - mean) * (var + self.eps).rsqrt()
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gradient={self.gradient!r}"
