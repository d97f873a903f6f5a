"""Batch, mixture and context normalization from scratch, and what it takes to study them.

Importing the package needs numpy and torch only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnlib import functional
    from cnlib.norm import (
        BatchNorm,
        ContextNorm,
        ExemplarNorm,
        GatedContextNorm,
        GroupNorm,
        InstanceNorm,
        LayerNorm,
        MixtureNorm,
        ModeNorm,
        RMSNorm,
        SwitchableNorm,
        convert,
        frozen,
        reestimate,
        synchronize,
        use_context,
    )

__version__ = "0.1.0"

__all__ = [
    "BatchNorm",
    "ContextNorm",
    "ExemplarNorm",
    "GaussianMixture",
    "GatedContextNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MixtureNorm",
    "ModeNorm",
    "RMSNorm",
    "SwitchableNorm",
    "convert",
    "frozen",
    "functional",
    "reestimate",
    "synchronize",
    "use_context",
]

_LATER = (
    "contexts",
    "data",
    "experiments",
    "functional",
    "lab",
    "mixture",
    "models",
    "norm",
    "plots",
    "results",
    "sweeps",
    "testing",
    "training",
)


def __getattr__(name: str) -> Any:
    """All loads on first use, torch too: the layers alone import in no time, and the command line answers at once."""
    if name == "GaussianMixture":
        return import_module("cnlib.mixture").GaussianMixture
    if name in _LATER:
        return import_module(f"cnlib.{name}")
    if name in __all__:
        return getattr(import_module("cnlib.norm"), name)
    raise AttributeError(f"module 'cnlib' has no attribute {name!r}")
