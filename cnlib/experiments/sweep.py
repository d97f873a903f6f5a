"""Run many configurations into one folder of records: what is recorded is skipped, what was killed goes on."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from cnlib.data import load
from cnlib.training import Busy, Config, Trainer, read, train


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
    start = time.monotonic()
    until = None if minutes is None else start + 60 * minutes
    for i, (name, config) in enumerate(configs.items(), start=1):
        clock = time.monotonic()
        record = Path(out) / f"{name}.jsonl"
        try:
            if recorded(config, record):
                results[name] = "recorded"
                continue
            if until is not None and clock > until:
                results[name] = "not started"
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
        print(f"[{i}/{len(configs)}] {name}: {run.status}{accuracy}, {time.monotonic() - clock:.0f} s", flush=True)
    return results


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
