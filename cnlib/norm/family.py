"""Layer, instance and group normalization: the standardization of batch.py over other index sets.

Eq. (2) of the French CN paper, eq. (4) of the ICDM paper, with B_i = the indices j that share with i

    BatchNorm       the channel                      (all samples, all positions)
    LayerNorm       the sample                       (all channels, all positions)
    InstanceNorm    the sample and the channel       (all positions)
    GroupNorm       the sample and the channel group (the channels of the group, all positions)

Chapter 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnlib.norm.batch import SAMPLE, Norm, normalize_groups
from cnlib.norm.checks import check_input, check_positive


class GroupNorm(Norm):
    """Group normalization (Wu & He 2018): moments over the channels of a group and all positions of a sample.

    x: (N, C) or (N, C, *); num_groups must divide num_features = C. The same in training and evaluation.
    State dicts are those of ``torch.nn.GroupNorm``. Raises ValueError / TypeError as ``BatchNorm``.
    """

    def __init__(
        self,
        num_groups: int,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        gradient: str = "manual",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, None, affine, False, gradient, device, dtype)
        check_positive(num_groups=num_groups)
        if num_features % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide num_features={num_features}")
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, type(self).__name__)
        return normalize_groups(x, self.num_groups, SAMPLE, self.weight, self.bias, self.eps, self.gradient)[0]

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_features}, eps={self.eps}, affine={self.affine}, gradient={self.gradient!r}"
        )


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016): moments over all channels and positions of a sample.

    x: (N, C) or (N, C, *). The affine map is per channel, so on (N, C) this is ``torch.nn.LayerNorm(C)`` and on
    (N, C, *) ``torch.nn.GroupNorm(1, C)``: group normalization with one group.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        gradient: str = "manual",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, num_features, eps, affine, gradient, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, gradient={self.gradient!r}"


class InstanceNorm(Norm):
    """Instance normalization (Ulyanov et al. 2016): moments over the positions of one channel of one sample.

    x: (N, C, *) with at least two positions. Defaults and state dicts are those of ``torch.nn.InstanceNorm``:
    no affine map, no running moments. With ``track_running_stats`` evaluation uses their running averages.
    Raises ValueError for a single position, where every output would be 0.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        gradient: str = "manual",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, gradient, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features, "InstanceNorm")
        if not self.training and self.track_running_stats:
            return self.normalize_running(x)
        positions = x.shape[2:].numel()
        if positions < 2:
            raise ValueError(
                f"InstanceNorm: shape {tuple(x.shape)} has {positions} position per channel, expected at least 2; "
                "use LayerNorm or GroupNorm for inputs without positions"
            )
        y, mean, var, m = normalize_groups(
            x, self.num_features, SAMPLE, self.weight, self.bias, self.eps, self.gradient
        )
        if self.training and self.track_running_stats:
            self.update_running(mean.mean(0), var.mean(0), m)
        return y
