"""Batches spread over processes: the sums their statistics need, taken over all of them (``cnlib.synchronize``).

Each process holds some samples and its own loss; what is differentiated is the sum of all losses. Only sums travel, of
moments and of their gradients, never samples. A group of None is one process alone: nothing is exchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AllReduce(torch.autograd.Function):
    """The sum over the group, which every process gets; so a process's part of it has all their gradients, summed."""

    @staticmethod
    def forward(ctx, own, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        summed = own.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return AllReduce.apply(g.contiguous(), ctx.group), None


def total(group: ProcessGroup | None, *own: Tensor) -> tuple[Tensor, ...]:
    """The sum over the group of each tensor, in one exchange. All are of one type."""
    if group is None:
        return own
    summed = AllReduce.apply(torch.cat([value.reshape(-1) for value in own]), group)
    parts = summed.split([value.numel() for value in own])
    return tuple(part.view(value.shape) for part, value in zip(parts, own, strict=True))


def gather(group: ProcessGroup | None, *own: Tensor) -> tuple[Tensor, ...]:
    """Each tensor of every process, (processes, *), in one exchange: a sum in which each fills a row of its own."""
    if group is None:
        return tuple(value.unsqueeze(0) for value in own)
    row, rows = group.rank(), group.size()
    flat = torch.cat([value.reshape(-1) for value in own]).unsqueeze(0)
    (table,) = total(group, F.pad(flat, (0, 0, row, rows - row - 1)))
    parts = table.split([value.numel() for value in own], 1)
    return tuple(part.reshape(rows, *value.shape) for part, value in zip(parts, own, strict=True))


def pool(group: ProcessGroup | None, mass: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, mean and biased variance of all samples of a group together, from those of each process."""
    return (mass, mean, var) if group is None else combine(*gather(group, mass, mean, var))


def combine(masses: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, mean and biased variance of all parts of a sample together, from those of each, along the first axis.

    var = sum_p share_p (var_p + (mean_p - mean)^2), all terms positive, where E[x^2] - E[x]^2 would cancel. masses
    broadcast against means; a part without mass counts for nothing, whatever its moments (Chan et al. 1979).
    """
    means, variances = (torch.where(masses > 0, value, 0) for value in (means, variances))
    whole = masses.sum(0)
    share = masses / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    mean = (share * means).sum(0)
    return whole, mean, (share * (variances + (means - mean).square())).sum(0)


def group_of(layer: Any) -> ProcessGroup | None:
    """The processes this layer's batch is spread over; None outside training, and where it is one process.

    Raises RuntimeError where the layer is to share its batch and torch.distributed is not running.
    """
    if not (layer.synchronized and layer.training):
        return None
    group = layer.process_group
    if group is None:  # looked up at each call: a layer that held the group could not be copied or pickled
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"{type(layer).__name__} shares its batch statistics with other processes (cnlib.synchronize), and "
                "torch.distributed is not initialized: initialize it, or call cnlib.synchronize(model, False)"
            )
        group = dist.group.WORLD
    return None if group is None or group.size() == 1 else group
