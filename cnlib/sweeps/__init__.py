"""What experiments are made of, and what runs them: configurations in order of value, trained into a folder."""

from cnlib.sweeps.experiment import Claim, Experiment, Grid, Measured, Printed
from cnlib.sweeps.preview import preview
from cnlib.sweeps.run import estimate, recorded, sweep

__all__ = ["Claim", "Experiment", "Grid", "Measured", "Printed", "estimate", "preview", "recorded", "sweep"]
