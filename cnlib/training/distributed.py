"""Several processes, one run: ``torchrun`` starts them, `train` finds them, each takes its part of every batch.

Every process keeps data, weights, optimizer and the order of the images, equal to those of a run in one process, and
gradients and batch statistics are those of the whole batch: so are its numbers. The first process alone writes.
"""

from __future__ import annotations

import inspect
import itertools
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cnlib.norm import synchronize

T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """How many processes share the run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leader() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def start(device: str | torch.device) -> torch.device:
    """Join the other processes where torchrun started this one; the device this process is to use.

    gloo on the CPU; nccl on CUDA, where each process of a machine takes a GPU of its own. A group that is initialized
    already is used as it is. Raises ValueError for a device that cannot be shared out so.
    """
    device = torch.device(device)
    launched = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    joined = dist.is_available() and dist.is_initialized()
    if not launched and size() == 1:
        return device
    if device.type == "cuda" and device.index is None:
        local, here = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
        if local >= here:
            raise ValueError(
                f"process {local} of this machine finds {here} GPUs: start it with --nproc-per-node {here}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device {device} cannot be shared by processes: choose cpu or cuda, or start without torchrun"
        )
    if not joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def parallel(model: Any) -> Any:
    """The model as each process is to call it in training: gradients averaged, statistics over the whole batch.

    ``use_context`` reaches the layers as before, with the contexts of this process's samples.
    """
    if size() == 1:
        return model
    # synchronized layers have equal buffers everywhere: nothing to broadcast (its name changed after torch 2.11)
    names = inspect.signature(DistributedDataParallel).parameters
    option: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    return DistributedDataParallel(synchronize(model), **option)


def reseed(*numbers: int) -> None:
    """Give every process but the first random numbers of its own; the first goes on with those of a run alone."""
    if not leader():
        torch.manual_seed(int(np.random.SeedSequence((*numbers, rank())).generate_state(1)[0]))


def from_all(value: T) -> list[T]:
    """What each process passed, in order. For small things, once an epoch: they are pickled."""
    if size() == 1:
        return [value]
    values: list[T | None] = [None] * size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def in_turn(batches: list[torch.Tensor]) -> torch.Tensor:
    """What the processes have of each batch of a test set, of which every one has taken its turn, as one (N, *)."""
    parts = from_all(batches)
    turns = itertools.zip_longest(*parts)
    return torch.cat([batch for turn in turns for batch in turn if batch is not None])


def from_leader(function: Callable[[], T]) -> T:
    """What ``function()`` returns in the first process, which alone calls it; its error is raised in all of them."""
    if size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if leader():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = _portable(error)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].in_all = True  # nobody waits for anybody: `together` need not end the processes
        raise outcome[1]
    return cast(T, outcome[0])


def _portable(error: Exception) -> Exception:
    try:
        return cast(Exception, pickle.loads(pickle.dumps(error)))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def together() -> Iterator[None]:
    """In here an error in one process ends all: the others would wait for it forever. Alone, errors are as ever.

    SystemExit, with a message that says which process failed, passes whatever would catch the error and go on.
    """
    try:
        yield
    except Exception as error:
        if size() == 1 or getattr(error, "in_all", False):
            raise
        me, text = f"process {rank()} of {size()}", (str(error).splitlines() or [""])[0]
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise SystemExit(
                f"{me} ends because another one did, whose own message says why ({text}). "
                "Finished epochs are kept: start the same command again"
            ) from error
        traceback.print_exc()
        raise SystemExit(f"{me} failed and ends, and the others with it: {type(error).__name__}: {text}") from error
