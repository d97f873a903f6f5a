"""What the experiments have in common: methods, profiles, and sweeps, which are grids of settings in order of value."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from cnlib.training import Config

Fields = Mapping[str, Any]  # fields of Config
SEEDS = {"smoke": 1, "book": 3, "reduced": 3, "narrow": 3, "paper": 3}  # of an experiment that does not say


@dataclass(frozen=True)
class Grid:
    """Every method under every setting, in this order. `profiles`: those that run it; empty means all."""

    methods: tuple[str, ...]
    settings: tuple[Fields, ...]
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Printed:
    """How the cells of a published table are found among our runs.

    models: {printed name: method}. baseline: the printed name of the one that the others are compared with;
    baseline_table: the published table that prints it in the same settings, by default the table's own.
    readings: {printed name: "plus"} where it is another reading of the test set. tests: {printed data set: name of the
    test set} where that column says what is tested, not what is trained on.
    smaller: {printed data set: the one that stands for it below the paper's size}.
    metrics: {printed metric: ours}, where we call it otherwise.
    meant: {(column, printed value): value}, where the print is plainly wrong.
    """

    sweep: str
    models: Mapping[str, str]
    baseline: str = "BN"
    baseline_table: str | None = None
    readings: Mapping[str, str] = field(default_factory=dict)
    tests: Mapping[str, str] = field(default_factory=dict)
    smaller: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    meant: Mapping[tuple[str, Any], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A comparison that was declared before its runs were read: of shares of test images that are right.

    pairs: {what to call it: (first, second)} of methods; what is tested is the mean of first less second over them.
    readings: of the first and of the second. where: {field: value, or several} of the runs that count.
    """

    pairs: Mapping[str, tuple[str, str]]
    readings: tuple[str, str] = ("test_reestimated", "test_reestimated")
    where: Fields = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Such a comparison of another quantity, which runs end with: first less second over the seeds that both have.

    first, second: (method, name of the quantity); or a number for the second.
    """

    first: tuple[str, str]
    second: tuple[str, str] | float


@dataclass(frozen=True)
class Experiment:
    """One published experiment.

    methods   {name: fields}: what is compared, where each sits included
    published {field: value}: the setting of the paper
    profiles  {name: fields}: sizes; "paper" changes none of the published ones
    sweeps    {name: grids}, the most telling grid first: a sweep that is stopped early has what matters most
    seeds     {profile: how many}
    printed   {published table: where its cells are among the sweeps}
    primary   {claim: the comparison}, declared, and corrected for each other: `cnlib.results.declared`
    """

    name: str
    about: str
    methods: Mapping[str, Fields]
    published: Fields
    profiles: Mapping[str, Fields]
    sweeps: Mapping[str, tuple[Grid, ...]]
    seeds: Mapping[str, int] = field(default_factory=lambda: SEEDS)
    printed: Mapping[str, Printed] = field(default_factory=dict)
    primary: Mapping[str, Claim | Measured] = field(default_factory=dict)

    def config(
        self, method: str, seed: int = 0, profile: str = "book", setting: Fields | None = None, **changes: Any
    ) -> Config:
        """The configuration of one run; `changes` are fields of Config and override the profile, e.g. epochs=3."""
        self._check(method=method, profile=profile)
        run = {"method": method, "profile": profile, "seed": seed} | changes
        return Config(**merged(self.published, setting or {}, self.profiles[profile], self.methods[method], run))

    def configs(
        self, sweep: str, profile: str = "book", seeds: int | None = None, only: str = "*", **changes: Any
    ) -> dict[str, Config]:
        """{name of the record: configuration} of a sweep, in order of value; all seeds of a setting stay together.

        seeds: how many, by default the profile's number. only: a pattern of record names, as in a shell.
        """
        self._check(sweep=sweep, profile=profile)
        count = self.seeds[profile] if seeds is None else seeds
        chosen = (
            self.config(method, seed, profile, setting, **changes)
            for grid in self.sweeps[sweep]
            if not grid.profiles or profile in grid.profiles
            for setting in grid.settings
            for seed in range(count)
            for method in grid.methods
        )
        return {name: config for config in chosen if fnmatch(name := self.record_name(config), only)}

    def _check(self, **given: str) -> None:
        """ValueError with the names there are, where one is of no method, profile or sweep."""
        for what, name in given.items():
            if name not in (known := getattr(self, f"{what}s")):
                raise ValueError(f"{self.name} has no {what} {name!r}: expected one of {', '.join(known)}")

    def record_name(self, config: Config) -> str:
        """The name of a run's record: profile, data set, method, whatever differs from this experiment's own, seed.

        "reduced-cifar10-cn-s0"; "reduced-cifar10-cn-channels-lr=0.005-s0"; a hash where that makes no file name.
        """
        own = {"profile": config.profile, "dataset": config.dataset, "method": config.method, "seed": config.seed}
        profile, method = self.profiles.get(config.profile, {}), self.methods.get(config.method, {})
        expected, mine = (
            d | d["options"]
            for d in (Config(**merged(self.published, profile, method, own)).to_dict(), config.to_dict())
        )
        changed = [key for key in mine if key != "options" and mine[key] != expected.get(key)]
        rest = "-".join(f"{key}={mine[key]}" for key in changed)
        if len(rest) > 80 or re.search(r"[^\w.=+-]", rest):
            rest = hashlib.sha256(rest.encode()).hexdigest()[:8]
        return "-".join([config.profile, config.dataset, config.method, *([rest] if rest else []), f"s{config.seed}"])


def merged(*layers: Fields) -> Fields:
    """Fields of a configuration: later ones win; of `options`, each for itself."""
    fields = {key: value for layer in layers for key, value in layer.items()}
    options = [layer.get("options", {}) for layer in layers]
    if all(isinstance(given, Mapping) for given in options):  # if not, Config says what it expects
        fields["options"] = {key: value for given in options for key, value in given.items()}
    return fields


def product(**values: tuple[Any, ...]) -> tuple[Fields, ...]:
    """All combinations, the last field changing fastest: product(dataset=("a", "b"), lr=(1e-3, 5e-3))."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
