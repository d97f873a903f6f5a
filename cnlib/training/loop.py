"""The training loop: every experiment of the book goes through `train`."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from cnlib.data import ImageData
from cnlib.data import load as load_data
from cnlib.norm import synchronize
from cnlib.training import checkpoint, distributed, records
from cnlib.training.config import Config
from cnlib.training.metrics import plain
from cnlib.training.progress import reporter
from cnlib.training.trainer import Trainer


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
    until: ``time.monotonic()`` by which to stop; no epoch starts that would end later. The run is then "unfinished".
    Raises ValueError where `record` holds another configuration, checkpoint.Busy where another process writes it.
    A loss that is no longer finite ends the run with status "diverged".

    Started by torchrun, all processes share the run: each calls this with the same arguments and trains on its part of
    every batch. The numbers are those of one process, up to rounding. An error in one process ends all, as SystemExit.

    On the CPU a resumed run is the uninterrupted one, bit for bit, in metrics and weights, at equal numbers of threads.
    """
    device = distributed.start(device)
    path = None if record is None else Path(record)
    with distributed.together(), ExitStack() as stack:
        _check_processes(config)
        if path is not None and (lines := distributed.from_leader(lambda: _take(path, config, stack))):
            return records.as_run(path.stem, lines)
        return _train(config, path, data, device, progress, until)


def _check_processes(config: Config) -> None:
    for rank, other in enumerate(distributed.from_all(config)):
        if other != config:
            raise ValueError(f"process {rank} is to train another configuration: {config.difference(other)}")
    if config.batch_size < distributed.size():
        raise ValueError(f"batch_size={config.batch_size}: expected at least one image for each of the processes")


def _take(path: Path, config: Config, stack: ExitStack) -> list[records.Line]:
    """Lock the record until the stack closes; its lines, where it holds the whole run."""
    stack.enter_context(checkpoint.locked(path))
    lines = records.read_lines(path) if path.exists() else []
    if lines and (other := Config.from_dict(lines[0]["config"])) != config:
        raise ValueError(
            f"{path} records another configuration ({config.difference(other)}): "
            "choose another file, or move that one away"
        )
    return lines if lines and lines[-1]["type"] == "final" else []


def _train(
    config: Config,
    path: Path | None,
    data: ImageData | None,
    device: torch.device,
    progress: bool | None,
    until: float | None,
) -> records.Run:
    mark = time.perf_counter()
    with ExitStack() as stack:
        # the caller's random numbers are none of our business: they go on as if nothing had been drawn here
        stack.callback(checkpoint.set_rng_state, checkpoint.rng_state(device), device)
        saved = path.with_suffix(".pt") if path else None
        state = distributed.from_leader(
            lambda: checkpoint.load(saved, torch.device("cpu")) if saved and saved.exists() else None
        )
        lines: list[records.Line] = json.loads(state["lines"]) if state else []
        if lines and (other := Config.from_dict(lines[0]["config"])) != config:
            raise ValueError(f"{saved} belongs to another configuration ({config.difference(other)}): move it away")
        if data is None:
            distributed.from_leader(lambda: load_data(config.dataset) and None)  # it may have to be fetched: once
            data = load_data(config.dataset)
        trainer = Trainer(config, data.subset(config.train_size, config.test_size), device, state)
        begun = {
            "provenance": records.provenance(device, data.checksum),
            "contexts_seconds": trainer.contexts_seconds,
            "setup_seconds": time.perf_counter() - mark,
        }
        if lines:
            lines.append({"type": "resume", "after_epoch": trainer.epoch, **begun})
        else:
            lines.append({"type": "header", "config": config.to_dict(), **begun})
        name = path.stem if path else f"{config.method}-s{config.seed}"
        report, close = reporter(config.epochs, name, progress if distributed.leader() else False)
        stack.callback(close)
        mark = time.perf_counter()
        # each clock is a little different: one decides
        while (
            trainer.epoch < config.epochs
            and not _diverged(lines)
            and not distributed.from_leader(lambda: _too_late(lines, until))
        ):
            metrics = trainer.run_epoch()
            now = time.perf_counter()
            row = {key: plain(value) for key, value in metrics.items()}
            # since the row before: writing that row and its checkpoint is in here, nothing is left out
            lines.append({"type": "epoch", "epoch": trainer.epoch, **row, "seconds": now - mark})
            mark = now
            if path and saved and distributed.leader():
                # the checkpoint carries the lines: whichever of the two files a kill leaves behind, they agree again
                checkpoint.save(saved, {"lines": json.dumps(lines), **trainer.state()})
                records.write_lines(path, lines)
            report(
                trainer.epoch, f"train loss {metrics['train_loss']:.3f}, test accuracy {metrics['test_accuracy']:.3f}"
            )
        if trainer.epoch == config.epochs or _diverged(lines):
            status = "diverged" if _diverged(lines) else "finished"
            lines.append({"type": "final", "status": status, **records.summary(lines), **trainer.memory()})
            if path and distributed.leader():
                records.write_lines(path, lines)
    run = records.as_run(name, lines)
    run.model = synchronize(trainer.model, False)
    return run


def _too_late(lines: list[records.Line], until: float | None) -> bool:
    last = next((line["seconds"] for line in reversed(lines) if line["type"] == "epoch"), 0.0)
    return until is not None and time.monotonic() + last > until


def _diverged(lines: list[records.Line]) -> bool:
    rows = [line for line in lines if line["type"] == "epoch"]
    return bool(rows) and rows[-1]["train_loss"] is None
