"""A run's state after its last whole epoch, on disk; and a lock, so that two processes never share a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cnlib.storage import write_atomic


def save(path: Path, state: dict[str, Any]) -> None:
    """Plain types and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it can execute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any] | None:
    """The state, on the CPU; None where there is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"checkpoint {path} is damaged ({reason}): remove it to start this run again") from error


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

    Raises Busy where another process holds it, OSError where the file system has no locks. Without fcntl (Windows)
    nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    path = record.with_suffix(".lock")
    while True:
        with open(path, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"{record} is being written by another process: wait for it, or stop it") from error
            except OSError as error:
                raise OSError(
                    f"{path} cannot be locked ({error}): this file system has no locks; record on another one, "
                    "such as a local disk, and copy the records"
                ) from error
            if not _is_at(file.fileno(), path):
                continue  # its holder removed it after we had opened it: others would lock a new file
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # while it is held
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
