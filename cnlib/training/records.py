"""One run, one JSON Lines file: a header, a line an epoch, a final line. Written whole and atomically each time."""

from __future__ import annotations

import base64
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cnlib.training import distributed
from cnlib.training.config import Config
from cnlib.training.lines import WAY_OUT, Line, read_lines, write_lines

__all__ = ["Line", "Run", "read", "read_lines", "write_lines"]
HEADLINE = "test_accuracy"  # of records that do not say


@dataclass
class Run:
    """A recorded run.

    epochs: {"epoch", "train_loss", "test_accuracy", ..., "train_seconds"}: one value an epoch, NaN where it was not
    finite; "test_output_mean" and the like (`Observer.summary`): (epochs, T), one value a context.
    status: "finished", "diverged", or "unfinished". headline: the metric by which it is judged. model: the trained
    network, only right after training.
    """

    name: str
    config: Config
    provenance: dict[str, Any]
    epochs: dict[str, np.ndarray]
    status: str
    headline: str = HEADLINE
    final: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None

    @property
    def label(self) -> str:
        """What to write beside a number from this run: its profile ("paper", "reduced", ...)."""
        return self.config.profile

    def predictions(self, reading: str = "test") -> np.ndarray:
        """The predicted class of each image (N,) of a test set after the last epoch, or a ValueError that names the
        readings that are recorded: "test", "test_reestimated", "test_plus", ..."""
        kept = self.final.get("predictions", {})
        if reading not in kept:
            raise ValueError(f"{self.name} keeps no predictions of {reading!r}: it has {', '.join(kept) or 'none'}")
        return unpack(kept[reading])

    def at_end(self, metric: str) -> Any:
        """What was read once, at the end, or else a metric of the last epoch; NaN where the run has neither."""
        return self.final.get(metric, self.epochs.get(metric, [np.nan])[-1])

    def curve(self, metric: str) -> np.ndarray:
        """``epochs[metric]``, or a ValueError that names what is recorded."""
        if metric not in self.epochs:
            raise ValueError(f"{self.name} records no {metric!r}: it has {', '.join(self.epochs) or 'no epoch'}")
        return self.epochs[metric]


def read(path: str | os.PathLike[str]) -> Run:
    """The run recorded in a file. Raises FileNotFoundError, or ValueError for a file that is not a whole record."""
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: remove it")
    return run_of(path, lines)


def run_of(path: Path, lines: list[Line]) -> Run:
    """The run in the lines of a file; ValueError that names the file where they hold none."""
    try:
        check_lines(lines)
        return as_run(path.stem, lines)
    except KeyError as error:
        raise ValueError(f"{path}: not a record of a training run (it lacks {error})") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a record of a training run ({error})") from error


def check_lines(lines: list[Line]) -> None:
    """ValueError with the line where they are not those of one training run, KeyError where they lack a field."""
    header = lines[0]
    config, done = Config.from_dict(header["config"]), 0
    if not isinstance(header["provenance"], dict) or not isinstance(header.get("headline", ""), str):
        raise ValueError("line 1: expected an object as provenance and text as headline")
    for number, line in enumerate(lines[1:], start=2):
        kind = line["type"]
        if kind == "epoch":
            done += 1
            if type(line["epoch"]) is not int or line["epoch"] != done or done > config.epochs:
                raise ValueError(f"line {number} is epoch {line['epoch']!r}: expected {done} of {config.epochs}")
            check_numbers(line, f"line {number}")
        elif kind == "resume":
            if line["after_epoch"] != done:
                raise ValueError(f"line {number} resumes after epoch {line['after_epoch']!r}: expected {done}")
        elif kind == "final":
            if line["status"] not in ("finished", "diverged"):
                raise ValueError(f"line {number}: status {line['status']!r}: expected 'finished' or 'diverged'")
            if line["status"] == "finished" and done < config.epochs and not config.patience:
                raise ValueError(f"line {number} says finished after {done} of {config.epochs} epochs")
        else:
            raise ValueError(f"line {number} is of type {kind!r}: expected epoch, resume or final")


