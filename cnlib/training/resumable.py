"""Whether a checkpoint is one of the run that is to go on from it: names, shapes, types and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from cnlib.training.trainer import Trainer


def misfit(saved: Mapping[str, Any], trainer: Trainer) -> str | None:
    """What of a `Trainer.state` does not fit the trainer that was made from it; None where all does.

    torch casts other types in silence, and an optimizer takes any learning rate.
    """
    own, config, best = trainer.state(), trainer.config, saved.get("best", {})
    weights = [("model", saved["model"], own["model"]), ("average", saved["average"] or {}, own["average"] or {})]
    if best:
        weights.append(("the best model", best["model"], own["model"]))
    for name, state, expected in weights:
        if wrong := _other(state, expected):
            return f"{name} {wrong}"
    for parameter, values in trainer.optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and (
                value.ndim and value.shape != parameter.shape or not _finite(value)
            ):
                return f"{name} of the optimizer has shape {tuple(value.shape)}, or is not finite"
    groups, usual = saved["optimizer"]["param_groups"], trainer.optimizer.defaults
    for group in groups:
        for name, value in group.items():
            # a schedule moves the rate; of several groups each may have settings of its own
            free = name in ("params", "lr", "initial_lr") or len(groups) > 1 or name not in usual
            if (name.endswith("lr") and not _is_rate(value)) or not (free or value == usual[name]):
                return f"{name} of the optimizer is {value!r}"
    if (config.contexts == "none") != (not saved["contexts"]):
        return f"contexts {', '.join(saved['contexts']) or 'none'}, and the configuration has {config.contexts!r}"
    if config.patience and not best:
        return "it lacks the best epoch"
    if best and not (math.isfinite(best["value"]) and 1 <= best["epoch"] <= saved["epoch"]):
        return f"the best epoch is {best['epoch']} with {best['value']}"
    if (steps := saved.get("steps")) not in (None, expected := saved["epoch"] * trainer.epoch_steps()):
        return f"{steps} steps, expected {expected}"
    return None


def _other(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    if other := state.keys() ^ expected.keys():
        return f"has other tensors: {', '.join(sorted(map(str, other)))}"
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            found = state[name]
            if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
                return f"has another {name}"
            if not _finite(found):
                return f"holds {name} that is not finite"
    return None


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
