"""Run many configurations into one folder of records: what is recorded is skipped, what was killed goes on."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from cnlib.data import ImageData, load
from cnlib.training import TASKS, Busy, Config, distributed, train
from cnlib.training.loop import fetch, look, whole

EXPLAINED = (ImportError, OSError, ValueError)  # their message says what to do: no traceback


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
    "failed" (why is printed, the others go on; data that could not be loaded are not asked for again). After `minutes`
    everything stops at the end of an epoch: the run under way is "unfinished" and goes on the next time, later ones are
    "not started".
    """
    results: dict[str, str] = {}
    distributed.start(device)  # where torchrun started several processes, they share each run
    start = time.monotonic()
    until = None if minutes is None else start + 60 * minutes
    data, said = once(fetch), set[str]()
    for i, (name, config) in enumerate(configs.items(), start=1):
        clock = time.monotonic()
        record = Path(out) / f"{name}.jsonl"
        try:
            if skip := distributed.from_leader(partial(_reason_to_skip, config, record, until)):
                results[name] = skip
                continue
            run = train(config, record, data=data(config.dataset), device=device, progress=progress, until=until)
        except Busy:
            results[name] = "busy"
            continue
        except EXPLAINED as error:
            if distributed.leader():
                print(f"error: {name}: {'as above' if str(error) in said else error}", file=sys.stderr, flush=True)
            said.add(str(error))
            results[name] = "failed"
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
    """Whether the file holds the whole run of this configuration; if not, it is to run.

    Raises ValueError where it cannot run: the record, or its checkpoint, is damaged or of another configuration.
    """
    return whole(look(record, config)[0])


def once(function: Callable[[str], ImageData]) -> Callable[[str], ImageData]:
    """`function`, called once for each argument; what it raised is raised again."""
    outcomes: dict[str, ImageData | Exception] = {}

    def remembered(name: str) -> ImageData:
        if name not in outcomes:
            try:
                outcomes[name] = function(name)
            except Exception as error:
                outcomes[name] = error
        if isinstance(outcome := outcomes[name], Exception):
            raise outcome
        return outcome

    return remembered


def estimate(config: Config, device: str = "cpu", data: ImageData | None = None) -> float:
    """Seconds this run will take here, without fitting contexts: two steps are timed on the device, and scaled up.

    data: instead of ``cnlib.data.load(config.dataset)``, whose errors are raised.
    """
    data = data or load(config.dataset)
    train_size = config.train_size or len(data.train_labels)
    test_size = config.test_size or len(data.test_labels)
    steps = min(2, max(1, train_size // config.batch_size))
    few = min(train_size, steps * config.batch_size), min(test_size, config.batch_size)
    trainer = TASKS[config.task](config, data.subset(*few), torch.device(device))
    trainer.run_epoch()  # allocations, autotuning, compilation
    metrics = trainer.run_epoch()
    per_epoch = metrics["train_seconds"] * train_size / few[0] + metrics["eval_seconds"] * test_size / few[1]
    return config.epochs * per_epoch
