"""Differences between methods as claims: over seeds, test images and settings at once, with a margin and many tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cnlib.records import RECORDS
from cnlib.results.intervals import Interval, t_power
from cnlib.results.runs import by_method, names_in, select
from cnlib.sweeps import Claim, Measured
from cnlib.training.records import Run, read_columns

LABELS = RECORDS / "labels"
REESTIMATED = "test_reestimated"
DOMAINS = ("test_source", "test_target")  # readings of one domain of two, see `cnlib.training.AdaMatch`
Pair = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its standard error and the degrees of freedom of that: what Student's t needs."""

    mean: float
    se: float
    df: float
    n: int = 1  # seeds, or settings

    def interval(self, level: float = 0.95) -> Interval:
        """Mean plus or minus half the interval of this level."""
        from scipy.special import stdtrit

        return Interval(self.mean, float(stdtrit(self.df, 0.5 + level / 2)) * self.se, self.n)

    @property
    def p(self) -> float:
        """Of a difference at least as large, in either direction, where there is none."""
        return 2 * self._above(abs(self.mean))

    def p_equivalent(self, margin: float) -> float:
        """Of two one-sided tests (TOST): below 0.05 exactly where the 90 % interval lies inside plus or minus the
        margin. Source: Schuirmann (1987)."""
        return max(self._above(self.mean + margin), self._above(margin - self.mean))

    def detectable(self, power: float = 0.8) -> float:
        """The least true difference that a test at 5 % finds with this power (0.05 to 1), at the standard error found.

        By the noncentral t distribution: the usual sum of two quantiles of t is too small where seeds are few, by 14 %
        at one degree of freedom and by 5 % at two.
        """
        if not 0.05 < power < 1:
            raise ValueError(f"detectable(power={power}): expected a power above 0.05, which chance has, and below 1")
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        df = min(self.df, 1e6)  # the normal distribution's, to six digits
        enough = 1 + 4 * float(stdtrit(df, 0.975) + stdtrit(df, power))
        return float(brentq(lambda shift: t_power(shift, df) - power, 0, enough)) * self.se

    def _above(self, value: float) -> float:
        from scipy.special import stdtr

        if not self.se:  # nothing varied, as between a network and itself
            return (1 - np.sign(value)) / 2
        return float(stdtr(self.df, -value / self.se))


@dataclass(frozen=True)
class Contrast:
    """One method less another in several settings, as shares of the test images.

    settings: {"cifar10, third layer": over seeds and images}. mean: over exactly these settings, which share networks
    and images. among: over settings, as if drawn from many like them; wide where there are few, None for one.
    """

    settings: Mapping[str, Estimate]
    mean: Estimate
    among: Estimate | None


def labels(dataset: str, test_size: int | None, domain: int | None = None) -> np.ndarray:
    """The classes (N,) of the test images of recorded runs, in their order, from the package; or of one domain's."""
    found = _shipped(dataset, test_size, "labels")
    return found if domain is None else found[domains(dataset, test_size) == domain]


def domains(dataset: str, test_size: int | None) -> np.ndarray:
    """The domains (N,) of the same images, in the same order."""
    return _shipped(dataset, test_size, "domains")


def _path(dataset: str, test_size: int | None) -> Path:
    return LABELS / f"{dataset}-{test_size or 'all'}.jsonl"


def _shipped(dataset: str, test_size: int | None, what: str) -> np.ndarray:
    path = _path(dataset, test_size)
    found = _columns(path, path.stat().st_mtime_ns)[1] if path.is_file() else {}
    if what not in found:
        known = names_in(LABELS)
        raise ValueError(
            f"no {what} of {path.stem} in the package: there are {known}; `python -m studies.labels` adds to them"
        )
    return found[what]


@cache
def _columns(path: Path, changed: int) -> tuple[str, dict[str, np.ndarray]]:
    """Checksum of the data, and the columns, of a file of that time of change. Read-only: all who ask get the same."""
    header, found = read_columns(path, ("labels",), ("domains",))
    for column in found.values():
        column.setflags(write=False)
    return header["data"], found


