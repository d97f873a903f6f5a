"""Layers inside models: contexts for deep layers, and norm layers swapped by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from cnlib.norm import registry
from cnlib.norm.given import Blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TORCHS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def use_context(model: nn.Module, ids: Tensor | None = None, responsibilities: Tensor | None = None) -> Blocks:
    """Give the layers in ``model`` the context ids and the responsibilities of a batch.

        with cnlib.use_context(model, ids):
            loss = criterion(model(x), y)

    ids: (N,) integers, for every layer that has an attribute `given_ids`, as ContextNorm has; responsibilities: (N, K),
    for every one that has `given_responsibilities`, as MixtureNorm has; None lets it fit each batch. The model's
    forward needs no extra argument, so this works through nn.Sequential, torch.compile and DistributedDataParallel;
    nn.DataParallel splits both over its replicas as it splits x. Blocks nest, and close in any order; on leaving,
    nothing stays behind. Threads, asynchronous tasks and generators that share a model each get their own; a thread
    started inside a block enters its own. Two exceptions see the newest block, whoever opened it: compiled graphs, and
    layers that read the attribute themselves. Keep the backward pass inside when activations are recomputed in it
    (checkpointing).
    """
    for name, value in (("ids", ids), ("responsibilities", responsibilities)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"use_context: {name} is a {type(value).__name__}, expected a torch.Tensor")
    return Blocks(model, ids, responsibilities)


def synchronize(model: nn.Module, process_group: ProcessGroup | bool | None = None) -> nn.Module:
    """Let the layers in ``model`` with batch statistics take them over all processes of a group.

        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(cnlib.synchronize(model))

    These are the layers that have an attribute `synchronized`: BatchNorm and MixtureNorm. In training, each process
    then normalizes its part of the batch as one process would the whole: outputs, gradients with respect to the sum of
    all losses, and running buffers are the same, for parts of any size. All processes have to run the layers equally
    often. Contexts need nothing: pass each process those of its own samples.
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` replaces a BatchNorm of ours by torch's, which shares its batch too (on
    GPUs only), and leaves a MixtureNorm as it is.
    process_group: None is all processes; False undoes it. In place; returns the model. As torch.nn.SyncBatchNorm does
    for its own layers. Raises RuntimeError where torch.distributed is not initialized, ValueError in a process that is
    not of the group.
    """
    on = process_group is not False
    group = None if isinstance(process_group, bool) else process_group
    if on and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("synchronize: torch.distributed is not initialized; call its init_process_group first")
    if on and dist.get_rank(group) < 0:
        raise ValueError(f"synchronize: process {dist.get_rank()} is not a member of the group it was given")
    for layer in model.modules():
        if hasattr(layer, "synchronized"):
            layer.synchronized, layer.process_group = on, group  # type: ignore[assignment]
    return model


def convert(model: nn.Module, factories: Mapping[str, Callable[[int], nn.Module]]) -> nn.Module:
    """Swap norm layers by name, in place, and return the model.

        cnlib.convert(resnet, {"bn1": cnlib.BatchNorm, "layer3.*": lambda c: cnlib.ContextNorm(c, 3)})

    A key is a layer's name as in ``model.named_modules()``, or a pattern (``*``, ``?``) over the names of norm
    layers: torch's and those of ``cnlib.norm.registry.NORMS``. An empty ``cnlib.norm.Place`` is filled by its name;
    no pattern means it. The last key that fits wins. A factory gets the number of channels. The new layer takes over
    device, type and train/eval mode, and the parameters and buffers where both layers have the same ones. A layer that
    has several names is one layer: the last key that fits any of them swaps it under all.
    Raises ValueError for a key that fits no layer, a layer whose channels cannot be told, and where a layer of cnlib
    would replace an nn.LayerNorm or nn.RMSNorm: ours have the channels on axis 1, where a transformer has its tokens,
    and these have them on the last. Source of the idea: timm.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    plan: dict[nn.Module, tuple[str, Callable[[int], nn.Module]]] = {}
    for key, factory in factories.items():
        names = [key] if key in layers else [n for n in _norms(layers) if fnmatchcase(n, key)]
        if not names:
            raise ValueError(f"convert: no layer is called {key!r}; norm layers here are {_norms(layers)}")
        plan |= {layers[name]: (name, factory) for name in names}
    swapped = {layer: _replacement(name, layer, factory, model) for layer, (name, factory) in plan.items()}
    if model in swapped:
        return swapped[model]
    for name, layer in layers.items():  # only now: an error above leaves the model as it was
        if layer in swapped:
            parent, _, child = name.rpartition(".")
            setattr(layers[parent], child, swapped[layer])
    return model


def _ours(layer: nn.Module) -> bool:
    """Whether a layer is of the registry, and no empty place."""
    known = tuple(entry.layer for entry in registry.NORMS.values())
    return isinstance(layer, known) and not isinstance(layer, registry.Place)


def _norms(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, layer in layers.items() if _ours(layer) or isinstance(layer, TORCHS)]


def _replacement(name: str, old: nn.Module, factory: Callable[[int], nn.Module], model: nn.Module) -> nn.Module:
    shape = getattr(old, "normalized_shape", None)
    channels = shape[0] if shape else getattr(old, "num_features", getattr(old, "num_channels", None))
    if not isinstance(channels, int):
        raise ValueError(f"convert: layer {name!r} is a {type(old).__name__}; its number of channels cannot be told")
    new = factory(channels)
    if not isinstance(new, nn.Module):
        raise TypeError(f"convert: the factory for {name!r} returned a {type(new).__name__}, expected an nn.Module")
    if shape and _ours(new):
        raise ValueError(
            f"convert: layer {name!r} is an nn.{type(old).__name__}, with its channels on the last axis; a "
            f"{type(new).__name__} of cnlib has them on axis 1 and would take another axis for them. Leave this layer "
            "out, or let the factory return a module that moves the axis there and back: x.movedim(-1, 1), then "
            "y.movedim(1, -1)"
        )
    state = old.state_dict()
    # a layer without values is where the rest of its model is
    like = next((t for t in (*state.values(), *model.parameters()) if t.is_floating_point()), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    wanted = {key: value.shape for key, value in new.state_dict().items()}
    if wanted == {key: value.shape for key, value in state.items()}:
        new.load_state_dict(state)
    return new.train(old.training)
