"""What experiments are made of, and what runs them: configurations in order of value, trained into a folder."""

from cnlib.sweeps.experiment import Experiment, Grid, Printed
from cnlib.sweeps.preview import preview
from cnlib.sweeps.run import estimate, recorded, sweep

__all__ = ["Experiment", "Grid", "Printed", "estimate", "preview", "recorded", "sweep"]
