"""A run's state after its last whole epoch, on disk; and a lock, so that two processes never share a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cnlib.files import write_atomic


def save(path: Path, state: dict[str, Any]) -> None:
    """Plain types and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it can execute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: torch.save(state, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({type(error).__name__}: {error}): remove it to start this run again"
        ) from error


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's global generators: of the CPU, and of the device where it has its own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type in state and device.type != "cpu":  # absent where the run began on another device
        getattr(torch, device.type).set_rng_state(state[device.type].cpu())


class Busy(RuntimeError):
    """Another process is training this run."""


@contextmanager
def locked(record: Path) -> Iterator[None]:
    """Hold `record` for this process. The system frees the lock when the process ends, however it ends.

    Raises Busy where another process holds it. Without fcntl (Windows) there is no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    path = record.with_suffix(".lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{record} is being written by another process: wait for it, or stop it") from error
        yield
    path.unlink(missing_ok=True)
