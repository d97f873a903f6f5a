"""The layers by name: what a configuration, the contract tests and the figures ask for. A new layer is a new row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cnlib.norm.batch import BatchNorm
from cnlib.norm.context import ContextNorm
from cnlib.norm.exemplar import ExemplarNorm
from cnlib.norm.family import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from cnlib.norm.gated import GatedContextNorm
from cnlib.norm.mixture import MixtureNorm
from cnlib.norm.mode import ModeNorm
from cnlib.norm.switchable import SwitchableNorm

GROUP_CHANNELS = 8


class Place(nn.Identity):
    """An empty place for a norm layer: the identity, which knows its number of channels. ``cnlib.convert`` fills it."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def extra_repr(self) -> str:
        return str(self.num_features)


@dataclass(frozen=True)
class Entry:
    """A layer as it is called in text and figures, its class, and the options `create` takes where none are given.

    defaults: from the number of channels. The layer takes num_features as a keyword, and its options with it; what it
    can do is asked of the layer itself: see ``cnlib.use_context``, ``cnlib.synchronize`` and ``cnlib.reestimate``.
    """

    label: str
    layer: type[nn.Module]
    defaults: Callable[[int], Mapping[str, Any]] = lambda c: {}

    @property
    def options(self) -> tuple[str, ...]:
        """The names of what the layer takes besides its channels."""
        return tuple(name for name in inspect.signature(self.layer).parameters if name != "num_features")


NORMS: dict[str, Entry] = {
    "bn": Entry("BN", BatchNorm),
    "ln": Entry("LN", LayerNorm),
    "in": Entry("IN", InstanceNorm, lambda c: {"affine": True}),
    "gn": Entry("GN", GroupNorm, lambda c: {"num_groups": c // GROUP_CHANNELS if c % GROUP_CHANNELS == 0 else 1}),
    "rms": Entry("RMSNorm", RMSNorm),
    "mn": Entry("MN", MixtureNorm, lambda c: {"num_components": 3}),
    "cn": Entry("CN", ContextNorm, lambda c: {"num_contexts": 3}),
    "sn": Entry("SN", SwitchableNorm),
    "en": Entry("EN", ExemplarNorm),
    "mode": Entry("ModeNorm", ModeNorm),
    "gated": Entry("gated CN", GatedContextNorm, lambda c: {"num_contexts": 3}),
    "none": Entry("no norm", Place),
}


def create(name: str, num_features: int, **options: Any) -> nn.Module:
    """A norm layer by its name in ``NORMS``, e.g. ``create("gn", 64)``.

    "bn" "ln" "in" "gn" "rms" "mn" "cn" "sn" "en" "mode" "gated" "none". GN has groups of 8 channels where 8 divides
    num_features, else one group; IN has an affine map; MN has 3 components, CN and gated CN 3 contexts; "none" is an
    empty place.
    options: of the layer, in place of these. Raises ValueError for an unknown name, TypeError for an option that the
    layer does not take.
    """
    if name not in NORMS:
        raise ValueError(f"create: no norm layer is called {name!r}; expected one of {', '.join(NORMS)}")
    entry = NORMS[name]
    if unknown := options.keys() - set(entry.options):
        known = ", ".join(entry.options) or "none"
        raise TypeError(f"create: {name!r} does not take {', '.join(sorted(unknown))}; the options are {known}")
    return entry.layer(num_features=num_features, **{**entry.defaults(num_features), **options})
