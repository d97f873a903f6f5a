"""Layers inside models: contexts and synchronization for deep layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from cnlib.norm.given import Blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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

    These are the layers that have an attribute `synchronized`, such as BatchNorm and MixtureNorm. In training, each
    process then normalizes its part of the batch as one process would the whole: outputs, gradients with respect to the
    sum of all losses, and running buffers are the same, for parts of any size. All processes have to run the layers
    equally often. Contexts need nothing: pass each process those of its own samples.
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