def check_numbers(line: Line, where: str) -> None:
    """ValueError where the line of an epoch holds what a record of it cannot: it is not to be written then."""
    for key, value in line.items():
        if key != "type" and not all(map(_is_number, value if isinstance(value, list) else [value])):
            raise ValueError(f"{where}: {key}={value!r:.80}: expected a number, null or a list of them")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def as_run(name: str, lines: list[Line]) -> Run:
    header = lines[0]
    rows = [line for line in lines if line["type"] == "epoch"]
    final = next((line for line in lines if line["type"] == "final"), {})
    keys = dict.fromkeys(key for row in rows for key in row if key != "type")
    epochs = {key: np.array([row.get(key) for row in rows], dtype=float) for key in keys}
    return Run(
        name=name,
        config=Config.from_dict(header["config"]),
        provenance=header["provenance"],
        epochs=epochs,
        status=final.get("status", "unfinished"),
        headline=header.get("headline", HEADLINE),
        final={key: value for key, value in final.items() if key not in ("type", "status")},
    )


def summary(lines: list[Line]) -> dict[str, Any]:
    """The running best of the headline metric, and the sum of all seconds. On a test set the best chooses its epoch by
    that set; where there are validation images, `chosen_epoch` is the best by them."""
    rows = [line for line in lines if line["type"] == "epoch"]
    seconds = sum(line.get("seconds", 0) + line.get("setup_seconds", 0) for line in lines)
    name = lines[0].get("headline", HEADLINE)
    best = best_row(rows, name)
    if best is None:
        return {"seconds": seconds}
    chosen = best_row(rows, name.replace("test", "val", 1)) if name.startswith("test") else None
    known = {f"best_{name}": best[name], "best_epoch": best["epoch"], "seconds": seconds}
    return known | ({"chosen_epoch": chosen["epoch"]} if chosen else {})


def best_row(rows: list[Line], metric: str) -> Line | None:
    """The first row with the best finite value of a metric, the least of a loss; None where there is none."""
    sign = -1 if metric.endswith("loss") else 1
    known = [row for row in rows if row.get(metric) is not None]
    return max(known, key=lambda row: sign * row[metric], default=None)


def pack(predictions: torch.Tensor) -> str:
    """Class numbers (N,) as text: 16 bits each, compressed, in base 64."""
    return base64.b64encode(zlib.compress(predictions.numpy().astype("<u2").tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """What `pack` wrote, (N,) int64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u2").astype(np.int64)


def read_columns(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Line, dict[str, np.ndarray]]:
    """The header of a record of images, and what it keeps of each image, unpacked: {key: (N,) int64}.

    Raises FileNotFoundError, or ValueError that names the file where it is damaged or lacks a required column.
    """
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty or cut short: {WAY_OUT}")
    header = lines[0]
    if missing := [key for key in ("data", *required) if key not in header]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {WAY_OUT}")
    columns = {}
    for key in (*required, *(key for key in optional if key in header)):
        try:
            columns[key] = unpack(header[key])
        except (TypeError, ValueError, zlib.error) as error:
            raise ValueError(f"{path}: {key} is not what `pack` writes ({error}): {WAY_OUT}") from error
    return header, columns


def provenance(device: torch.device, data_checksum: str) -> dict[str, Any]:
    """What besides the configuration can move a number: versions, device, threads, data."""
    from cnlib import __version__

    return {
        "cnlib": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str subclass there
        "numpy": np.__version__,
        "platform": sys.platform,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        "data": data_checksum,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("model name"):
                    return f"cpu: {line.split(':', 1)[1].strip()}"
    return f"{device.type}: {platform.machine()}"


@cache
def _commit() -> str | None:
    """The last commit that touched the package, "-dirty" where files differ from it; None outside its repository.

    Asked once a process: files may change under a long sweep, the code it has loaded does not.
    """
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if commit := git("log", "-1", "--format=%h", "--", "."):
            changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
            return commit + ("-dirty" if changed else "")
    return None
