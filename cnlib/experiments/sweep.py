"""Run many configurations into one folder of records: what is recorded is skipped, what was killed goes on."""

import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch

from cnlib.training import Busy, Config, read, train


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
    "failed" (its traceback is printed, the others go on), "not started" once `minutes` have passed: no new run starts
    then, but one that runs is finished.
    """
    results: dict[str, str] = {}
    start = time.monotonic()
    for i, (name, config) in enumerate(configs.items(), start=1):
        record = Path(out) / f"{name}.jsonl"
        clock = time.monotonic()
        if minutes is not None and clock - start > 60 * minutes:
            results[name] = "not started"
            continue
        try:
            if record.exists() and (run := read(record)).config == config and run.status != "unfinished":
                results[name] = "recorded"
                continue
            run = train(config, record, device=device, progress=progress)
        except Busy:
            results[name] = "busy"
            continue
        except Exception:
            traceback.print_exc()
            results[name] = "failed"
            continue
        results[name] = run.status
        accuracy = run.epochs["test_accuracy"][-1]
        spent = time.monotonic() - clock
        print(f"[{i}/{len(configs)}] {name}: {run.status}, test accuracy {accuracy:.4f}, {spent:.0f} s", flush=True)
    return results


def command(configs: Callable[[str, int | None], Mapping[str, Config]], profiles: Iterable[str], about: str) -> None:
    """The command line of an experiment: `configs(profile, seeds)` gives what to run. Exit code 1: a run failed."""
    import typer

    known = ", ".join(profiles)

    def experiment(
        out: Annotated[Path, typer.Option(help="folder of the records; what is there already is not run again")],
        profile: Annotated[str, typer.Option(help=f"sizes: {known}")] = "smoke",
        seeds: Annotated[int | None, typer.Option(help="how many; by default the profile's own number")] = None,
        device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
        threads: Annotated[int, typer.Option(help="of the CPU; sums depend on it in the last bit")] = 2,
        minutes: Annotated[float | None, typer.Option(help="start no new run after this many")] = None,
    ) -> None:
        if profile not in known.split(", "):
            raise typer.BadParameter(f"{profile!r}: expected one of {known}", param_hint="--profile")
        torch.set_num_threads(threads)
        results = sweep(configs(profile, seeds), out, device=device, minutes=minutes)
        counts = Counter(results.values())
        print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
        raise typer.Exit(int("failed" in counts))

    experiment.__doc__ = about
    typer.run(experiment)
