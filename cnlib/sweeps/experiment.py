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
    tests: {printed data set: name of the test set} where that column says what is tested, not what is trained on.
    meant: {(column, printed value): value}, where the print is plainly wrong.
    """

    sweep: str
    models: Mapping[str, str]
    baseline: str = "BN"
    baseline_table: str | None = None
    tests: Mapping[str, str] = field(default_factory=dict)
    meant: Mapping[tuple[str, Any], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One published experiment.

    methods   {name: fields}: what is compared
    published {field: value}: the setting of the paper
    profiles  {name: fields}: sizes; "paper" changes none of the published ones
    seeds     {profile: how many}
    sweeps    {name: grids}, the most telling grid first: a sweep that is stopped early has what matters most
    printed   {published table: where its cells are among the sweeps}
    """

    name: str
    about: str
    methods: Mapping[str, Fields]
    published: Fields
    profiles: Mapping[str, Fields]
    seeds: Mapping[str, int]
    sweeps: Mapping[str, tuple[Grid, ...]]
    printed: Mapping[str, Printed]

    def config(
        self, method: str, seed: int = 0, profile: str = "book", setting: Fields | None = None, **changes: Any
    ) -> Config:
        """The configuration of one run; `changes` are fields of Config and override the profile, e.g. epochs=3.

        A placement alone brings what the experiment's own settings have there besides, e.g. another encoder.
        """
        for what, given, known in (("method", method, self.methods), ("profile", profile, self.profiles)):
            if given not in known:
                raise ValueError(f"{self.name} has no {what} {given!r}: expected one of {', '.join(known)}")
        setting = self._setting(changes.get("placement")) if setting is None else setting
        run = {"profile": profile, "seed": seed} | changes
        return _merged(self.published, setting, self.profiles[profile], self.methods[method], run)

    def _setting(self, placement: tuple[str, ...] | None) -> Fields:
        if placement is None:
            return {}
        settings = (setting for grids in self.sweeps.values() for grid in grids for setting in grid.settings)
        return next((setting for setting in settings if setting.get("placement") == placement), {})

    def configs(
        self, sweep: str, profile: str = "book", seeds: int | None = None, only: str = "*", **changes: Any
    ) -> dict[str, Config]:
        """{name of the record: configuration} of a sweep, in order of value; all seeds of a setting stay together.

        seeds: how many, by default the profile's number. only: a pattern of record names, as in a shell.
        """
        if sweep not in self.sweeps:
            raise ValueError(f"{self.name} has no sweep {sweep!r}: expected one of {', '.join(self.sweeps)}")
        if profile not in self.profiles:
            raise ValueError(f"{self.name} has no profile {profile!r}: expected one of {', '.join(self.profiles)}")
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

    def record_name(self, config: Config) -> str:
        """The name of a run's record: what tells the runs of the sweeps apart, then whatever else differs from them.

        "paper-cifar10-cn-conv3-lr0.001-wd0.0001-s0"; "...-wd0.0001-epochs=3-s0"; a hash where that makes no file name.
        """
        method = config.method.removesuffix("+")
        usual = {"placement": Config.placement, "optimizer": Config.optimizer, **self.published}
        everywhere = config.norm == "bn" and config.placement == usual["placement"]  # every other slot has it anyway
        parts = [config.profile, config.dataset, method, "all" if everywhere else "+".join(config.placement)]
        parts += [config.optimizer] if config.optimizer != usual["optimizer"] else []
        parts += [f"lr{config.lr!r}", f"wd{config.weight_decay!r}"]
        own = self.methods.get(method) or next(iter(self.methods.values()))
        expected = _merged(usual, self._setting(config.placement), self.profiles.get(config.profile, {}), own).to_dict()
        expected, mine = (d | d["options"] for d in (expected, config.to_dict()))
        keys = [key for key in mine if key not in NAMED and mine[key] != expected.get(key)]
        rest = "-".join(f"{key}={mine[key]}" for key in keys)
        if len(rest) > 80 or re.search(r"[^\w.=+-]", rest):
            rest = hashlib.sha256(rest.encode()).hexdigest()[:8]
        return "-".join([*parts, *([rest] if rest else []), f"s{config.seed}"])


# what stands in every record's name
NAMED = {"profile", "dataset", "placement", "optimizer", "lr", "weight_decay", "seed", "called", "options"}


def _merged(*layers: Fields) -> Config:
    """Later ones win; of `options`, each for itself."""
    fields = {key: value for layer in layers for key, value in layer.items()}
    options = [layer.get("options", {}) for layer in layers]
    if all(isinstance(given, Mapping) for given in options):  # if not, Config says what it expects
        fields["options"] = {key: value for given in options for key, value in given.items()}
    return Config(**fields)


def product(**values: tuple[Any, ...]) -> tuple[Fields, ...]:
    """All combinations, the last field changing fastest: product(dataset=("a", "b"), lr=(1e-3, 5e-3))."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