def correct(run: Run, reading: str = REESTIMATED) -> np.ndarray:
    """Whether each test image (N,) was classified rightly after the last epoch; of a reading of one domain, its own.

    Raises ValueError where the run saw other data than those whose labels are in the package.
    """
    domain = next((i for i, name in enumerate(DOMAINS) if reading.startswith(name)), None)
    guesses, truth = run.predictions(reading), labels(run.config.dataset, run.config.test_size, domain)
    path = _path(run.config.dataset, run.config.test_size)
    seen, kept = run.provenance.get("data"), _columns(path, path.stat().st_mtime_ns)[0]
    if seen not in (None, kept) or guesses.shape != truth.shape:
        raise ValueError(
            f"{run.name} has {len(guesses)} predictions on data {seen}, the labels of {path.stem} in the package are "
            f"{len(truth)} of data {kept}: make these anew with python -m studies.labels"
        )
    return guesses == truth


def crossed(values: np.ndarray) -> Estimate:
    """The mean of values (S, N) of S seeds and N images, where both are samples: a two-way layout with random rows and
    columns and one value a cell.

    With the mean squares between rows, between columns and of the rest, the variance of the mean is
    (MS_rows + MS_columns - MS_rest) / (S N), each of the two at least MS_rest; degrees of freedom by Satterthwaite.
    So an interval of 95 % is approximate where seeds are few and vary much more than the images: there it may cover the
    truth in only 90 % of cases with two, 92 % with three (simulated in the tests). Source: Cornfield & Tukey (1956).
    """
    values = np.asarray(values, dtype=float)
    s, n = values.shape
    if s < 2 or n < 2:
        raise ValueError(f"crossed needs two seeds and two images at least, got values of shape {values.shape}")
    rows, columns, mean = values.mean(1), values.mean(0), values.mean()
    rest = ((values - rows[:, None] - columns + mean) ** 2).sum() / ((s - 1) * (n - 1))
    of_rows, of_columns = max(n * rows.var(ddof=1), rest), max(s * columns.var(ddof=1), rest)
    variance = of_rows + of_columns - rest
    spread = of_rows**2 / (s - 1) + of_columns**2 / (n - 1) + rest**2 / ((s - 1) * (n - 1))
    df = variance**2 / spread if spread else math.inf
    return Estimate(float(mean), math.sqrt(variance / (s * n)), df, s)


def contrast(runs: Sequence[Run], pairs: Mapping[str, Pair], readings: Pair = (REESTIMATED, REESTIMATED)) -> Contrast:
    """First less second of each pair of methods on each data set, over the seeds that both have.

    pairs: {what to call it: (first, second)}, e.g. by the place of the layer. readings: of the first and of the second,
    see `Run.predictions`. Two pairs on one data set may share networks, and they share images, so their differences are
    averaged image by image before anything is estimated; different data sets share nothing. Raises ValueError where a
    pair has fewer than two seeds in common, or runs of two settings.
    """
    settings: dict[str, Estimate] = {}
    parts: list[tuple[int, Estimate]] = []
    for dataset in dict.fromkeys(run.config.dataset for run in runs):
        methods = by_method(select(runs, dataset=dataset))
        tables = {}
        for place, (first, second) in pairs.items():
            seeds = _in_common(methods, (first, second), readings)
            if len(seeds) < 2:
                raise ValueError(
                    f"{dataset}: {first} and {second} have {len(seeds)} seeds with predictions of "
                    f"{' and '.join(dict.fromkeys(readings))} in common: expected two at least"
                )
            ours, theirs = methods[first], methods[second]
            values = [correct(ours[s], readings[0]) - correct(theirs[s], readings[1]).astype(float) for s in seeds]
            tables[place] = dict(zip(seeds, values, strict=True))
            settings[f"{dataset}, {place}"] = crossed(np.stack(values))
        shared = sorted(set.intersection(*(set(table) for table in tables.values())))
        if len(shared) < 2:
            raise ValueError(
                f"{dataset}: {', '.join(tables)} have {len(shared)} seeds in common: expected two at least"
            )
        whole = np.stack([np.mean([table[seed] for table in tables.values()], axis=0) for seed in shared])
        parts.append((len(tables), crossed(whole)))
    means = np.array([found.mean for found in settings.values()])
    k = len(means)
    among = Estimate(float(means.mean()), float(means.std(ddof=1)) / math.sqrt(k), k - 1, k) if k > 1 else None
    return Contrast(settings, _together(parts), among)


