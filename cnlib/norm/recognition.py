"""What a norm layer of a model is: ours, torch's, or another library's, and whether it does what its class does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from cnlib.norm import registry

AFFINE, MOMENTS, COUNT = ("weight", "bias"), ("running_mean", "running_var"), "num_batches_tracked"
# a subclass or an instance that has one of these of its own computes something else than the layer it derives from
DECIDES = frozenset(("forward", "__call__", "train", "eval", *AFFINE, *MOMENTS, COUNT))
# torch's classes, by the name their counterpart has in the registry; a subclass of _NormBase alone has none
TORCHS: dict[type[nn.Module], str] = {
    nn.SyncBatchNorm: "bn",
    _BatchNorm: "bn",
    _InstanceNorm: "in",
    _NormBase: "",
    nn.GroupNorm: "gn",
    nn.LayerNorm: "ln",
    nn.RMSNorm: "rms",
}
LAST_AXIS = (nn.LayerNorm, nn.RMSNorm)


def _frozen_batch_norm(layer: Any, x: Tensor) -> Tensor:
    moments = layer.running_mean, layer.running_var
    return nn.functional.batch_norm(x, *moments, layer.weight, layer.bias, False, 0.0, layer.eps)


def _layer_norm_of_positions(layer: Any, x: Tensor) -> Tensor:
    rows = x.movedim(1, -1)
    return nn.functional.layer_norm(rows, rows.shape[-1:], layer.weight, layer.bias, layer.eps).movedim(-1, 1)


# classes that several libraries have, told by their name and by what they compute; none of them need be installed
ALIKE: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "FrozenBatchNorm2d": ("bn", _frozen_batch_norm),
    "LayerNorm2d": ("", _layer_norm_of_positions),
}


def known_classes() -> dict[type[nn.Module], str]:
    return TORCHS | {entry.layer: key for key, entry in registry.NORMS.items() if entry.layer is not registry.Place}


def base_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class whose mathematics a layer has: of the registry, of torch, or one told by its name."""
    known = known_classes()
    return next((cls for cls in type(layer).__mro__ if cls in known or cls.__name__ in ALIKE), None)


def method_of(layer: nn.Module) -> str:
    """The name in the registry of what a layer does, the same for torch's; "" for what has no counterpart there."""
    base, known = base_of(layer), known_classes()
    if base is None:
        return ""
    return known[base] if base in known and base.__name__ not in ALIKE else ALIKE[base.__name__][0]


def check_known(name: str, old: nn.Module) -> None:
    """Refuse a layer that is not initialized, or that computes something which its class in the table does not."""
    base, cls = base_of(old), type(old)
    who = f"convert: layer {name!r} is a {cls.__module__}.{cls.__qualname__}"
    if isinstance(old, LazyModuleMixin) and (old.has_uninitialized_params() or not getattr(old, "num_features", 1)):
        raise ValueError(f"{who}, whose number of channels is not known yet; run one batch through the model first")
    if base is None:
        return
    own = {n for n in DECIDES if vars(old).get(n) is not None}
    own |= {n for between in cls.__mro__[: cls.__mro__.index(base)] for n in vars(between).keys() & DECIDES}
    if (
        not own
        and base.__name__ in ALIKE
        and base not in known_classes()
        and not _computes(old, ALIKE[base.__name__][1])
    ):
        own = {"forward"}
    if own:
        plain = next(c for c in cls.__mro__ if c is base or not vars(c).keys() & DECIDES)
        raise ValueError(
            f"{who}, with {', '.join(sorted(own))} of its own beside {plain.__name__}: what it adds (an activation, a "
            "parametrization, a mask) would be lost. Leave it out, or put a plain layer there first, and what it adds "
            "beside it; parametrize.remove_parametrizations and prune.remove of torch.nn.utils bake theirs in"
        )


@torch.no_grad()
def _computes(layer: Any, reference: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether a layer does on a small input as `reference` does."""
    try:
        like = next(t for t in (layer.weight, layer.bias, *layer.buffers()) if t is not None)
        count = channels_of(layer) or 1
        # fixed numbers, so that no random state moves
        x = torch.linspace(-3, 3, 2 * count * 6).cos().mul(3).reshape(2, count, 2, 3).to(like)
        expected = reference(layer, x)
        difference = type(layer).forward(layer, x) - expected
    except Exception:
        return False
    return like.is_meta or bool(difference.float().norm() <= 1e-2 * expected.float().norm())


def channels_of(layer: Any) -> int | None:
    shape = getattr(layer, "normalized_shape", None) or getattr(getattr(layer, "running_mean", None), "shape", None)
    for count in (getattr(layer, "num_features", None), getattr(layer, "num_channels", None), *(shape or ())[:1]):
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None


def check_axis(name: str, old: nn.Module, new: nn.Module) -> None:
    last, base = base_of(old) in LAST_AXIS, base_of(new)
    if base is None or base_of(old) is None or last == (base in LAST_AXIS):
        return
    what, shape = type(new).__name__, getattr(old, "normalized_shape", ())
    ours = "" if base in TORCHS else " of cnlib"
    if not last:
        raise ValueError(
            f"convert: layer {name!r} is a {type(old).__name__}, with its channels on axis 1; an nn.{what} takes the "
            "last axis for them. Use cnlib.LayerNorm, or nn.GroupNorm(1, channels)"
        )
    if len(shape) > 1:
        raise ValueError(
            f"convert: layer {name!r} is an nn.{type(old).__name__} over the last {len(shape)} axes, {tuple(shape)}, "
            f"with a weight for each of their elements; a {what} has one for each channel. Leave this layer out"
        )
    raise ValueError(
        f"convert: layer {name!r} is an nn.{type(old).__name__}, with its channels on the last axis; a {what}{ours} "
        "has them on axis 1 and would take another axis for them. Leave this layer out, or let the factory return a "
        "module that runs its layer on rows, y = layer(x.reshape(-1, channels)).reshape(x.shape): with cnlib.LayerNorm "
        "or cnlib.RMSNorm in it the numbers are the same"
    )
