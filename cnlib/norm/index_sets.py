"""The moments of instance, layer and batch normalization together.

x (N, C, L) is read as often as for one of them: with m, v the mean and biased variance of a sample and channel, (N, C),

    "in"   m_in = m          v_in = v                              (N, C)   each over M = L values
    "ln"   m_ln = mean_C m   v_ln = mean_C [v + (m - m_ln)^2]      (N, 1)   M = C L
    "bn"   m_bn = mean_N m   v_bn = mean_N [v + (m - m_bn)^2]      (1, C)   M = N L

All terms are positive, where E[x^2] - E[x]^2 loses every digit when |mean| >> std. Nothing here is expanded to the size
of x: a layer made of these is y = A x + B with one slope and one offset a sample and channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnlib.norm.arithmetic import flatten, sum_squares, wide_type
from cnlib.norm.batch import Count, check_batch
from cnlib.norm.checks import check_input
from cnlib.norm.layer import Norm
from cnlib.norm.processes import group_of, pool, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NORMALIZERS = ("in", "ln", "bn")
Moments = tuple[Tensor, Tensor]


def check_normalizers(normalizers: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple: some of "in", "ln", "bn", each once, in any order."""
    expected = f"normalizers={normalizers!r}: expected one or more of {NORMALIZERS}, each once"
    if isinstance(normalizers, str) or not isinstance(normalizers, Iterable):
        raise ValueError(f"{expected}, such as ('ln', 'bn')")
    names = tuple(normalizers)
    if not names or any(name not in NORMALIZERS for name in names) or len({*names}) < len(names):
        raise ValueError(expected)
    return names


def samples(x: Tensor) -> Tensor:
    """x (N, C, *) as (N, C, L). One without values, a process's part of a batch, has no samples then: means over no
    positions would be NaN."""
    return flatten(x) if x.numel() else x.reshape(0, x.shape[1], 1)


def center(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, L) minus its mean in each sample and channel, this mean, and the biased variance, (N, C) each."""
    mean = x.mean(-1, keepdim=True)
    centered = x - mean
    return centered, mean.squeeze(-1), sum_squares(centered).squeeze(-1) / x.shape[-1]


def batch_moments(
    mean: Tensor, var: Tensor, positions: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Count]:
    """m_bn and v_bn, (1, C) each, and the number of values each is taken over, also over the processes of a group."""
    m, (whole, spread) = mean.shape[0] * positions, _pooled(mean, var, 0)
    if group is None:
        return whole, spread, m
    count, whole, spread = pool(group, mean.new_full((1, 1), m), whole, spread)
    return whole, spread, count.reshape(())


def _pooled(mean: Tensor, var: Tensor, axis: int) -> Moments:
    """Mean and variance of parts of equal size together, from those of each along an axis."""
    whole = mean.mean(axis, keepdim=True)
    return whole, (var + (mean - whole).square()).mean(axis, keepdim=True)


def moments_of(normalizers: Iterable[str], mean: Tensor, var: Tensor, batch: Moments) -> list[Moments]:
    """Mean and variance of each normalizer in shapes that broadcast to (N, C). batch: what "bn" has, maybe running."""
    return [{"in": (mean, var), "ln": _pooled(mean, var, 1), "bn": batch}[name] for name in normalizers]


def sum_over_set(name: str, values: Tensor) -> Tensor:
    """Sum (N, C) over what shares a statistic of this normalizer: the adjoint of broadcasting it."""
    return {"in": values, "ln": values.sum(1, keepdim=True), "bn": values.sum(0, keepdim=True)}[name]


def through_moments(
    normalizers: Iterable[str],
    d_means: Iterable[Tensor],
    d_vars: Iterable[Tensor],
    found: Sequence[Tensor],
    d_found: Sequence[Tensor],
    running: Moments | None,
    positions: int,
    group: ProcessGroup | None,
) -> Moments:
    """Slope and offset (N, C) of what reaches x through its moments, as slope (x - m_in) + offset:

        sum_k [ dl/dm_k + 2 (x - m_k) dl/dv_k ] / M_k

    d_means, d_vars: of each normalizer, (N, C) each, still to be summed over what shares m_k and v_k. found: m_in, v_in
    (N, C) and those of the batch (1, C), outputs of a Function; d_found: the gradients that reach these by themselves.
    running: where "bn" has these, its moments are not those of x.
    """
    mean, var, *batch = found
    moments = dict(zip(NORMALIZERS, moments_of(NORMALIZERS, mean, var, (batch[0], batch[1])), strict=True))
    d_moments = {"in": (d_found[0], d_found[1]), "bn": (d_found[2], d_found[3])}
    for name, d_mean, d_var in zip(normalizers, d_means, d_vars, strict=True):
        if name != "bn" or running is None:
            direct = d_moments.get(name, (0, 0))
            d_moments[name] = direct[0] + sum_over_set(name, d_mean), direct[1] + sum_over_set(name, d_var)

    (n, c), slope, offset = mean.shape, torch.zeros_like(mean), torch.zeros_like(mean)
    for name, (d_mean, d_var) in d_moments.items():
        values = {"in": 1, "ln": c, "bn": n}[name] * positions
        m: Count = values
        if name == "bn" and group is not None:
            # the batch is that of all processes, and so are M and the two sums
            d_mean, d_var, m = total(group, d_mean, d_var, mean.new_full((1,), values))
        by_var = 2 * d_var / m
        slope = slope + by_var
        offset = offset + d_mean / m + by_var * (mean - moments[name][0])
    return slope, offset


class NormOfSets(Norm):
    """Base of layers that mix some of the normalizers: which ones, and where the moments of "bn" come from."""

    def __init__(
        self,
        normalizers: Iterable[str],
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        gradient: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        bias: bool = True,
    ) -> None:
        names = check_normalizers(normalizers)
        super().__init__(num_features, eps, momentum, affine, "bn" in names, gradient, device, dtype, bias)
        self.normalizers = names
        # set by cnlib.synchronize
        self.synchronized = False
        self.process_group: ProcessGroup | None = None

    def before(self, x: Tensor) -> tuple[Moments | None, ProcessGroup | None]:
        """Checks x (N, C, *). What "bn" takes in evaluation for the batch's moments, (1, C) each in a wide type, or
        None; and the processes whose batch it is otherwise."""
        who, dtype = type(self).__name__, wide_type(x)
        check_input(x, self.num_features, who)
        if not self.training and self.has_running():
            assert self.running_mean is not None and self.running_var is not None
            return (self.running_mean.to(dtype)[None], self.running_var.to(dtype)[None]), None
        if "bn" not in self.normalizers:
            return None, None
        group = group_of(self)
        check_batch(x, group, who)
        return None, group

    def after(self, mean: Tensor, var: Tensor, m: Count) -> None:
        """In training the running moments move towards those of the batch, (C,) each, over m values."""
        if "bn" in self.normalizers and self.training and self.track_running_stats:
            self.update_running(mean, var, m)
