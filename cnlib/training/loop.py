"""The training loop: every experiment of the book goes through `train`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from cnlib.data import ImageData
from cnlib.data import load as load_data
from cnlib.norm import synchronize
from cnlib.training import checkpoint, distributed, records
from cnlib.training.allocator import keep_freed_memory
from cnlib.training.build import check
from cnlib.training.config import Config
from cnlib.training.metrics import json_number
from cnlib.training.progress import reporter
from cnlib.training.resumable import check_data, claim, is_finished, misfit
from cnlib.training.trainer import TASKS, Trainer


def train(
    config: Config,
    record: str | os.PathLike[str] | None = None,
    *,
    data: ImageData | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    until: float | None = None,
) -> records.Run:
    """Train what `config` says, or go on where a killed run stopped, or return what is recorded.

    record: path of the JSON Lines file; checkpoint and lock lie beside it. None keeps everything in memory.
    data: instead of ``cnlib.data.load(config.dataset)``. progress: None shows a bar where somebody watches.
    until: ``time.monotonic()`` by which to stop: no epoch starts after it, nor one that would end later if it took as
    long as the one before. The run is then "unfinished".
    Raises ValueError where `record` holds another configuration, other data or no run at all, checkpoint.Busy where
    another process writes it.
    A loss that is no longer finite ends the run with status "diverged". On the CPU the process keeps the memory that is
    freed from now on (see `keep_freed_memory`; CNLIB_KEEP_MEMORY=0 leaves it as it was).

    Started by torchrun, all processes share the run: each calls this with the same arguments and trains on its part of
    every batch. The numbers are those of one process, up to rounding. An error in one process ends all, as SystemExit.

    On the CPU a resumed run is the uninterrupted one, bit for bit, in metrics and weights, at equal numbers of threads.
    On another kind of device than before it goes on with random numbers of its own.
    """
    device = distributed.start(device)
    if device.type == "cpu":
        keep_freed_memory()
    path = None if record is None else Path(record)
    with distributed.together(), ExitStack() as stack:
        _end_as_by_hand(path, stack)
        _check_processes(config)
        lines, state = distributed.from_leader(lambda: claim(path, config, stack))
        if path and is_finished(lines):
            if distributed.leader():
                checkpoint.clear(path)
            if data is not None:
                distributed.from_leader(lambda: check_data(path, lines, data))
            return records.as_run(path.stem, lines)
        return _train(config, path, lines, state, data, device, progress, until)


def fetch(name: str) -> ImageData:
    """``cnlib.data.load``; of several processes the first goes ahead, since it may have to download."""
    with distributed.together():
        distributed.from_leader(lambda: load_data(name) and None)
        return load_data(name)


def _trainer(config: Config, data: ImageData, device: torch.device, state: Any, saved: Path | None) -> Trainer:
    """The run as it is to go on. ValueError where the checkpoint is none of this model."""
    if state is None:
        return TASKS[config.task](config, data, device)
    try:
        trainer = TASKS[config.task](config, data, device, state)
        if wrong := misfit(state, trainer):
            raise ValueError(wrong)
        return trainer
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ValueError(f"checkpoint {saved} does not fit this run ({reason}): {checkpoint.WAY_OUT}") from error


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does."""


def _end_as_by_hand(path: Path | None, stack: ExitStack) -> None:
    """Until the stack closes, SIGTERM is raised as an exception where nobody else handles it. Of several processes each
    still ends at once: it may be waiting for another."""
    alone = distributed.size() == 1 and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(*_: object) -> None:
        kept = f"finished epochs are in {path}: the same call goes on from there" if path else "nothing is recorded"
        raise Terminated(f"terminated; {kept}")

    signal.signal(signal.SIGTERM, end)
    stack.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL)


def _check_processes(config: Config) -> None:
    for rank, other in enumerate(distributed.from_all(config)):
        if other != config:
            raise ValueError(f"process {rank} is to train another configuration: {other.difference(config)}")
    if config.batch_size < distributed.size():
        raise ValueError(f"batch_size={config.batch_size}: expected at least one image for each of the processes")


