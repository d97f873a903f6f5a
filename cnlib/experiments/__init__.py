"""One file for each published experiment: its configurations, by name, and nothing else. `sweep` runs them."""

from cnlib.experiments.sweep import sweep

__all__ = ["sweep"]
