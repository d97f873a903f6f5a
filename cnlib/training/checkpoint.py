"""A run's state after its last whole epoch, on disk; and a lock, so that two processes never share a run."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from cnlib.storage import NOFOLLOW, clear_temporary, write_atomic

STATE_SIZES = (16, 5056)  # bytes of a generator's state, on CUDA and on the CPU
WAY_OUT = "remove it to start this run again"


def save(path: Path, state: dict[str, Any]) -> None:
    """Plain types and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it can execute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # on a full disk torch itself raises RuntimeError
    torch.save(state, content)
    write_atomic(path, lambda file: file.write(content.getbuffer()))


def load(path: Path) -> dict[str, Any] | None:
    """The state, on the CPU; None where there is none. ValueError where a byte of it is not as it was written, or where
    it is no state of a run."""
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        with zipfile.ZipFile(content) as archive:
            if damaged := archive.testzip():  # torch does not look at the checksums in it
                raise ValueError(f"checksum of {damaged}")
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"checkpoint {path} is damaged ({reason}): {WAY_OUT}") from error
    if wrong := _wrong(state):
        raise ValueError(f"{path} is not the checkpoint of a run ({wrong}): {WAY_OUT}")
    return cast(dict[str, Any], state)


def _wrong(state: Any) -> str | None:
    """What does not fit SCHEMA; None where all does."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}, expected a dict"
    for key, (expected, fits) in SCHEMA.items():
        if key not in state and key not in OPTIONAL:
            return f"it lacks {key!r}"
        if key in state and not fits(state[key]):
            return f"{key!r} is not {expected}"
    return None


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def _are_generators(value: Any) -> bool:
    return _are_tensors(value) and all(v.dtype == torch.uint8 and v.ndim == 1 for v in value.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_optimizer(value: Any) -> bool:
    keys = {"state": dict, "param_groups": list}
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in keys.items())


def _is_best(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    number = type(value.get("value")) in (int, float)
    return number and _is_count(value.get("epoch")) and isinstance(value.get("model"), dict)


# what `Trainer.state` returns, and the lines of the record: what is expected, and whether a value is that
SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lines": ("text", lambda v: isinstance(v, str)),
    "epoch": ("a number above 0", lambda v: _is_count(v) and v > 0),
    "steps": ("a number of steps", _is_count),
    "model": ("a state dict", lambda v: isinstance(v, dict) and bool(v) and all(isinstance(k, str) for k in v)),
    "optimizer": ("a state of an optimizer", _is_optimizer),
    "average": ("a state dict or None", lambda v: v is None or isinstance(v, dict)),
    "best": ("a best epoch with its weights", _is_best),
    "generators": ("states of generators, by name", _are_generators),
    "rng": ("states of generators, that of cpu too", lambda v: _are_generators(v) and "cpu" in v),
    "contexts": ("tensors by name", _are_tensors),
}
OPTIONAL = ("steps", "best")  # of older versions


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


def set_generators(owner: object, states: dict[str, torch.Tensor], seeds: tuple[int, ...]) -> None:
    """Set the generators that are attributes of `owner`.

    A state of another kind of device means nothing here: those generators get new numbers, from `seeds`. ValueError for
    other names than those of the generators, and for states of no known size.
    """
    known = {name: value for name, value in vars(owner).items() if isinstance(value, torch.Generator)}
    if states.keys() != known.keys():
        raise ValueError(f"generators {', '.join(states) or 'none'}, expected {', '.join(known) or 'none'}")
    for name, generator in known.items():
        size, expected = len(states[name]), len(generator.get_state())
        if size == expected:
            generator.set_state(states[name].cpu())
        elif size in STATE_SIZES or generator.device.type not in ("cpu", "cuda"):
            generator.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        else:
            raise ValueError(f"the state of {name} has {size} bytes, expected {expected}")


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
        with _opened(path) as file:
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
                for mine in (record, record.with_suffix(".pt")):
                    clear_temporary(mine)  # who holds the lock alone writes them
                yield
            finally:
                path.unlink(missing_ok=True)  # while it is held
            return


def clear(record: Path) -> None:
    """Remove the lock and the temporary files that a killed process left beside a finished record."""
    left = f".{record.name}.", f".{record.with_suffix('.pt').name}."
    if record.with_suffix(".lock").is_file() or any(
        other.name.startswith(left) and other.suffix == ".tmp" for other in record.parent.iterdir()
    ):
        with suppress(OSError, Busy), locked(record):
            pass


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "ab", opener=lambda name, flags: os.open(name, flags | NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "is a link, expected a lock of ours: remove it", os.fspath(path)) from error
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
