"""Every published number beside ours: mean, interval, verdict, and the command that runs it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cnlib.experiments import EXPERIMENTS
from cnlib.results.intervals import LATE, Difference, Interval, interval, reestimated, t_power, value_at
from cnlib.results.papers import published, tables
from cnlib.results.runs import experiments, load
from cnlib.sweeps import Experiment, Printed
from cnlib.training import Config, Run

VERDICTS = {
    "inside": "the printed difference lies inside our interval and 0 does not; where the papers print less than a "
    "tenth of a point, the interval lies inside plus or minus one point. For the baseline, at the paper's size only: "
    "the printed value could be one more seed of ours",
    "outside": "the printed difference lies outside our interval, above it or below: at this size a true difference of "
    "exactly that size is excluded. For the baseline: the printed value is none of ours",
    "undecided": "our interval contains both, or its readings disagree: these seeds at this size cannot tell",
    "baseline": "with which the others are compared, or one that has no printed baseline; below the paper's size",
    "not yet run": "no recorded runs; of CN+, none read with statistics that fit it",
}
SHORT = {"weight_decay": "wd"}
TIE = 0.1  # percentage points: a smaller printed difference claims none
ENOUGH = 3  # seeds: a larger size with fewer waits until it has them
MARGIN = 1.0  # percentage points: two methods closer than this are called equivalent
Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Cell:
    """One printed number. All values in percent.

    row: its printed coordinates. gap: printed value minus that of `baseline` in the same setting, None for the baseline
    itself and where one of the two is not printed. ours, late, reestimated: mean and interval over seeds in the three
    readings of `Difference`; the last only where the cell is of the last epoch. ours_gap: the same less the baseline's,
    paired on equal seeds. power: the chance that this many seeds with the spread found tell the printed difference from
    0, if it is true. runs: whose runs it rests on; cells with the same ones are not independent.
    """

    table: str
    row: Row
    published: float | None
    gap: float | None
    verdict: str
    command: str
    profile: str = ""
    epoch: str = ""  # what ours is of: the epoch where the paper prints several, "3 of 10"; a smaller data set
    ours: Interval | None = None
    late: Interval | None = None
    reestimated: Interval | None = None
    ours_gap: Difference | None = None
    diverged: int = 0
    baseline: str = ""
    power: float | None = None
    runs: str = ""

    @property
    def label(self) -> str:
        """Its coordinates, to read: "cifar10 CN, epoch 25"."""
        rest = (
            f"{SHORT.get(key, key)} {value:g}"
            for key, value in self.row.items()
            if isinstance(value, float) and key != "value"
        )
        metric = [str(self.row["metric"])] if self.row["metric"] != "accuracy" else []
        coordinates = ", ".join([f"{self.row['dataset']} {self.row['model']}", *metric, *rest])
        return f"{coordinates} (ours: {self.epoch})" if self.epoch else coordinates


def reproduction(runs: Sequence[Run] | None = None, names: Iterable[str] | None = None) -> list[Cell]:
    """A cell for every number of the published tables `names` (default: all), from `runs` (default: those recorded in
    the package). Of several profiles the largest recorded with three seeds counts, or else the largest of all: a cell
    never mixes two."""
    if runs is None:
        runs = [run for experiment in experiments() for run in load(experiment)]
    recorded = RunIndex(runs)
    cells = []
    for name in tables() if names is None else names:
        found = next((e for e in EXPERIMENTS.values() if name in e.printed), None)
        cells += [_cell(name, row, found, recorded) for row in published(name).rows]
    return cells


class RunIndex:
    """Runs that ended, to be found by configuration, whatever their seeds."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs: dict[Config, dict[int, Run]] = {}
        for run in runs:
            if run.status != "unfinished":
                self.runs.setdefault(replace(run.config, seed=0), {})[run.config.seed] = run
        self.sweeps: dict[tuple[str, str, str], list[Config]] = {}

    def find(self, experiment: Experiment, printed: Printed, profile: str, row: Row) -> dict[int, Run]:
        """{seed: run} of the printed model of a row in its setting."""
        method, key = printed.models[str(row["model"])], (experiment.name, printed.sweep, profile)
        if key not in self.sweeps:
            self.sweeps[key] = [*experiment.configs(printed.sweep, profile, seeds=1).values()]
        where = {k: v for k, v in row.items() if k in Config.__dataclass_fields__ and k != "model"}
        if row["dataset"] in printed.tests:
            del where["dataset"]
        elif profile != "paper":
            where["dataset"] = printed.smaller.get(str(row["dataset"]), row["dataset"])
        for config in self.sweeps[key]:
            if config.method == method and all(getattr(config, k) == v for k, v in where.items()):
                return self.runs.get(config, {})
        return {}


