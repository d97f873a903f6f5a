"""Mean and 95 % interval over seeds, and differences between methods on equal seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnlib.results.runs import by_method, other_data, select
from cnlib.training.records import Run

# epochs whose mean stands beside the running best
LATE = 3


@dataclass(frozen=True)
class Interval:
    """mean, plus or minus `half` (95 %, Student's t; NaN for a single value), of n values."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def contains_zero(self) -> bool:
        """For a difference: within the noise of the seeds. A single value shows nothing, so it counts as noise."""
        return not (self.low > 0 or self.high < 0)

    def __format__(self, spec: str) -> str:
        """f"{interval:.2f}" -> "71.20 ± 0.35"; with % -> "71.20 ± 0.35 %"; with + the mean has its sign."""
        scale, spec, unit = (100, spec[:-1] + "f", " %") if spec.endswith("%") else (1, spec, "")
        # z: no "-0.0"
        text = format(self.mean * scale, spec.replace(".", "z.", 1))
        half = format(self.half * scale, spec.removeprefix("+"))
        return f"{text} ± {half}{unit}" if self.n > 1 else f"{text}{unit} (one seed)"


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and 95 % interval of the values, by Student's t. Needs scipy for more than one value."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"interval needs at least one value in one dimension, got shape {x.shape}")
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, 1)
    try:
        # scipy.stats has it too, and takes four times as long to import
        from scipy.special import stdtrit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an interval needs scipy, for the quantile of Student's t: `pip install scipy`"
        ) from error
    t = stdtrit(len(x) - 1, 0.975)
    return Interval(float(x.mean()), float(t * x.std(ddof=1) / math.sqrt(len(x))), len(x))


def t_power(shift: float, df: float) -> float:
    """The chance that a two-sided t test at 5 % finds a true difference of `shift` standard errors.

    As a mean over the spread that the samples may show, since scipy's noncentral t is nan far out at few degrees of
    freedom. Needs scipy.
    """
    from scipy.integrate import quad
    from scipy.special import chdtri, ndtr, stdtrit

    t = float(stdtrit(df, 0.975))

    def told(u: float) -> float:
        at = t * math.sqrt(chdtri(df, 1 - u) / df)  # with the spread at its quantile u
        return float(ndtr(shift - at) + ndtr(-shift - at))

    return float(quad(told, 0, 1)[0])