def _train(
    config: Config,
    path: Path | None,
    lines: list[records.Line],
    state: dict[str, Any] | None,
    data: ImageData | None,
    device: torch.device,
    progress: bool | None,
    until: float | None,
) -> records.Run:
    clock = time.perf_counter()
    check(config, TASKS)
    name = path.stem if path else f"{config.method}-s{config.seed}"
    with ExitStack() as stack:
        # the caller's random numbers are none of our business: they go on as if nothing had been drawn here
        stack.callback(checkpoint.set_rng_state, checkpoint.rng_state(device), device)
        images = fetch(config.dataset) if data is None else data
        if path and lines:
            distributed.from_leader(lambda: check_data(path, lines, images))
        saved = path.with_suffix(".pt") if path else None
        trainer = _trainer(config, images.subset(config.train_size, config.test_size), device, state, saved)
        begun = {
            "provenance": records.provenance(device, images.checksum),
            "contexts_seconds": trainer.contexts_seconds,
            "setup_seconds": time.perf_counter() - clock,
        }
        if state:
            lines.append({"type": "resume", "after_epoch": trainer.epoch, **begun})
        else:  # a record without its checkpoint starts again
            header = {"type": "header", "config": config.to_dict(), "headline": trainer.HEADLINE}
            lines = [header | begun]
        report, close = reporter(config.epochs, name, progress if distributed.leader() else False)
        stack.callback(close)
        clock = time.perf_counter()
        # each clock is a little different: one decides
        while not (trainer.done or _diverged(lines) or distributed.from_leader(lambda: _too_late(lines, until))):
            metrics = trainer.run_epoch()
            # since the row before: writing that row and its checkpoint is in here, nothing is left out
            before, clock = clock, time.perf_counter()
            row = {key: json_number(value) for key, value in metrics.items()}
            lines.append({"type": "epoch", "epoch": trainer.epoch, **row, "seconds": clock - before})
            records.check_numbers(lines[-1], f"{name}, epoch {trainer.epoch}")
            _write(path, lines, trainer)
            headline = f"{trainer.HEADLINE.replace('_', ' ')} {metrics[trainer.HEADLINE]:.3f}"
            report(trainer.epoch, f"train loss {metrics['train_loss']:.3f}, {headline}")
        if trainer.done or _diverged(lines):
            lines.append(_final_line(trainer, lines))
            _write(path, lines, trainer)
    run = records.as_run(name, lines)
    run.model = synchronize(trainer.tested, False)
    return run


def _final_line(trainer: Trainer, lines: list[records.Line]) -> records.Line:
    status, read = ("diverged", {}) if _diverged(lines) else ("finished", trainer.conclude())
    final = {"type": "final", "status": status, **records.summary(lines), **trainer.memory()}
    return final | {key: json_number(value) for key, value in read.items()}


def _write(path: Path | None, lines: list[records.Line], trainer: Trainer) -> None:
    """The record, and until it is whole the checkpoint to go on from."""
    if path is None or not distributed.leader():
        return
    saved = path.with_suffix(".pt")
    if not is_finished(lines):
        # the checkpoint carries the lines: whichever of the two files a kill leaves behind, they agree again
        checkpoint.save(saved, {"lines": json.dumps(lines), **trainer.state()})
    records.write_lines(path, lines)
    if is_finished(lines):
        saved.unlink(missing_ok=True)  # the record is whole and on disk: nothing reads its checkpoint any more


def _too_late(lines: list[records.Line], until: float | None) -> bool:
    last = next((line["seconds"] for line in reversed(lines) if line["type"] == "epoch"), 0.0)
    return until is not None and time.monotonic() + last > until


def _diverged(lines: list[records.Line]) -> bool:
    rows = [line for line in lines if line["type"] == "epoch"]
    return bool(rows) and rows[-1]["train_loss"] is None