def _metric(printed: Printed, row: Row) -> str:
    """What our runs call the quantity of a printed cell: "test_accuracy", "test_plus_accuracy", ..."""
    test = printed.tests.get(str(row["dataset"]), "test")
    reading = printed.readings.get(str(row["model"]))
    metric = str(row["metric"])
    return "_".join([test, *([reading] if reading else []), printed.metrics.get(metric, metric)])


def _cell(name: str, row: Row, experiment: Experiment | None, recorded: RunIndex) -> Cell:
    value = row["value"]
    assert value is None or isinstance(value, float)
    if experiment is None:
        return Cell(name, row, value, None, "not yet run", "")
    printed = experiment.printed[name]
    baseline, table = printed.baseline, printed.baseline_table or name
    row = {key: printed.meant.get((key, entry), entry) for key, entry in row.items()}
    gap = _gap(value, row, baseline, table)
    if (found := _largest(experiment, printed, row, recorded)) is None:
        command = f"cnlib sweep {printed.sweep} --profile paper --device cuda"
        return Cell(name, row, value, gap, "not yet run", command, baseline=baseline)
    profile, runs, readings = found
    best, late, reestimated = readings.intervals()
    assert best is not None
    against = experiment.printed[table]
    theirs = row | {"model": baseline}
    others = {} if row["model"] == baseline else recorded.find(experiment, against, profile, theirs)
    difference = readings.less(_readings(others, _metric(against, theirs), theirs))
    if difference and printed.readings.get(str(row["model"])) and difference.reestimated is None:
        difference = None  # running statistics are those of the network as it was trained
    return Cell(
        name,
        row,
        published=value,
        gap=gap,
        verdict=_baseline_verdict(value, best, profile) if gap is None else _verdict(gap, difference),
        command=f"cnlib sweep {printed.sweep} --profile {profile}",
        profile=profile,
        epoch=_as_ours(next(iter(runs.values())).config, row, printed),
        ours=best,
        late=late,
        reestimated=reestimated,
        ours_gap=difference,
        diverged=len(runs) - best.n,
        baseline=baseline,
        power=None if gap is None or difference is None else _power(gap, difference.claims),
        runs=" - ".join(dict.fromkeys(_series(experiment, found) for found in (runs, others) if found)),
    )


class Readings(NamedTuple):
    """Runs that did not diverge in the three readings of `Difference`, each {seed: percent}."""

    best: dict[int, float]
    late: dict[int, float]
    reestimated: dict[int, float]

    def intervals(self) -> list[Interval | None]:
        return [interval([*values.values()]) if values else None for values in self]

    def less(self, others: Readings) -> Difference | None:
        """Paired on equal seeds; None where no seed is in both."""
        pairs = zip(self, others, strict=True)
        gaps = Readings(
            *({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs} for ours, theirs in pairs)
        )
        best, late, reestimated = gaps.intervals()
        return Difference(best, late, reestimated if len(gaps.reestimated) > 1 else None) if best and late else None


