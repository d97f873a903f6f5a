"""One file for each published experiment: its configurations, by name, and nothing else. `sweep` runs them."""

from cnlib.experiments import convnet
from cnlib.sweeps import Experiment, Grid, Printed, estimate, recorded, sweep

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (convnet,)}

__all__ = ["EXPERIMENTS", "Experiment", "Grid", "Printed", "estimate", "find_sweep", "recorded", "sweep"]


def find_sweep(name: str) -> Experiment:
    """The experiment that has a sweep, e.g. "table-v". Raises ValueError with the names there are."""
    for experiment in EXPERIMENTS.values():
        if name in experiment.sweeps:
            return experiment
    known = ", ".join(sweep for experiment in EXPERIMENTS.values() for sweep in experiment.sweeps)
    raise ValueError(f"no sweep {name!r}: expected one of {known}")
