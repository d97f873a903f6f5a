"""What the command line takes: text that becomes a value, or an error that says what was expected."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import torch

MOST_SEEDS, MOST_THREADS = 100, 1024
# of fields of a configuration: beyond, a machine lacks the memory, float32 the range, or nothing is printed for days
MOST: dict[str, float] = {
    "num_contexts": 1000,
    "width": 16,
    "lr": 1e6,
    "weight_decay": 1e6,
    "momentum": 1e6,
    "epochs": 10**6,
    "batch_size": 2**16,
    "crop": 64,
    "warmup": 10**9,
    "validation": 10**9,
    "patience": 10**6,
    "train_size": 10**9,
    "test_size": 10**9,
}
OWN_OPTIONS = ("method", "seed", "profile")  # not to be set twice


def duration(text: str) -> float:
    """Minutes in "8min", "90s", "1h30min"."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not match or not text.strip():
        raise typer.BadParameter(f"{text!r}: expected a time such as 90s, 8min or 1h30min")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 60 * hours + minutes + seconds / 60


def change(text: str) -> tuple[str, Any]:
    """("epochs", 3) from "epochs=3"."""
    from cnlib.training import Config

    name, sign, value = text.partition("=")
    if not sign or name not in {field.name for field in fields(Config)}:
        known = ", ".join(field.name for field in fields(Config))
        raise typer.BadParameter(f"{text!r}: expected FIELD=VALUE with a field of the configuration: {known}")
    if name in OWN_OPTIONS:
        raise typer.BadParameter(f"{text!r}: {name} has an option of its own: --{name} {value}")
    if name == "placement":
        return name, slots(value)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value


def slots(text: str) -> tuple[str, ...]:
    """("conv2", "conv3") from "conv2,conv3"."""
    names = tuple(text.split(","))
    if not all(names):
        raise typer.BadParameter(f"{text!r}: expected slots of the model, as in conv2,conv3")
    return names


def folder(text: str) -> Path:
    """The path of a folder, which need not exist yet."""
    path = Path(text)
    try:
        if not text.strip() or "\0" in text:
            raise typer.BadParameter(f"{text!r}: expected a folder")
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:
        raise typer.BadParameter(f"{text[:80]!r}: expected a folder ({error.strerror})") from error
    if not there.is_dir():
        raise typer.BadParameter(f"{str(there)!r} is a file: expected a folder")
    return path


def usable_device(name: str, known: Sequence[str]) -> torch.device:
    """The device of that name, one of those `known`, where torch can use it here."""
    import torch

    if name.partition(":")[0] not in known:
        raise typer.BadParameter(f"{name!r}: expected one of {', '.join(known)}", param_hint="--device")
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # AssertionError, RuntimeError and more, by the kind of device
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used here: {reason}", param_hint="--device") from error


@contextmanager
def explained() -> Iterator[None]:
    """Errors whose message says what to do, as wrong usage."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def check_size(config: Any) -> None:
    for name, most in MOST.items():
        if (value := getattr(config, name)) is not None and value > most:
            raise ValueError(f"{name}={str(value)[:80]}: expected at most {most:,}")
    images = config.train_size
    if images is not None and config.contexts != "none" and config.num_contexts > images:
        raise ValueError(f"num_contexts={config.num_contexts}: expected at most the {images} images of train_size")


def check_dataset(name: str) -> None:
    from cnlib import data

    try:
        data.root()
    except ValueError:
        return  # said when it is loaded: digits do without
    known = data.names()
    for part in name.split("+"):
        if part not in known and not data.folder_of(part).is_dir():
            raise ValueError(f"no data set {part!r}: expected one of {', '.join(known)}, or several joined with +")
