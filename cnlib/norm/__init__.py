"""Normalization layers from scratch: each file holds a method's forward, its gradient by hand, and its module."""

from cnlib.norm.batch import BatchNorm, batch_norm
from cnlib.norm.context import ContextNorm, context_norm, context_norm_plus
from cnlib.norm.conversion import convert
from cnlib.norm.exemplar import ExemplarNorm, exemplar_norm
from cnlib.norm.family import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from cnlib.norm.gated import GatedContextNorm
from cnlib.norm.gaussians import responsibilities
from cnlib.norm.mixture import MixtureNorm, mixture_norm
from cnlib.norm.mode import ModeNorm, mode_norm
from cnlib.norm.placement import synchronize, use_context
from cnlib.norm.registry import Place, create
from cnlib.norm.statistics import frozen, reestimate
from cnlib.norm.switchable import SwitchableNorm, switchable_norm

__all__ = [
    "BatchNorm",
    "ContextNorm",
    "ExemplarNorm",
    "GatedContextNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MixtureNorm",
    "ModeNorm",
    "Place",
    "RMSNorm",
    "SwitchableNorm",
    "batch_norm",
    "context_norm",
    "context_norm_plus",
    "convert",
    "create",
    "exemplar_norm",
    "frozen",
    "mixture_norm",
    "mode_norm",
    "reestimate",
    "responsibilities",
    "switchable_norm",
    "synchronize",
    "use_context",
]
