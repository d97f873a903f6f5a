"""What ``cnlib.use_context`` gives to layers, kept apart by block: threads, tasks and generators can share a model."""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cnlib.norm.calling import in_backward

ATTRIBUTES = ("given_ids", "given_responsibilities")
Key = tuple[int, str]


class Block:
    """One with block: what it gives to which layer.

    A layer's attribute holds what the newest open block gives, whichever thread opened it: that is all a compiled
    graph and a layer of others see. Layers of ours ask ``given``, which knows whose block it is.
    """

    def __init__(self, model: nn.Module, values: tuple[Tensor | None, ...], frame: FrameType) -> None:
        self.frame: FrameType | None = frame
        self.values: dict[Key, Tensor | None] = {}
        self.layers: list[tuple[nn.Module, str]] = []
        # what the attributes held before any block
        self.former: dict[Key, Tensor | None] = {}
        with _lock:
            for name, layer in model.named_modules():
                for attribute, value in zip(ATTRIBUTES, values, strict=True):
                    if takes(layer, attribute):
                        key = (id(layer), attribute)
                        other = _newest(key)
                        self.former[key] = other.former[key] if other else getattr(layer, attribute)
                        self.values[key] = value
                        self.layers.append((layer, attribute))
                        setattr(layer, attribute, value)
                if takes(layer, "given_ids") and hasattr(layer, "name"):
                    # torch.compile's wrapper is not part of the user's name
                    layer.name = ".".join(part for part in name.split(".") if part != "_orig_mod")
            _open.append(self)
        _mine.set((*_mine.get(), self))

    def close(self) -> None:
        """Blocks may close in any order, in any thread: each takes back what it gave and nothing else."""
        with _lock:
            _open.remove(self)
            for layer, attribute in self.layers:
                key = (id(layer), attribute)
                other = _newest(key)
                setattr(layer, attribute, other.values[key] if other else self.former[key])
        self.frame = None
        _mine.set(tuple(block for block in _mine.get() if block.frame is not None))


_lock = threading.RLock()
_open: list[Block] = []
# of this thread or asynchronous task; a closed one may stay in it where it was closed from elsewhere
_mine: ContextVar[tuple[Block, ...]] = ContextVar("blocks of cnlib.use_context", default=())


def _newest(key: Key) -> Block | None:
    return next((block for block in reversed(_open) if key in block.values), None)


class Blocks:
    """The context manager that ``use_context`` returns. It can be entered again, also while it is."""

    def __init__(self, model: nn.Module, ids: Tensor | None, responsibilities: Tensor | None) -> None:
        self.model, self.given = model, (ids, responsibilities)
        self.entered: list[tuple[Block, list[RemovableHandle]]] = []

    def __enter__(self) -> None:
        block = Block(self.model, self.given, sys._getframe(1))
        parallel = [module for module in self.model.modules() if isinstance(module, nn.DataParallel)]
        hooks = [hook for module in parallel for hook in _split_over_replicas(module, block, self.given)]
        self.entered.append((block, hooks))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # the newest of this thread or task
        entry = next((e for e in reversed(self.entered) if e[0] in _mine.get()), self.entered[-1])
        self.entered.remove(entry)
        block, hooks = entry
        for hook in hooks:
            hook.remove()
        block.close()


def takes(layer: nn.Module, attribute: str) -> bool:
    """Whether a layer has an attribute itself: wrappers pass on those of the layers they wrap."""
    return attribute in vars(layer) or hasattr(type(layer), attribute)


def given(layer: nn.Module, attribute: str) -> Tensor | None:
    """What ``use_context`` gives to a layer in the block this call is made from; None outside of all blocks.

    A layer's own attribute counts where no open block knows the layer (a replica of nn.DataParallel), in a compiled
    graph, and in a backward pass, whose threads are torch's.
    """
    value: Tensor | None = getattr(layer, attribute)
    if torch.compiler.is_compiling():
        return value
    key = (id(layer), attribute)
    if block := _current(key):
        return block.values[key]
    return None if _newest(key) and not in_backward() else value


def _current(key: Key) -> Block | None:
    """The block that the running code is in. A generator that waits inside a block is not running."""
    mine = [block for block in _mine.get() if block.frame is not None and key in block.values]
    if len(mine) < 2:
        return mine[0] if mine else None
    entered = {id(block.frame): block for block in mine}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame) in entered:
            return entered[id(frame)]
        frame = frame.f_back
    return mine[-1]


def _split_over_replicas(
    module: nn.DataParallel[nn.Module], block: Block, values: tuple[Tensor | None, ...]
) -> list[RemovableHandle]:
    """nn.DataParallel splits what travels with the inputs, as keyword arguments; each replica hands its part on."""
    key = (id(module), "replicas")
    block.values[key] = None

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | (dict(zip(ATTRIBUTES, values, strict=True)) if _current(key) is block else {})

    return [
        module.register_forward_pre_hook(add, with_kwargs=True),
        module.module.register_forward_pre_hook(_to_layers_of_replica, with_kwargs=True),
    ]


def _to_layers_of_replica(
    replica: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for attribute in ATTRIBUTES:
        if attribute in kwargs:
            value = kwargs.pop(attribute)
            for layer in replica.modules():
                if takes(layer, attribute):
                    setattr(layer, attribute, value)
    return args, kwargs
