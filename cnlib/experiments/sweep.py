"""Run many configurations into one folder of records: what is recorded is skipped, what was killed goes on."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cnlib.data import load
from cnlib.training import Busy, Config, Trainer, distributed, read, train


def sweep(
    configs: Mapping[str, Config],
    out: str | os.PathLike[str],
    *,
    device: str = "cpu",
    minutes: float | None = None,
    progress: bool | None = None,
) -> dict[str, str]:
    """Train every configuration {name: config}, in order, into ``out/<name>.jsonl``; say how each ended.

    "finished" / "diverged" now, "recorded" before, "busy" (another process has it: several may share the folder),
    "failed" (its traceback is printed, the others go on). After `minutes` everything stops at the end of an epoch:
    the run under way is "unfinished" and goes on the next time, later ones are "not started".
    """
    results: dict[str, str] = {}
    distributed.start(device)  # where torchrun started several processes, they share each run
    start = time.monotonic()
    until = None if minutes is None else start + 60 * minutes
    for i, (name, config) in enumerate(configs.items(), start=1):
        clock = time.monotonic()
        record = Path(out) / f"{name}.jsonl"
        try:
            if skip := distributed.from_leader(partial(_reason_to_skip, config, record, until)):
                results[name] = skip
                continue
            run = train(config, record, device=device, progress=progress, until=until)
        except Busy:
            results[name] = "busy"
            continue
        except Exception:
            traceback.print_exc()
            results[name] = "failed"
            continue
        results[name] = run.status
        accuracy = f", test accuracy {run.epochs['test_accuracy'][-1]:.4f}" if run.epochs else ""
        if distributed.leader():
            print(f"[{i}/{len(configs)}] {name}: {run.status}{accuracy}, {time.monotonic() - clock:.0f} s", flush=True)
    return results


def _reason_to_skip(config: Config, record: Path, until: float | None) -> str | None:
    if recorded(config, record):
        return "recorded"
    return "not started" if until is not None and time.monotonic() > until else None


def recorded(config: Config, record: Path) -> bool:
    """Whether the file holds the whole run of this configuration."""
    return record.exists() and (run := read(record)).config == config and run.status != "unfinished"


def estimate(config: Config, device: str = "cpu") -> float:
    """Seconds this run will take here, without fitting contexts: two steps are timed on the device, and scaled up.

    Raises what `cnlib.data.load` raises where the data cannot be had.
    """
    data = load(config.dataset)
    train_size = config.train_size or len(data.train_labels)
    test_size = config.test_size or len(data.test_labels)
    steps = min(2, max(1, train_size // config.batch_size))
    few = min(train_size, steps * config.batch_size), min(test_size, config.batch_size)
    trainer = Trainer(replace(config, epochs=2), data.subset(*few), torch.device(device))
    trainer.run_epoch()  # allocations, autotuning, compilation
    metrics = trainer.run_epoch()
    per_epoch = metrics["train_seconds"] * train_size / few[0] + metrics["eval_seconds"] * test_size / few[1]
    return config.epochs * per_epoch