def _in_common(methods: Mapping[str, Mapping[int, Run]], pair: Pair, readings: Pair) -> list[int]:
    """The seeds of which both methods of a pair have predictions of their readings."""
    kept = (
        {seed for seed, run in methods.get(name, {}).items() if reading in run.final.get("predictions", {})}
        for name, reading in zip(pair, readings, strict=True)
    )
    return sorted(set.intersection(*kept))


def declared(
    runs: Sequence[Run], claims: Mapping[str, Claim | Measured]
) -> tuple[dict[str, Contrast | None], dict[str, float]]:
    """What was declared, such as an experiment's `primary`, and its p values: {claim: its contrast, or None where runs
    are missing}, {claim: p corrected by Holm for all that were declared, of which those not run count as 1}.

    runs: of one profile. A claim needs two seeds of every pair on every data set that it is about.
    """
    found = {name: _measured(runs, c) if isinstance(c, Measured) else _claimed(runs, c) for name, c in claims.items()}
    return found, holm({name: one.mean.p if one else 1.0 for name, one in found.items()})


def _claimed(runs: Sequence[Run], claim: Claim) -> Contrast | None:
    chosen = select(runs, **claim.where)
    of_sets = [by_method(select(chosen, dataset=name)) for name in {run.config.dataset for run in chosen}]
    common = [_in_common(methods, pair, claim.readings) for methods in of_sets for pair in claim.pairs.values()]
    if not common or min(map(len, common)) < 2:
        return None
    return contrast(chosen, claim.pairs, claim.readings)


def _measured(runs: Sequence[Run], claim: Measured) -> Contrast | None:
    """By Student's t over seeds, which is all there is of a quantity that no single image has."""
    methods = by_method(runs)

    def ended(method: str, quantity: str) -> dict[int, float]:
        return {seed: float(run.at_end(quantity)) for seed, run in methods.get(method, {}).items()}

    ours = ended(*claim.first)
    theirs = ended(*claim.second) if isinstance(claim.second, tuple) else dict.fromkeys(ours, claim.second)
    apart = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    n = len(apart)
    if n < 2:
        return None
    return Contrast({}, Estimate(float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(n), n - 1, n), None)


def _together(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """The weighted mean of independent estimates."""
    whole = sum(weight for weight, _ in parts)
    variances = [(weight / whole * part.se) ** 2 for weight, part in parts]
    mean = sum(weight / whole * part.mean for weight, part in parts)
    spread = sum(v**2 / part.df for v, (_, part) in zip(variances, parts, strict=True))
    df = sum(variances) ** 2 / spread if spread else math.inf
    return Estimate(mean, math.sqrt(sum(variances)), df, min(part.n for _, part in parts))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number: one below 0.05 by accident in a twentieth of such families. Holm (1979).

    Raises ValueError for what is no p value, such as NaN.
    """
    if wrong := [name for name, value in values.items() if not 0 <= value <= 1]:
        raise ValueError(f"holm: p of {wrong[0]!r} is {values[wrong[0]]}, expected 0 to 1")
    adjusted, least = dict.fromkeys(values, 1.0), 0.0
    for rank, name in enumerate(sorted(values, key=lambda name: values[name])):
        least = max(least, min(1.0, (len(values) - rank) * values[name]))
        adjusted[name] = least
    return adjusted
