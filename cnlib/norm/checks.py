"""Checks of what reaches a layer. Every message says what came, what was expected and what to do about it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from cnlib.norm.calling import has_values

GRADIENTS = ("manual", "autograd")


def check_gradient(gradient: str) -> str:
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient={gradient!r}: expected one of {GRADIENTS}")
    return gradient


def check_positive(**counts: int) -> tuple[int, ...]:
    """The counts as Python's integers; numpy's are welcome."""
    checked = []
    for name, value in counts.items():
        try:
            # a bool is an index too, and no count
            checked.append(0 if isinstance(value, bool) else operator.index(value))
        except TypeError:
            checked.append(0)
        if checked[-1] < 1:
            raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
    return tuple(checked)


def check_number(name: str, value: float, low: float, high: float, expected: str) -> float:
    """value as a Python float, from low to high; numpy's are welcome."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return float(value)


def check_eps(eps: float) -> float:
    return check_number("eps", eps, 0.0, sys.float_info.max, "a finite number of at least 0, such as 1e-5")


def check_momentum(momentum: float | None) -> float | None:
    if momentum is None:
        return None
    return check_number("momentum", momentum, 0.0, 1.0, "a number from 0 to 1, or None for a plain average")


def check_tensor(value: object, name: str, who: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: {name} is a {type(value).__name__}, expected a torch.Tensor")


def check_input(x: Tensor, num_features: int | None, who: str) -> None:
    """x must be a real floating tensor of shape (N, C) or (N, C, *)."""
    check_tensor(x, "x", who)
    if not x.is_floating_point():
        raise TypeError(f"{who}: x has type {x.dtype}, expected a real floating type; convert it with x.float()")
    if x.dim() < 2:
        raise ValueError(f"{who}: x has shape {tuple(x.shape)}, expected (N, C) or (N, C, *)")
    if num_features is not None and x.shape[1] != num_features:
        raise ValueError(
            f"{who}: x has {x.shape[1]} channels on axis 1 (shape {tuple(x.shape)}), expected {num_features}"
        )


def check_values(ok: Tensor, message: Callable[[], str]) -> None:
    """Raise ValueError unless the 0-dim boolean ``ok`` is true.

    Reading a value would break a compiled graph, so there the check becomes part of the graph. On the meta device and
    under vmap there are no values to check.
    """
    if has_values(ok):
        if not bool(ok):
            raise ValueError(message())
    elif torch.compiler.is_compiling() and ok.device.type != "meta":
        torch._assert_async(ok, "cnlib: a value is out of range; run once without torch.compile to see which")


def check_context(context: Tensor | None, x: Tensor, num_contexts: int, who: str) -> Tensor:
    """The context must be (N,) integer ids in [0, num_contexts) on the device of x."""
    wanted = f"expected an integer tensor of shape ({x.shape[0]},) with ids in [0, {num_contexts})"
    if context is None:
        raise ValueError(
            f"{who}: no context was given; {wanted}. Pass it as layer(x, context), "
            "or run the model inside `with cnlib.use_context(model, context):`"
        )
    if not isinstance(context, Tensor):
        raise TypeError(f"{who}: the context is a {type(context).__name__}; {wanted}")
    if context.is_floating_point() or context.is_complex() or context.dtype == torch.bool:
        raise TypeError(f"{who}: the context has type {context.dtype}; {wanted}")
    if context.shape != x.shape[:1]:
        raise ValueError(f"{who}: the context has shape {tuple(context.shape)}; {wanted}")
    if context.device != x.device:
        raise ValueError(
            f"{who}: the context is on {context.device} and x on {x.device}; move it with context.to(x.device)"
        )
    # under vmap there is nothing to compare
    if context.numel() and (has_values(context) or torch.compiler.is_compiling()):
        low, high = torch.aminmax(context)
        check_values(
            (low >= 0) & (high < num_contexts),
            lambda: f"{who}: the context ids run from {int(low)} to {int(high)}; {wanted}",
        )
    return context.long()


def check_moments(mean: Tensor, var: Tensor, num_features: int, who: str) -> None:
    """mean and var must be (T, C) on one device, and no variance negative."""
    check_tensor(mean, "mean", who)
    check_tensor(var, "var", who)
    if mean.dim() != 2 or mean.shape != var.shape or mean.shape[1] != num_features:
        raise ValueError(
            f"{who}: mean has shape {tuple(mean.shape)} and var {tuple(var.shape)}, expected both (T, {num_features})"
        )
    # NaN passes, as in torch: a loss that is not finite says more than an error here
    check_values(~(var < 0).any(), lambda: f"{who}: var holds {float(var.min()):g}, expected variances of at least 0")


def check_priors(priors: Tensor, num_components: int, who: str, name: str = "priors") -> None:
    """priors must be (K,), non-negative and sum to 1."""
    check_tensor(priors, name, who)
    if priors.shape != (num_components,):
        raise ValueError(f"{who}: {name} have shape {tuple(priors.shape)}, expected ({num_components},)")
    check_values(
        (priors >= 0).all() & ((priors.sum() - 1).abs() < 1e-3),
        lambda: (
            f"{who}: {name} {priors.tolist()} sum to {float(priors.sum()):g}, expected values of at least 0 with sum 1"
        ),
    )


def check_responsibilities(
    tau: Tensor,
    x: Tensor,
    num_components: int | None,
    who: str,
    name: str = "responsibilities",
    by_position: bool = True,
) -> None:
    """tau must be (N, K), one row a sample, or, by position, (N, K, *)."""
    check_tensor(tau, name, who)
    k = "K" if num_components is None else str(num_components)
    wanted = f"({x.shape[0]}, {k})"
    if by_position:
        wanted += f" or ({x.shape[0]}, {k}, *{tuple(x.shape[2:])})"
    shape_ok = tau.dim() >= 2 and tau.shape[0] == x.shape[0]
    shape_ok = shape_ok and (tau.dim() == 2 or (by_position and tau.shape[2:] == x.shape[2:]))
    if not shape_ok or (num_components is not None and tau.shape[1] != num_components):
        raise ValueError(f"{who}: {name} have shape {tuple(tau.shape)}, expected {wanted}")
    if not tau.is_floating_point():
        raise TypeError(f"{who}: {name} have type {tau.dtype}, expected a real floating type")
    if tau.device != x.device:
        raise ValueError(f"{who}: {name} are on {tau.device} and x on {x.device}; use .to(x.device)")
    check_values(
        ((tau.sum(1) - 1).abs() < 1e-2).all() & (tau > -1e-3).all(),
        lambda: f"{who}: {name} must be non-negative and sum to 1 over the components (axis 1)",
    )
