"""Arithmetic all layers share: wide enough types, and no temporary the size of x where one can be overwritten.

On a CPU a fresh tensor the size of x costs more than a pass over it. So functions whose name ends in an underscore
overwrite their first argument, as torch's do, unless autograd is to differentiate through: use what they return.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cnlib.norm.calling import transformed


def widen(x: Tensor) -> Tensor:
    """x in the type statistics are computed in: float32 for the half types, its own type otherwise."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def wide_type(x: Tensor) -> torch.dtype:
    """The type ``widen`` would give."""
    return torch.promote_types(x.dtype, torch.float32)


def narrow(y: Tensor, dtype: torch.dtype) -> Tensor:
    """y in the given type. A bare y.to(dtype) may be y itself: then torch 2.11's compiler loses its gradient."""
    return y if y.dtype == dtype else y.to(dtype)


def channelwise(values: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor | None:
    """One value a channel, (C,), cast and viewed so that it broadcasts: (1, C, 1, 1), say. None stays None."""
    return None if values is None else values.to(dtype).view(shape)


def unbiased(var: Tensor, count: Tensor) -> Tensor:
    """The unbiased variance of ``count`` values from their biased one; below two values it stays as it is."""
    return var * torch.where(count > 1.5, count / (count - 1).clamp_min(0.5), 1.0)


def flatten(x: Tensor) -> Tensor:
    """(N, C) or (N, C, *) as (N, C, L); -1 cannot say this of an empty batch."""
    return x.reshape(x.shape[0], x.shape[1], positions(x))


def positions(x: Tensor) -> int:
    """L of x (N, C, *), 1 of (N, C). Not Size.numel(): torch.export would take it for a constant."""
    return math.prod(x.shape[2:])


def of_nothing(x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Tensor) -> Tensor:
    """What a layer makes of x (N, C, *) without values. It hangs on the parameters, weight and bias (C,) and others of
    any shape, whose gradients are 0 then and not None: DistributedDataParallel waits for each."""
    shape = (-1,) + (1,) * (x.dim() - 2)
    y = x.clone() if weight is None else x * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)
    for other in others:
        y = y + other.sum()
    return narrow(y, x.dtype)


# Longest row whose squares one kernel sums into one float: its error grows with the length.
ROW = 4096


def sum_squares(x: Tensor) -> Tensor:
    """Sum of squares over the last axis, which stays with size 1. No square the size of x is formed."""
    if torch.compiler.is_compiling():
        return x.square().sum(-1, keepdim=True)  # fused
    length = x.shape[-1]
    if length <= ROW:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    whole = length // ROW * ROW
    rows = x[..., :whole].unflatten(-1, (-1, ROW))
    parts = [torch.linalg.vector_norm(rows, dim=-1).square().sum(-1, keepdim=True)]
    if whole < length:
        parts.append(torch.linalg.vector_norm(x[..., whole:], dim=-1, keepdim=True).square())
    return sum(parts[1:], parts[0])


def sums_with(g: Tensor, z: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of g and of g z over the last axis, which stays with size 1.

    g, z: one shape; unit: positive, one value a channel. Compiled, g is read once for both: counted in a unit that
    varies with the channel, the two sums are loops over the same axes, which the compiler fuses.
    """
    if torch.compiler.is_compiling():
        # one of 0 or infinity, from a variance that overflows or eps 0, would make every sum a NaN
        unit = unit.clamp(1e-18, 1e18)
        h = g * unit
        return h.sum(-1, keepdim=True) / unit, (h * z).sum(-1, keepdim=True) / unit
    return g.sum(-1, keepdim=True), (g * z).sum(-1, keepdim=True)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Keep matrix products of statistics in the type of their inputs; the meta device knows no autocast."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def _keep(*tensors: Tensor) -> bool:
    """Whether the first of them must survive. A compiler fuses anyway, and torch 2.11's fails as in ``narrow``; under
    vmap, and where gradients come batched, a factor may have more values than what it is to overwrite."""
    if torch.compiler.is_compiling() or transformed() or any(map(torch._C._functorch.is_legacy_batchedtensor, tensors)):
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def affine_(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x * scale + shift."""
    if shift is None:
        return product_(x, scale)
    return x * scale + shift if _keep(x, scale, shift) else x.mul_(scale).add_(shift)


def product_(x: Tensor, y: Tensor) -> Tensor:
    """x * y."""
    return x * y if _keep(x, y) else x.mul_(y)


def add_product_(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a * b."""
    return torch.addcmul(x, a, b) if _keep(x, a, b) else x.addcmul_(a, b)
