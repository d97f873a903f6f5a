"""How a layer is called: by torch's keywords, by torch.fx, under torch's transforms, a second time for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Function = TypeVar("Function", bound=Callable[..., Any])


def also_named(**names: str) -> Callable[[Function], Function]:
    """Let keywords have torch's names too: ``also_named(num_channels="num_features")``."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            for theirs, ours in names.items():
                if theirs in kwargs:
                    if ours in kwargs:
                        raise TypeError(f"{theirs} and {ours} are two names of one argument; give one of them")
                    kwargs[ours] = kwargs.pop(theirs)
            return function(*args, **kwargs)

        return cast(Function, called)

    return decorate


def drop_in(forward: Function) -> Function:
    """Let a layer's forward take its input as ``input`` too, and be one node of a graph of torch.fx, as torch's are."""

    @also_named(input="x")
    @wraps(forward)
    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return _node(self, value.tracer, args, kwargs)
        return forward(self, *args, **kwargs)

    return cast(Function, called)


def _node(layer: nn.Module, tracer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Proxy:
    if layer is tracer.root:
        raise TypeError(
            f"torch.fx: a {type(layer).__name__} is one node of a graph and cannot be looked into; "
            "trace a model that contains it, such as nn.Sequential(layer)"
        )
    node: Proxy = tracer.create_proxy("call_module", tracer.path_of_module(layer), args, kwargs)
    return node


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jacrev, ...), forward-mode differentiation or torch.jit.trace is at work."""
    if torch.compiler.is_compiling():
        return False
    functorch: bool = torch._C._are_functorch_transforms_active()
    return functorch or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def by_hand(gradient: str) -> bool:
    """Whether the derivation of the chapter gives the gradient. Transforms need to see through the forward, so under
    them torch differentiates it, as ``gradient="autograd"`` asks for."""
    return gradient == "manual" and not transformed()


# dispatch modes under which a tensor stands for any values
SYMBOLIC = ("FakeTensorMode", "ProxyTorchDispatchMode")


def has_values(tensor: Tensor) -> bool:
    """Whether Python may look at a tensor's values: not on the meta device, nor where a graph is recorded, nor under
    vmap."""
    if torch.compiler.is_compiling() or tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        return False
    if any(type(mode).__name__ in SYMBOLIC for mode in _get_current_dispatch_mode_stack()):
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True


def move(running: Tensor, value: Tensor, who: str) -> None:
    """Write a layer's new running statistics into its buffer."""
    try:
        running.copy_(value)
    except RuntimeError as error:
        if not transformed():
            raise
        raise RuntimeError(
            f"{who}: vmap gives each of its slices running statistics of its own, and the buffers hold one. Make them "
            "part of what is mapped over (torch.func.stack_module_state), or leave them alone: layer.eval(), "
            "`with cnlib.frozen(model):`, or torch.func.replace_all_batch_norm_modules_(model)"
        ) from error


def in_backward() -> bool:
    """Whether a backward pass is running: a forward is then run again for its gradient (activation checkpointing)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
