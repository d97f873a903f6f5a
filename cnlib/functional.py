"""The normalizations as pure functions: no parameters, no running moments."""

from cnlib.norm import (
    batch_norm,
    context_norm,
    context_norm_plus,
    exemplar_norm,
    mixture_norm,
    mode_norm,
    responsibilities,
    switchable_norm,
)

__all__ = [
    "batch_norm",
    "context_norm",
    "context_norm_plus",
    "exemplar_norm",
    "mixture_norm",
    "mode_norm",
    "responsibilities",
    "switchable_norm",
]
