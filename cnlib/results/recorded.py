"""Where recorded runs are, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cnlib.training.records import Run, read

if TYPE_CHECKING:
    import pandas as pd

RUNS = Path(__file__).parent / "runs"


def experiments() -> list[str]:
    """Experiments with runs recorded in the package."""
    return sorted(folder.name for folder in RUNS.iterdir() if any(folder.glob("*.jsonl"))) if RUNS.is_dir() else []


def load(experiment: str | os.PathLike[str], profile: str | None = None) -> list[Run]:
    """The recorded runs of an experiment, sorted by name; `experiment` may also be a folder of your own records.

    profile: only runs of that profile. Unfinished runs are included: look at `Run.status`.
    Raises ValueError where there are none.
    """
    folder = RUNS / experiment if (RUNS / experiment).is_dir() else Path(experiment)
    runs = [read(path) for path in sorted(folder.glob("*.jsonl"))]
    runs = [run for run in runs if profile in (None, run.config.profile)]
    if not runs:
        what = f"of profile {profile!r} " if profile else ""
        raise ValueError(f"no runs {what}recorded as {experiment!s}: there are {', '.join(experiments()) or 'none'}")
    return runs


def method(run: Run) -> str:
    """The part of a run's name before the seed: "cn-random" for "cn-random-s2"."""
    return run.name.removesuffix(f"-s{run.config.seed}")


def to_frame(runs: list[Run]) -> pd.DataFrame:
    """One row an epoch and run: method, seed, profile, epoch, metrics. Needs pandas."""
    import pandas as pd

    frames = [
        pd.DataFrame(run.epochs).assign(run=run.name, method=method(run), seed=run.config.seed, profile=run.label)
        for run in runs
    ]
    return pd.concat(frames, ignore_index=True)
