"""Where recorded runs are, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cnlib.records import RECORDS
from cnlib.training import Config, Run, read

if TYPE_CHECKING:
    import pandas as pd

RUNS = RECORDS / "runs"


def experiments() -> list[str]:
    """Experiments with runs recorded in the package."""
    return sorted(folder.name for folder in RUNS.iterdir() if any(folder.glob("*.jsonl"))) if RUNS.is_dir() else []


def names_in(folder: Path) -> str:
    """The records in a folder, to read: "cifar10, cifar100", or "none"."""
    return ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"


def load(experiment: str | os.PathLike[str], profile: str | None = None) -> list[Run]:
    """The runs of an experiment recorded in the package, or those in a folder of your own, sorted by name.

    experiment: a str that is one of `experiments()`; any other str, and every Path, is a folder.
    profile: only runs of that profile. Unfinished runs are included: look at `Run.status`.
    Raises ValueError where there are none.
    """
    folder = RUNS / experiment if experiment in experiments() else Path(experiment)
    if not folder.is_dir():
        known = ", ".join(experiments()) or "none"
        raise ValueError(f"no folder {folder.absolute()}, nor runs of that name in the package, which has {known}")
    if not (paths := sorted(folder.glob("*.jsonl"))):
        raise ValueError(f"no records in {folder.absolute()}: expected files called *.jsonl")
    runs = [run for run in map(read, paths) if profile in (None, run.config.profile)]
    if not runs:
        raise ValueError(f"no runs of profile {profile!r} among the {len(paths)} in {folder.absolute()}")
    return runs


def select(runs: Sequence[Run], **fields: object) -> list[Run]:
    """The runs whose configuration has these values, e.g. select(runs, dataset="cifar10", method=("bn", "cn")).

    Several values, as a set or a tuple of them, take any; a placement is one tuple.
    """
    if unknown := set(fields) - set(Config.__dataclass_fields__):
        known = ", ".join(Config.__dataclass_fields__)
        raise ValueError(
            f"select: {', '.join(sorted(unknown))} is no field of a configuration: expected one of {known}"
        )

    def fits(run: Run, name: str, wanted: object) -> bool:
        value = getattr(run.config, name)
        return value in wanted if isinstance(wanted, tuple | set) and name != "placement" else value == wanted

    return [run for run in runs if all(fits(run, name, value) for name, value in fields.items())]


def by_method(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """{method: {seed: run}}, in the order given. Raises ValueError where two runs of a method share the seed, or differ
    in something else (profile, learning rate, data), which an average over seeds must not mix."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault(run.config.method, {})
        twin = seeds.setdefault(run.config.seed, run)
        other = next(iter(seeds.values())) if twin is run else twin
        how = _difference(run, other)
        if twin is not run or how:
            seed = f"with seed {run.config.seed}" if twin is not run else "in other settings"
            raise ValueError(
                f"runs {other.name} and {run.name} are both {run.config.method!r} {seed} "
                f"({how or 'nothing differs: it is there twice'}): select one setting first"
            )
    return groups


def _difference(run: Run, other: Run) -> str:
    """In what two runs differ besides their seeds: "lr: 0.001, not 0.005"."""
    parts = [replace(run.config, seed=other.config.seed).difference(other.config), other_data(run, other)]
    return "; ".join(part for part in parts if part)


def other_data(run: Run, other: Run) -> str:
    """The checksums of the images of two runs where these differ, or ""."""
    ours, theirs = (one.provenance.get("data") for one in (run, other))
    return f"data: checksum {ours}, not {theirs}" if ours and theirs and ours != theirs else ""


def to_frame(runs: list[Run]) -> pd.DataFrame:
    """One row an epoch and run: method, seed, profile, epoch, metrics of the whole test set. Needs pandas."""
    import pandas as pd

    frames = [
        pd.DataFrame({key: curve for key, curve in run.epochs.items() if curve.ndim == 1}).assign(
            run=run.name, method=run.config.method, seed=run.config.seed, profile=run.label
        )
        for run in runs
    ]
    return pd.concat(frames, ignore_index=True)
