"""Layers inside models: contexts and synchronization for deep layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Given = tuple[nn.Module, str, Tensor | None]


@contextmanager
def use_context(model: nn.Module, ids: Tensor | None = None, responsibilities: Tensor | None = None) -> Iterator[None]:
    """Give the layers in ``model`` the context ids and the responsibilities of a batch.

        with cnlib.use_context(model, ids):
            loss = criterion(model(x), y)

    ids: (N,) integers, for every layer that has an attribute `given_ids`, as ContextNorm has; responsibilities: (N, K),
    for every one that has `given_responsibilities`, as MixtureNorm has; None lets it fit each batch. The model's
    forward needs no extra argument, so this works through nn.Sequential, torch.compile and DistributedDataParallel;
    nn.DataParallel splits both over its replicas as it splits x. Blocks nest; on leaving, the former values
    are back. Keep the backward pass inside when activations are recomputed in it (checkpointing).
    """
    for name, value in (("ids", ids), ("responsibilities", responsibilities)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"use_context: {name} is a {type(value).__name__}, expected a torch.Tensor")
    former = _set_given(model, ids, responsibilities)
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            # the batch is split along with the inputs only if it travels with them, as keyword arguments
            given = {"_ids": ids, "_responsibilities": responsibilities}
            hooks.append(
                module.register_forward_pre_hook(lambda _, a, k, given=given: (a, k | given), with_kwargs=True)
            )
            hooks.append(module.module.register_forward_pre_hook(_set_given_of_replica, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        # backwards: a wrapper that passes attributes on shows one layer twice
        for layer, attribute, value in reversed(former):
            setattr(layer, attribute, value)


def _set_given(model: nn.Module, ids: Tensor | None, responsibilities: Tensor | None) -> list[Given]:
    """Hand both to the layers that take them; returns layer, attribute and the value it had before."""
    former: list[Given] = []
    for name, layer in model.named_modules():
        for attribute, value in (("given_ids", ids), ("given_responsibilities", responsibilities)):
            if hasattr(layer, attribute):
                former.append((layer, attribute, getattr(layer, attribute)))
                setattr(layer, attribute, value)
        if hasattr(layer, "given_ids") and hasattr(layer, "name"):
            # torch.compile's wrapper is not part of the user's name
            layer.name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    return former


def _set_given_of_replica(replica: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Runs on each replica: its part of the batch arrives as keyword arguments and goes to its own layers."""
    if "_ids" in kwargs:
        _set_given(replica, kwargs.pop("_ids"), kwargs.pop("_responsibilities"))
    return args, kwargs


def synchronize(model: nn.Module, process_group: ProcessGroup | bool | None = None) -> nn.Module:
    """Let the layers in ``model`` with batch statistics take them over all processes of a group.

        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(cnlib.synchronize(model))

    These are the layers that have an attribute `synchronized`: BatchNorm and MixtureNorm. In training, each process
    then normalizes its part of the batch as one process would the whole: outputs, gradients with respect to the sum of
    all losses, and running buffers are the same, for parts of any size. All processes have to run the layers equally
    often. Contexts need nothing: pass each process those of its own samples.
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
