"""Mixture normalization (Kalayeh & Shah 2019), eq. (3)-(4) of the French CN paper, (6)-(7) of the ICDM paper.

Chapter 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import (
    add_product_,
    affine_,
    flatten,
    narrow,
    of_nothing,
    positions,
    sums_with,
    wide_type,
    widen,
)
from cnlib.norm.batch import check_batch
from cnlib.norm.calling import by_hand, drop_in, has_values, in_backward
from cnlib.norm.checks import (
    check_eps,
    check_gradient,
    check_input,
    check_momentum,
    check_positive,
    check_priors,
    check_responsibilities,
    check_values,
)
from cnlib.norm.gaussians import (
    collect,
    diagonal_log_joint,
    equal_values,
    fit_diagonal,
    invert,
    mass,
    mix,
    mixture_moments,
)
from cnlib.norm.given import given
from cnlib.norm.layer import reset_affine
from cnlib.norm.processes import group_of, total
from cnlib.norm.running_mixture import Mixture, RunningMixture

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Everywhere below: x (N, C, L), tau (N, K, L) or (N, K, 1), one value a component and channel (K, C).


def mixture_affine(
    x: Tensor, tau: Tensor, priors: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """weight sum_k tau_k / sqrt(lambda_k) (x - m_k) / sqrt(v_k + eps) + bias, as A x + B from two ``mix``."""
    scale = weight * component_scale(priors, var, eps)
    # A (x - center) + B' keeps the digits that x far from 0 would cost
    center = (priors[:, None] * mean).sum(0)
    return affine_(x - center[:, None], mix(tau, scale), mix(tau, scale * (center - mean)) + bias[:, None])


def component_scale(priors: Tensor, var: Tensor, eps: float) -> Tensor:
    """1 / sqrt(lambda_k (v_k + eps)), (K, C)."""
    return invert(priors).sqrt()[:, None] * (var + eps).rsqrt()


def mixture_standardize(
    x: Tensor,
    tau: Tensor,
    priors: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (3)-(4) / (6)-(7) and an affine map: y like x, and the mean and variance of each component (K, C).

    group: the batch is all that these processes hold.
    """
    wide = widen(x)
    _, mean, var = mixture_moments(wide, tau, group)
    return narrow(mixture_affine(wide, tau, priors, mean, var, weight, bias, eps), x.dtype), mean, var


class MixtureStandardize(torch.autograd.Function):
    """``mixture_standardize`` with its gradient by hand, also through tau and the priors.

    With a_k = lambda_k^(-1/2) (v_k + eps)^(-1/2), s_k = sum_B tau_k, h = g * weight, and sums over B:

        dl/da_k      = q_k = sum h tau_k (x - m_k)
        dl/dm_k      = - a_k sum h tau_k            (v_k does not move with m_k: sum tau_k (x - m_k) = 0)
        dl/dv_k      = - 1/2 q_k a_k / (v_k + eps)
        dl/dlambda_k = - 1/2 q_k a_k / lambda_k     summed over channels
        dl/dx        = h sum_k tau_k a_k + sum_k tau_k (dl/dm_k + 2 (x - m_k) dl/dv_k) / s_k
        dl/dtau_k    = sum_C [ h a_k (x - m_k) + ((x - m_k) dl/dm_k + ((x - m_k)^2 - v_k) dl/dv_k) / s_k ]
    """

    @staticmethod
    def forward(ctx, x, tau, priors, weight, bias, eps, group=None):  # type: ignore[no-untyped-def]
        y, mean, var = mixture_standardize(x, tau, priors, weight, bias, eps, group)
        ctx.save_for_backward(x, tau, priors, weight, mean, var)
        ctx.eps, ctx.group = eps, group
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx, g, g_mean, g_var):  # type: ignore[no-untyped-def]
        x, tau, priors, weight, mean, var = ctx.saved_tensors
        dtype, x = x.dtype, widen(x)  # (N, C, L)
        g = torch.zeros_like(x) if g is None else widen(g)  # (N, C, L)
        scale = component_scale(priors, var, ctx.eps)  # (K, C); so are mean, var
        center = (priors[:, None] * mean).sum(0)  # (C,)
        shifted = x - center[:, None]  # (N, C, L)
        offset = mean - center  # (K, C)

        if tau.shape[2] == 1:
            # one row of tau a sample: of its positions all sums need these two
            unit = (1 + var[0]).rsqrt()[:, None]  # (C, 1), positive for an empty component and for eps 0 too
            rows_g, rows_q = sums_with(g, shifted, unit)  # (N, C, 1)
        else:
            rows_g, rows_q = g, g * shifted  # (N, C, L)
        sum_g = collect(tau, rows_g)  # (K, C)
        q = collect(tau, rows_q) - offset * sum_g  # (K, C)
        d_weight, d_bias = (q * scale).sum(0), rows_g.sum((0, 2))  # (C,)
        sum_g, q = sum_g * weight, q * weight
        d_mean = -scale * sum_g  # (K, C)
        d_var = -0.5 * q * scale / (var + ctx.eps)  # (K, C)
        if g_mean is not None:
            d_mean = d_mean + g_mean
        if g_var is not None:
            d_var = d_var + g_var

        # B runs over all processes, and so do these sums; those for weight, bias and priors are this process's own
        d_mean, d_var, held = total(ctx.group, d_mean, d_var, mass(tau, x.shape[2]))
        inverse = invert(held)  # (K, 1)
        d_x = d_tau = d_priors = None
        by_mean, by_var, by_x = d_mean * inverse, d_var * inverse, scale * weight  # (K, C)
        if ctx.needs_input_grad[1]:
            rows = []
            for k in range(len(mean)):
                centered = x - mean[k, :, None]
                slope = g * by_x[k, :, None] + by_mean[k, :, None] + centered * by_var[k, :, None]
                rows.append((centered * slope).sum(1, keepdim=True) - (by_var * var)[k].sum())
            d_tau = torch.cat(rows, 1).sum_to_size(tau.shape)  # (N, K, L) or (N, K, 1)
        if ctx.needs_input_grad[2]:
            d_priors = -0.5 * (q * scale).sum(1) * invert(priors)  # (K,)
        if ctx.needs_input_grad[0]:
            # last: it may overwrite shifted
            through_moments = affine_(shifted, mix(tau, 2 * by_var), mix(tau, by_mean - 2 * by_var * offset))
            d_x = narrow(add_product_(through_moments, g, mix(tau, by_x)), dtype)  # (N, C, L)
        return d_x, d_tau, d_priors, d_weight, d_bias, None, None