def _largest(
    experiment: Experiment, printed: Printed, row: Row, recorded: RunIndex
) -> tuple[str, dict[int, Run], Readings] | None:
    """(profile, {seed: run}, their readings) of the largest profile with ENOUGH seeds, or else of the largest."""
    found = []
    for profile in reversed([*experiment.profiles]):
        runs = recorded.find(experiment, printed, profile, row)
        if (readings := _readings(runs, _metric(printed, row), row)).best:
            found.append((profile, runs, readings))
    return min(found, key=lambda one: len(one[2].best) < ENOUGH, default=None)  # the first of those that are equal


def _epoch(config: Config, row: Row) -> int:
    """The epoch of ours that stands for the printed one, which is of 100: the same share, rounded up."""
    share = row.get("epoch", 100.0)
    assert isinstance(share, float)
    return math.ceil(config.epochs * share / 100)


def _as_ours(config: Config, row: Row, printed: Printed) -> str:
    """How our run differs from the printed one in what names the cell."""
    epoch = _epoch(config, row)
    parts = [config.dataset] if config.dataset in printed.smaller.values() else []
    return ", ".join(parts + ([f"{epoch} of {config.epochs}"] if epoch < config.epochs else []))


def _series(experiment: Experiment, runs: Mapping[int, Run]) -> str:
    """What the names of their records share: "reduced-cifar100-cn"."""
    return experiment.record_name(next(iter(runs.values())).config).rpartition("-")[0]


def _readings(runs: Mapping[int, Run], metric: str, row: Row) -> Readings:
    found = Readings({}, {}, {})
    for seed, run in runs.items():
        if run.status == "finished":
            epoch = min(_epoch(run.config, row), len(run.curve(metric)))  # fewer where it stopped by itself
            found.best[seed] = 100 * value_at(run, metric, epoch, best=True)
            found.late[seed] = 100 * value_at(run, metric, epoch, last=min(LATE, epoch))
            if epoch == run.config.epochs and (value := reestimated(run, metric)) is not None:
                found.reestimated[seed] = 100 * value
    return found


def _gap(value: float | None, row: Row, baseline: str, table: str) -> float | None:
    """The printed value minus the baseline's in the same setting; None for the baseline, and where one is missing."""
    keys = row.keys() - {"model", "value"}
    fits = [
        other["value"]
        for other in published(table).rows
        if other["model"] == baseline and all(other[key] == row[key] for key in keys & other.keys())
    ]
    theirs = fits[-1] if fits else None  # Table 2 prints no epoch: the last of Table 1
    return value - theirs if row["model"] != baseline and value is not None and isinstance(theirs, float) else None


def _verdict(gap: float, ours: Difference | None) -> str:
    if ours is None:
        return "not yet run"
    if not all(math.isfinite(part.mean) for part in ours.claims):
        return "undecided"
    # an interval that is not a number, as of a single seed, leaves nothing out
    hits = [not (gap < part.low or gap > part.high) for part in ours.claims]
    if not any(hits):
        return "outside"
    tie = abs(gap) < TIE and all(max(-part.low, part.high) < MARGIN for part in ours.claims)
    return "inside" if all(hits) and (ours.shown or tie) else "undecided"


def _power(gap: float, claims: Sequence[Interval]) -> float | None:
    """Of a paired t-test at 5 % of each reading, the least."""
    from scipy.special import stdtrit

    if any(part.n < 2 or not part.half > 0 for part in claims):
        return None
    errors = [part.half / float(stdtrit(part.n - 1, 0.975)) for part in claims]
    return min(t_power(abs(gap) / error, part.n - 1) for error, part in zip(errors, claims, strict=True))


def _baseline_verdict(value: float | None, ours: Interval, profile: str) -> str:
    """At the paper's size: could the printed run be one more seed of ours?"""
    if profile != "paper" or value is None or ours.n < 2 or not math.isfinite(ours.mean):
        return "baseline"
    return "inside" if abs(value - ours.mean) <= ours.half * math.sqrt(ours.n + 1) else "outside"
