"""Run many configurations into one folder of records: what is recorded is skipped, what was killed goes on."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cnlib.data import ImageData, load
from cnlib.training import TASKS, Busy, Config, check, checkpoint, distributed, train
from cnlib.training.loop import fetch
from cnlib.training.resumable import is_finished, read_saved

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
    if wrong := [name for name in configs if len(name) > 200 or not re.fullmatch(r"\w[\w.=+-]*", name)]:
        raise ValueError(f"{wrong[0]!r} cannot name a record: expected up to 200 letters, digits and any of . _ = + -")
    results: dict[str, str] = {}
    distributed.start(device)  # where torchrun started several processes, they share each run
    start = time.monotonic()
    until = None if minutes is None else start + 60 * minutes
    data, reported = remembering(fetch), set[str]()
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
                print(f"error: {name}: {'as above' if str(error) in reported else error}", file=sys.stderr, flush=True)
            reported.add(str(error))
            results[name] = "failed"
            continue
        except Exception as error:
            print(f"error: {name}: {type(error).__name__}", file=sys.stderr, flush=True)
            traceback.print_exc()
            results[name] = "failed"
            continue
        results[name] = run.status
        last = f", {run.headline.replace('_', ' ')} {run.epochs[run.headline][-1]:.4f}" if run.epochs else ""
        if distributed.leader():
            print(f"[{i}/{len(configs)}] {name}: {run.status}{last}, {time.monotonic() - clock:.0f} s", flush=True)
            if run.status == "unfinished" and minutes is not None:
                _say_if_never(name, run.epochs, 60 * minutes)
    return results


def _say_if_never(name: str, epochs: Mapping[str, np.ndarray], given: float) -> None:
    seconds = epochs["seconds"][-1] if "seconds" in epochs else 0
    if seconds > given:
        print(
            f"{name} does not get on: an epoch took {seconds:.1f} s, and there are {given:.1f} s: give it more time",
            file=sys.stderr,
            flush=True,
        )


def _reason_to_skip(config: Config, record: Path, until: float | None) -> str | None:
    if recorded(config, record):
        checkpoint.clear(record)
        return "recorded"
    return "not started" if until is not None and time.monotonic() > until else None


def recorded(config: Config, record: Path) -> bool:
    """Whether the file holds the whole run of this configuration; if not, it is to run.

    Raises ValueError where it cannot run: the record, or its checkpoint, is damaged or of another configuration.
    """
    return is_finished(read_saved(record, config)[0])


def remembering(function: Callable[[str], ImageData]) -> Callable[[str], ImageData]:
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
    """Seconds this run will take here, without fitting contexts: two steps are timed on the device, and scaled up; or
    an epoch, of a task that needs all images (`Trainer.WHOLE`).

    data: instead of ``cnlib.data.load(config.dataset)``, whose errors are raised.
    """
    check(config, TASKS)
    data = data or load(config.dataset)
    # the sizes are those of the run, cut alike in the data and in the configuration
    whole = data.subset(config.train_size, config.test_size)
    held_out = min(config.validation, config.batch_size)
    images = len(whole.train_labels)
    if (trained := images - config.validation) < 1:
        raise ValueError(f"validation={config.validation}: expected less than the {images} training images")
    task = TASKS[config.task]
    length = {**task.OPTIONS, **dict(config.options)}.get(task.LENGTH)
    # where steps are counted, a batch may have several times its size of one domain
    count = (16 if length else 2) * config.batch_size
    few = min(trained, count) + held_out, min(len(whole.test_labels), config.batch_size)
    if task.WHOLE:
        few = len(whole.train_labels), len(whole.test_labels)
    part = whole.subset(*few)
    small = replace(config, train_size=few[0], test_size=few[1], validation=held_out)
    trainer = task(small, part, torch.device(device))
    steps = trainer.epoch_steps()
    if length:
        trainer.options[task.LENGTH] = max(1, 2 * length // steps)
    trainer.run_epoch()  # allocations, autotuning, compilation
    metrics = trainer.run_epoch()
    times = steps / trainer.epoch_steps() if length else trained / (few[0] - held_out)
    return config.epochs * (
        metrics["train_seconds"] * times + metrics["eval_seconds"] * len(whole.test_labels) / few[1]
    )