def normalize_mixture(
    x: Tensor,
    tau: Tensor,
    priors: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gradient: str,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``mixture_standardize`` on (N, C, *) inputs in any floating type: y like x, mean and var (K, C)."""
    c, dtype = x.shape[1], wide_type(x)
    if x.numel() == 0 and group is None:
        none = x.new_zeros((tau.shape[1], c), dtype=dtype)
        return of_nothing(x, weight, bias), none, none
    weight = x.new_ones(c, dtype=dtype) if weight is None else weight.to(dtype)
    bias = x.new_zeros(c, dtype=dtype) if bias is None else bias.to(dtype)
    flat, tau = flatten(x), flatten(tau.to(dtype))
    run = MixtureStandardize.apply if by_hand(gradient) else mixture_standardize
    y, mean, var = run(flat, tau, priors.to(dtype), weight, bias, eps, group)
    return y.reshape(x.shape), mean, var


def normalize_and_track(
    layer: Any,
    x: Tensor,
    tau: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: ProcessGroup | None,
) -> Tensor:
    """``normalize_mixture`` of a layer's batch x (N, C, *) under tau, with the shares of the mass of tau, (K,), for
    priors; in training its running mixture moves."""
    own = x.shape[0] * positions(x)
    m: Tensor | int = own
    shares = tau.transpose(0, 1).flatten(1).mean(1)
    weights = flatten(tau)
    held, squares = mass(weights, positions(x)), mass(weights.detach().square(), positions(x))  # (K, 1)
    if group is not None:
        held, squares, m = total(group, held, squares, tau.new_full((), own))
        shares = held[:, 0] / m
    y, mean, var = normalize_mixture(x, tau, shares, weight, bias, layer.eps, layer.gradient, group)
    if layer.training and layer.track_running_stats and not in_backward():
        layer.update_running(mean, var, m, shares, equal_values(held, squares))
    return y


def mixture_norm(
    x: Tensor, responsibilities: Tensor, priors: Tensor, eps: float = 1e-5, gradient: str = "manual"
) -> Tensor:
    """Normalize x with the weighted batch moments of each component, and mix the results.

    x: (N, C) or (N, C, *); responsibilities tau: (N, K) or (N, K, *); priors lambda: (K,), summing to 1.
    Gradients flow to all three. K = 1 is batch normalization. A component with no mass or prior 0 takes no part.
    Source: eq. (3)-(4), French paper; (6)-(7), ICDM paper; expectations with normalized weights are sums.
    """
    check_input(x, None, "mixture_norm")
    check_responsibilities(responsibilities, x, None, "mixture_norm")
    check_priors(priors, responsibilities.shape[1], "mixture_norm")
    held = responsibilities.transpose(0, 1).flatten(1).sum(1)
    check_values(
        ((priors > 0) | (held <= 1e-6 * held.sum())).all(),
        lambda: (
            f"mixture_norm: a component with prior 0 carries responsibilities, {held.tolist()} under {priors.tolist()}"
        ),
    )
    return normalize_mixture(x, responsibilities, priors, None, None, check_eps(eps), check_gradient(gradient))[0]


class MixtureNorm(RunningMixture):
    """Mixture normalization with K components over (N, C) or (N, C, *) inputs.

    forward(x) fits the mixture to this batch's activations: ``em_steps`` steps of EM from the running mixture,
    which the first batch starts by k-means++. forward(x, responsibilities) takes tau (N, K) or (N, K, *) as
    given, e.g. from a mixture fitted once on the data set. Training normalizes with the batch moments under
    tau; gradients flow through them, and through tau where it is given; the EM fit is a constant. Evaluation
    uses the running priors, means and variances (K, C), and tau under them where none is given.

    momentum: rate of the running mixture, None for a plain average over batches; the first batch replaces its arbitrary
    start. bias: whether the affine map has a shift. Parameters and buffers may be set to None later: without a running
    mixture each batch is fitted from a start of its own, in evaluation too. A forward that a backward pass runs again
    (activation checkpointing) starts EM where the first one did and moves nothing.
    Raises ValueError / TypeError as ``BatchNorm``, and for responsibilities of the wrong shape or sum.
    Source: eq. (3)-(4), French CN paper; (6)-(7), ICDM paper; Kalayeh & Shah (2019).
    """

    def __init__(
        self,
        num_features: int,
        num_components: int = 3,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        gradient: str = "manual",
        *,
        em_steps: int = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        c, k, steps = check_positive(num_features=num_features, num_components=num_components, em_steps=em_steps)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(k, c, check_momentum(momentum), at)
        self.num_features, self.eps, self.affine, self.em_steps = c, check_eps(eps), affine, steps
        self.gradient = check_gradient(gradient)
        self.weight = nn.Parameter(torch.empty(c, **at)) if affine else None
        self.bias = nn.Parameter(torch.empty(c, **at)) if affine and bias else None
        # set by cnlib.use_context
        self.given_responsibilities: Tensor | None = None
        # set by cnlib.synchronize
        self.synchronized = False
        self.process_group: ProcessGroup | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1, bias 0; no mixture."""
        reset_affine(self)
        self.reset_running_stats()

    @drop_in
    def forward(self, x: Tensor, responsibilities: Tensor | None = None) -> Tensor:
        check_input(x, self.num_features, "MixtureNorm")
        tau = given(self, "given_responsibilities") if responsibilities is None else responsibilities
        if tau is not None:
            check_responsibilities(tau, x, self.num_components, "MixtureNorm")
        running = None if self.training else self.running()
        if running is not None:
            return self._evaluate(x, tau, running)
        group = group_of(self)
        check_batch(x, group, "MixtureNorm")
        return self._normalize_batch(x, tau, group)

    def _normalize_batch(self, x: Tensor, tau: Tensor | None, group: ProcessGroup | None) -> Tensor:
        wide = widen(x)
        tau = self._fit(wide.detach(), group) if tau is None else tau.to(wide.dtype)
        return normalize_and_track(self, x, tau, self.weight, self.bias, group)

    @torch.no_grad()
    def _fit(self, x: Tensor, group: ProcessGroup | None = None) -> Tensor:
        """tau (N, K, *) after em_steps of EM from the running mixture, or from a start of its own where there is none;
        the last M-step is the normalization's own moments."""
        if x.numel() == 0 and group is None:
            return x.new_full((x.shape[0], self.num_components, *x.shape[2:]), 1 / self.num_components)
        flat, (started, running) = flatten(x), self.start_of(x)

        def fit(start: Mixture | None) -> Tensor:
            return fit_diagonal(flat, self.num_components, start, self.em_steps, self.eps, group)

        if running is None:
            tau = fit(None)
        elif has_values(started):
            tau = fit(running if started else None)
        elif torch.compiler.is_compiling():
            tau = torch.cond(started, lambda: fit(running), lambda: fit(None))
        else:  # under vmap some may have started and others not
            tau = torch.where(started, fit(running), fit(None))
        return tau.reshape(x.shape[0], self.num_components, *x.shape[2:])

    def _evaluate(self, x: Tensor, tau: Tensor | None, running: Mixture) -> Tensor:
        flat = flatten(widen(x))
        priors, mean, var = (values.to(flat.dtype) for values in running)
        if tau is None:
            tau = diagonal_log_joint(flat, priors, mean, var + self.eps).softmax(1)
        else:
            tau = flatten(tau.to(flat.dtype))
        weight = torch.ones_like(mean[0]) if self.weight is None else self.weight.to(flat.dtype)
        bias = torch.zeros_like(mean[0]) if self.bias is None else self.bias.to(flat.dtype)
        return mixture_affine(flat, tau, priors, mean, var, weight, bias, self.eps).reshape(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_components={self.num_components}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, em_steps={self.em_steps}, gradient={self.gradient!r}"
        )
