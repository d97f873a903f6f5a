"""One file for each experiment: its configurations, and tasks and data sets of its own. It is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from cnlib.sweeps import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for module in iter_modules(__path__)
    for experiment in [import_module(f"{__name__}.{module.name}").EXPERIMENT]
}

__all__ = ["EXPERIMENTS", "Experiment", "find_sweep"]


def find_sweep(name: str) -> Experiment:
    """The experiment that has a sweep, e.g. "table-v". Raises ValueError with the names there are."""
    for experiment in EXPERIMENTS.values():
        if name in experiment.sweeps:
            return experiment
    known = ", ".join(sweep for experiment in EXPERIMENTS.values() for sweep in experiment.sweeps)
    raise ValueError(f"no sweep {name!r}: expected one of {known}")
