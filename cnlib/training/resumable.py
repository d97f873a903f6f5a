"""What the files of a run hold, and whether a checkpoint is one of the run that is to go on from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from cnlib.data import ImageData
from cnlib.training import checkpoint, records
from cnlib.training.config import Config
from cnlib.training.lines import Line, read_lines, strict_json
from cnlib.training.trainer import Trainer


def read_saved(path: Path, config: Config) -> tuple[list[Line], dict[str, Any] | None]:
    """(lines, state): what files hold of this run. The record, if it is whole; else the checkpoint, with its lines.

    Nothing is written. Raises ValueError where a file is damaged or belongs to another configuration.
    """
    lines, saved = read_lines(path) if path.exists() else [], path.with_suffix(".pt")
    if lines:
        _check_config(path, records.run_of(path, lines).config, config)
    if is_finished(lines) or not (state := checkpoint.load(saved)):
        return lines, None
    return _lines_in(saved, state, config), state


def _lines_in(saved: Path, state: dict[str, Any], config: Config) -> list[Line]:
    """The record that a checkpoint carries: of this configuration, and up to its epoch."""
    try:
        lines: list[Line] = strict_json(state["lines"])
        if not isinstance(lines, list) or not all(isinstance(line, dict) and "type" in line for line in lines):
            raise ValueError("its lines are no list of objects with a type")
        if not lines or lines[0]["type"] != "header":
            raise ValueError("its lines do not start with a header")
        other = records.run_of(saved, lines)
        if other.status != "unfinished" or len(other.epochs.get("epoch", ())) != state["epoch"]:
            raise ValueError(f"epoch {state['epoch']} is not that of its lines")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{saved} is not the checkpoint of a run ({error}): {checkpoint.WAY_OUT}") from error
    _check_config(saved, other.config, config)
    return lines


def _check_config(file: Path, other: Config, config: Config) -> None:
    if other != config:
        raise ValueError(
            f"{file} records another configuration ({other.difference(config)}): "
            "choose another file, or move that one away"
        )


def check_data(path: Path, lines: list[Line], data: ImageData) -> None:
    """ValueError where the recorded run saw other images than these."""
    checksum = lines[0]["provenance"].get("data", data.checksum)
    if checksum != data.checksum:
        raise ValueError(
            f"{path} records a run on other data: checksum {checksum}, and {data.name} has {data.checksum} now. "
            "Restore those images, or choose another file"
        )


def is_finished(lines: list[Line]) -> bool:
    """Whether they are all of a run."""
    return bool(lines) and lines[-1]["type"] == "final"


def claim(path: Path | None, config: Config, stack: ExitStack) -> tuple[list[Line], dict[str, Any] | None]:
    """What `read_saved` finds; where that is not the whole run, the record is locked until the stack closes."""
    if path is None:
        return [], None
    # before the lock: a finished record may lie where nothing can be written
    if not is_finished((found := read_saved(path, config))[0]):
        stack.enter_context(checkpoint.locked(path))
        found = read_saved(path, config)
    return found


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
