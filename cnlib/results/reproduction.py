"""Every published number beside ours: mean, interval, verdict, and the command that runs it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cnlib.experiments import EXPERIMENTS, Experiment
from cnlib.results.papers import published, tables
from cnlib.results.recorded import cn_plus, experiments, load
from cnlib.results.statistics import Interval, interval, value_at
from cnlib.training.records import Run

VERDICTS = {
    "reproduced": "our interval leaves out 0 on the published side of the baseline",
    "not reproduced": "our interval leaves out 0 on the other side",
    "within noise": "our interval contains 0: these seeds at this size cannot tell the two apart",
    "baseline": "what the others are compared with; at the paper's size, whether the printed value is one of ours",
    "not yet run": "no recorded runs",
}
BASELINE = "BN"
SETTING = ("dataset", "lr", "weight_decay")
SHORT = {"weight_decay": "wd"}
Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Cell:
    """One printed number. All values in percent.

    row: its printed coordinates. gap: printed value minus that of the baseline in the same setting, None for the
    baseline. ours: mean and interval over seeds of the running best. The French paper reloads its best checkpoint
    before each test, and the ICDM paper prints the same 86.9 % for BN. ours_gap: paired with the baseline on equal
    seeds. last: of the last epoch, without a choice by the test set.
    """

    table: str
    row: Row
    published: float | None
    gap: float | None
    verdict: str
    command: str
    profile: str = ""
    ours: Interval | None = None
    last: Interval | None = None
    ours_gap: Interval | None = None

    @property
    def label(self) -> str:
        """Its coordinates, to read: "cifar10 CN, epoch 25"."""
        rest = (
            f"{SHORT.get(key, key)} {value:g}"
            for key, value in self.row.items()
            if isinstance(value, float) and key != "value"
        )
        return ", ".join([f"{self.row['dataset']} {self.row['model']}", *rest])


def reproduction(runs: Sequence[Run] | None = None, names: Iterable[str] | None = None) -> list[Cell]:
    """A cell for every number of the published tables `names` (default: all), from `runs` (default: those recorded in
    the package). Of several profiles the largest recorded counts: a cell never mixes two."""
    if runs is None:
        runs = [run for experiment in experiments() for run in load(experiment)]
    recorded = _Recorded(runs)
    cells = []
    for name in tables() if names is None else names:
        found = next((e for e in EXPERIMENTS.values() if name in e.printed), None)
        cells += [_cell(name, row, found, recorded) for row in published(name).rows]
    return cells


def as_rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of text, to print; all values in percent or percentage points."""
    head = [
        "table",
        "cell",
        "printed",
        "ours",
        "last epoch",
        "seeds",
        "printed - BN",
        "ours - BN",
        "verdict",
        "command",
    ]
    return head, [
        [
            cell.table,
            cell.label,
            "" if cell.published is None else f"{cell.published:.2f}",
            "" if cell.ours is None else f"{cell.ours:.1f}",
            "" if cell.last is None else f"{cell.last:.1f}",
            "" if cell.ours is None else str(cell.ours.n),
            "" if cell.gap is None else f"{cell.gap:+.2f}",
            "" if cell.ours_gap is None else f"{cell.ours_gap:+.1f}",
            f"{cell.verdict} ({cell.profile})" if cell.profile else cell.verdict,
            cell.command,
        ]
        for cell in cells
    ]


class _Recorded:
    """Finished runs, to be found by configuration."""

    def __init__(self, runs: Sequence[Run]) -> None:
        finished = [run for run in runs if run.status == "finished"]
        self.runs = {replace(run.config, inference="cn"): run for run in finished}
        self.plus = {replace(run.config, inference="cn"): run for run in cn_plus(finished)}

    def values(
        self, experiment: Experiment, sweep: str, profile: str, method: str, row: Row, best: bool = True
    ) -> dict[int, float]:
        """{seed: percent} in one printed setting."""
        runs = self.plus if method.endswith("+") else self.runs
        where = {key: row[key] for key in SETTING if key in row}
        share = row.get("epoch", 100.0)
        assert isinstance(share, float)
        values = {}
        for config in experiment.configs(sweep, profile).values():
            run = runs.get(replace(config, inference="cn"))
            if (
                run
                and config.method == method.removesuffix("+")
                and all(getattr(config, k) == v for k, v in where.items())
            ):
                epoch = math.ceil(config.epochs * share / 100)
                values[config.seed] = 100 * value_at(run, f"test_{row['metric']}", epoch, best)
        return values


def _cell(name: str, row: Row, experiment: Experiment | None, recorded: _Recorded) -> Cell:
    value = row["value"]
    assert value is None or isinstance(value, float)
    if experiment is None:
        return Cell(name, row, value, None, "not yet run", "")
    printed = experiment.printed[name]
    baseline_table, baseline_sweep = printed.baseline or (name, printed.sweep)
    row = {key: printed.meant.get((key, entry), entry) for key, entry in row.items()}
    gap = _gap(value, row, baseline_table)
    method = printed.models[str(row["model"])]
    for profile in reversed([*experiment.profiles]):
        ours = recorded.values(experiment, printed.sweep, profile, method, row)
        if not ours:
            continue
        mean, difference = interval(list(ours.values())), None
        last = recorded.values(experiment, printed.sweep, profile, method, row, best=False)
        if gap is None:
            verdict = _baseline_verdict(value, mean, profile)
        else:
            bn = recorded.values(experiment, baseline_sweep, profile, "bn", row)
            paired = [ours[seed] - bn[seed] for seed in ours if seed in bn]
            difference = interval(paired) if paired else None
            verdict = _verdict(gap, difference)
        command = f"cnlib sweep {printed.sweep} --profile {profile}"
        return Cell(name, row, value, gap, verdict, command, profile, mean, interval(list(last.values())), difference)
    return Cell(name, row, value, gap, "not yet run", f"cnlib sweep {printed.sweep} --profile paper --device cuda")


def _gap(value: float | None, row: Row, table: str) -> float | None:
    """The printed value minus the one of BN in the row's own setting; None for BN itself."""
    if value is None or row["model"] == BASELINE:
        return None
    fits = [
        other["value"]
        for other in published(table).rows
        if other["model"] == BASELINE
        and all(other[key] == row[key] for key in other if key in (*SETTING, "epoch") and key in row)
    ]
    assert isinstance(fits[-1], float)
    return value - fits[-1]  # Table 2 prints no epoch: the last of Table 1


def _verdict(gap: float, ours: Interval | None) -> str:
    if ours is None:
        return "not yet run"
    if ours.contains_zero:
        return "within noise"
    return "reproduced" if (ours.mean > 0) == (gap > 0) else "not reproduced"


def _baseline_verdict(value: float | None, ours: Interval, profile: str) -> str:
    """At the paper's size: could the printed run be one more seed of ours?"""
    if profile != "paper" or value is None or ours.n < 2:
        return "baseline"
    return "reproduced" if abs(value - ours.mean) <= ours.half * math.sqrt(ours.n + 1) else "not reproduced"