def value_at(run: Run, metric: str, epoch: int | None = None, best: bool = False, last: int = 1) -> float:
    """A run's metric at `epoch` (None: the last). best: the best up to it; last: the mean of so many epochs up to it.

    Raises ValueError where the run has fewer epochs, or is not finished and no epoch is named.
    """
    for name, value in (("epoch", epoch), ("last", last)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected 1 or more, epochs are counted from 1")
    if best and last != 1:
        raise ValueError(f"best=True with last={last}: expected one of them, the running best or a mean of epochs")
    if epoch is None and run.status == "unfinished":
        done = len(run.curve(metric))
        raise ValueError(
            f"{run.name} is unfinished, after {done} of {run.config.epochs} epochs: train it to its end, leave it out, "
            "or name an epoch"
        )
    curve = run.curve(metric)[:epoch]
    if len(curve) < max(epoch or 1, last):
        raise ValueError(f"{run.name} has {len(curve)} epochs ({run.status}), not {max(epoch or 1, last)}")
    if not best:
        return float(curve[-last:].mean())
    return float((np.fmin if metric.endswith("loss") else np.fmax).reduce(curve))


def reestimated(run: Run, metric: str) -> float | None:
    """A metric after the last epoch under running statistics re-estimated on the training images, None where the run
    does not have it: "test_accuracy" is then "test_reestimated_accuracy"."""
    reading, _, what = metric.rpartition("_")
    value = run.final.get(f"{reading}_reestimated_{what}")
    return None if value is None else float(value)


def _values(runs: Sequence[Run], metric: str, *how: Any) -> dict[str, dict[int, float]]:
    """{method: {seed: value}}"""
    return {
        method: {seed: value_at(run, metric, *how) for seed, run in seeds.items()}
        for method, seeds in by_method(runs).items()
    }


def final(
    runs: Sequence[Run], metric: str, epoch: int | None = None, best: bool = False, last: int = 1
) -> dict[str, Interval]:
    """{method: mean and interval over seeds} of a metric at `epoch` (None: the last).

    best: the running best up to there (of a loss: the least); on the test set it is optimistic, because it picks an
    epoch by the images it is judged on. last: the mean of so many epochs up to there, which nothing has chosen.
    """
    return {name: interval(list(seeds.values())) for name, seeds in _values(runs, metric, epoch, best, last).items()}


def paired(
    runs: Sequence[Run],
    first: str,
    second: str,
    metric: str | tuple[str, str],
    epoch: int | None = None,
    best: bool = False,
    last: int = 1,
) -> Interval:
    """Mean and interval of (first - second) over the seeds both methods have; epoch, best and last as in `final`.

    metric: of both, or a pair, first's and second's. So two readings of the same networks are compared, CN+ with CN:
    ``paired(runs, "cn", "cn", ("test_plus_accuracy", "test_accuracy"))``. Raises ValueError where the two have no seed
    in common, or were tested on different images.

    Equal seeds share the initial weights and the order of the images. What these have in common cancels; in a network
    that soon forgets them, pairing gains little. The interval covers seeds only, not other training or test images.
    """
    metrics = (metric, metric) if isinstance(metric, str) else metric
    values = []
    for method, name in zip((first, second), metrics, strict=True):
        found = _values([run for run in runs if run.config.method == method], name, epoch, best, last)
        if not found:
            known = ", ".join(dict.fromkeys(run.config.method for run in runs)) or "none"
            raise ValueError(f"no runs of {method}: there are {known}")
        values.append(found[method])
    ours, theirs = values
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"{first} and {second} have no seed in common")
    _check_images(runs, first, second)
    return interval([ours[seed] - theirs[seed] for seed in seeds])


def _check_images(runs: Sequence[Run], first: str, second: str) -> None:
    """ValueError where two methods were tested on other images: their difference would be none of the methods."""
    one, other = (next(run for run in runs if run.config.method == method) for method in (first, second))
    pairs = [(name, getattr(one.config, name), getattr(other.config, name)) for name in ("dataset", "test_size")]
    how = "; ".join(f"{name}: {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs)
    if how := how or other_data(one, other):
        raise ValueError(f"{first} and {second} were tested on different images ({how}): select one data set first")


@dataclass(frozen=True)
class Difference:
    """One method less another, in up to three readings of the same runs: the running best, which is the kind of number
    that papers print; the mean of the last three epochs, which nothing has chosen; and the last epoch with running
    statistics re-estimated on the training images, where two seeds or more have it. Claims rest on the last."""

    best: Interval
    late: Interval
    reestimated: Interval | None = None

    @property
    def claims(self) -> tuple[Interval, ...]:
        """What a claim has to hold in: the re-estimated reading, or else both others."""
        return (self.best, self.late) if self.reestimated is None else (self.reestimated,)

    @property
    def shown(self) -> bool:
        """Whether these leave zero out, all on one side. One that is not a number shows nothing."""
        return all(part.low > 0 for part in self.claims) or all(part.high < 0 for part in self.claims)

    def __format__(self, spec: str) -> str:
        return " and ".join(format(part, spec) for part in self.claims)


def difference(
    runs: Sequence[Run], first: str, second: str, metric: str | tuple[str, str] = "test_accuracy"
) -> Difference:
    """(first - second), paired over the seeds both methods have; metric: of both, or a pair, as in `paired`."""
    metrics = (metric, metric) if isinstance(metric, str) else metric
    ours, theirs = (
        {run.config.seed: value for run in select(runs, method=method) if (value := reestimated(run, name)) is not None}
        for method, name in zip((first, second), metrics, strict=True)
    )
    both = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return Difference(
        paired(runs, first, second, metric, best=True),
        paired(runs, first, second, metric, last=LATE),
        interval(both) if len(both) > 1 else None,
    )
