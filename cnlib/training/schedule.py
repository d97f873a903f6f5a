"""How the learning rate moves: a factor for each step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

# from the share of the steps done, 0 to 1, to the factor on the configured rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    # both end at a quarter: AdaMatch's along the first part of a cosine, the Keras example's along half a wave
    "cosine-start": lambda done: math.cos(math.acos(0.25) * done),
    "cosine-quarter": lambda done: 0.25 + 0.75 * (0.5 + 0.5 * math.cos(math.pi * done)),
}


def factor(schedule: str, warmup: int, step: int, steps: float) -> float:
    """The factor on the rate at a step, counted from 0, of `steps` in all.

    Over the first `warmup` steps it rises linearly, to 1 at the last of them; the schedule has the rest.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule]((step - warmup) / max(1, steps - warmup))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times the group's "factor" where it has one; groups of `adamw-tfa` keep a decay that
    does not depend on it (see build.py)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
        if "decay" in group:
            group["weight_decay"] = group["decay"] / rate if rate else 0.0
