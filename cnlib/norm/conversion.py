"""Norm layers inside a model swapped by name: ``cnlib.convert``."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from cnlib.norm.recognition import (
    AFFINE,
    ALIKE,
    COUNT,
    MOMENTS,
    base_of,
    channels_of,
    check_axis,
    check_known,
    method_of,
)

Factory = Callable[[int], nn.Module]
# the hooks that a module may have, whatever this version of torch calls them
HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)


def convert(model: nn.Module, factories: Mapping[str, Factory]) -> nn.Module:
    """Swap norm layers by name, in place, and return the model.

        cnlib.convert(resnet, {"bn1": cnlib.BatchNorm, "layer3.*": lambda c: cnlib.ContextNorm(c, 3)})

    A key is a layer's name as in ``model.named_modules()``, or a pattern (``*``, ``?``) over the names of norm layers:
    torch's, those of ``cnlib.norm.registry.NORMS``, FrozenBatchNorm2d and LayerNorm2d. torch.compile's part of a name
    may be left out. An empty ``cnlib.norm.Place`` is filled by its name; no pattern means it. The last key that fits
    wins. A layer that has several names is one layer: the last key that fits any of them swaps it under all.

    A factory gets the number of channels. The new layer takes over device, type, train/eval mode, hooks, the parameters
    of equal name and shape (the same objects: `requires_grad` and optimizers stay), and eps and momentum where the
    factory left its class's defaults. A layer of the same method, ours for torch's or torch's for ours, also takes over
    the running statistics, and has no weight, bias or statistics where the old one had none, unless the factory asked
    for other than its class's default. Where the factory returns a module around one norm layer, that one takes over.
    SyncBatchNorm becomes a layer that ``cnlib.synchronize`` synchronized, a FrozenBatchNorm2d one that stays in
    evaluation and does not train.

    Raises ValueError for a key that fits no layer; a layer whose channels cannot be told, or that is not initialized;
    a subclass, or a layer with parametrizations, that computes something of its own, such as a fused activation; an
    axis that does not fit (nn.LayerNorm and nn.RMSNorm have their channels last, all others on axis 1); a layer that
    would lose its synchronization; a model compiled or distributed too early. The model is then as it was. Source of
    the idea: timm.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: the model is a {type(model).__name__}, expected an nn.Module")
    layers = dict(model.named_modules(remove_duplicate=False))
    plan: dict[nn.Module, tuple[str, Factory]] = {}
    for key, factory in factories.items():
        if isinstance(factory, nn.Module) or not callable(factory):
            what = (
                f"convert: for {key!r} came a {type(factory).__name__}, expected a function of the number of channels"
            )
            raise TypeError(f"{what} that returns a new layer, such as cnlib.BatchNorm")
        names = [key] if key in layers else [name for name in layers if key == _plain(name)]
        names = names or [n for n in _norms(layers) if fnmatchcase(n, key) or fnmatchcase(_plain(n), key)]
        if not names:
            raise ValueError(f"convert: no layer is called {key!r}; norm layers here are {_norms(layers)}")
        plan |= {layers[name]: (name, factory) for name in names}
    _check_wrappers(layers, plan)
    swapped: dict[nn.Module, nn.Module] = {}
    for layer, (name, factory) in plan.items():
        new = _replacement(name, layer, factory, model)
        if any(new is other for other in (*layers.values(), *swapped.values())):
            raise ValueError(f"convert: the factory for {name!r} returned a layer in use; it must make a new one")
        swapped[layer] = new
    for layer, new in swapped.items():  # only now: an error above leaves the model as it was
        _hand_over_hooks(layer, new)
    if model in swapped:
        return swapped[model]
    for name, layer in layers.items():
        if layer in swapped:
            parent, _, child = name.rpartition(".")
            setattr(layers[parent], child, swapped[layer])
            _call_norms(layers, parent)
    return model


def _call_norms(layers: Mapping[str, nn.Module], path: str) -> None:
    """Let torch's TransformerEncoder call its norm layers: its fused evaluation reads their weights instead."""
    parts = path.split(".") if path else []
    for module in (layers[".".join(parts[:depth])] for depth in range(len(parts) + 1)):
        for switch, off in (("activation_relu_or_gelu", 0), ("use_nested_tensor", False)):
            if switch in vars(module):
                setattr(module, switch, off)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _norms(layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, layer in layers.items() if base_of(layer) is not None]


def _check_wrappers(layers: Mapping[str, nn.Module], plan: Mapping[nn.Module, tuple[str, Factory]]) -> None:
    for name, layer in layers.items():
        if isinstance(layer, nn.parallel.DistributedDataParallel) and plan:
            raise ValueError(
                f"convert: {name or 'the model'!r} is a DistributedDataParallel, which would not send the gradients of "
                "new parameters; convert the model first, then wrap it"
            )
        inner = dict(layer.named_children()).get("_orig_mod")
        if inner is not None and (layer in plan or inner in plan):
            raise ValueError(
                f"convert: layer {name!r} is compiled by itself and would go on with its old code; convert first, then "
                "call torch.compile"
            )


def _replacement(name: str, old: Any, factory: Factory, model: nn.Module) -> nn.Module:
    check_known(name, old)
    channels = channels_of(old)
    if channels is None:
        raise ValueError(f"convert: layer {name!r} is a {type(old).__name__}; its number of channels cannot be told")
    new = factory(channels)
    if not isinstance(new, nn.Module):
        raise TypeError(f"convert: the factory for {name!r} returned a {type(new).__name__}, expected an nn.Module")
    check_axis(name, old, new)
    # a layer without values is where the rest of its model is
    tensors = [*old.parameters(), *old.buffers(), *model.parameters()]
    like = next((t for t in tensors if t.is_floating_point()), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    new.train(old.training)
    inside = [layer for layer in new.modules() if base_of(layer) is not None]
    if len(inside) == 1:
        _hand_over(name, old, inside[0])
    return new


def _hand_over(name: str, old: Any, new: Any) -> None:
    """Settings, parameters and buffers of `old` that `new` takes."""
    same = method_of(old) == method_of(new) != ""
    for setting in ("eps", "momentum"):
        if not (hasattr(old, setting) and hasattr(new, setting)) or getattr(new, setting) != _default(new, setting):
            continue
        kept = getattr(old, setting)
        if kept is None and setting == "eps":  # as torch's RMSNorm reads it
            kept = torch.finfo(next((p.dtype for p in old.parameters()), torch.get_default_dtype())).eps
        if same or kept is not None:
            setattr(new, setting, kept)
    if same:
        _same_parts(old, new)
    _synchronization(name, old, new)
    buffers = [key for key, _ in old.named_buffers() if key not in AFFINE]
    theirs, wanted = _tensors(old), {key: value.shape for key, value in _tensors(new).items()}
    fits = [key for key, value in theirs.items() if value.shape == wanted.get(key) and (same or key in AFFINE)]
    if any(key not in fits for key in buffers if key != COUNT):
        # statistics belong together
        fits = [key for key in fits if key not in buffers]
    for key in fits:
        _put(new, key, theirs[key])
    if any(key in fits for key in buffers):
        # what a layer derives from its buffers when they are loaded
        new.load_state_dict(new.state_dict())
    if same and _alike(old) and not _alike(new):
        new.eval().register_forward_pre_hook(_stay_in_evaluation)


def _alike(layer: nn.Module) -> bool:
    base = base_of(layer)
    return base is not None and base.__name__ in ALIKE


def _stay_in_evaluation(layer: nn.Module, _: Any) -> None:
    """Of a layer that was a FrozenBatchNorm2d: ``model.train()`` does not reach it."""
    layer.training = False


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _put(layer: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = layer.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor.detach().clone() if isinstance(tensor, nn.Parameter) else tensor
    else:
        # a FrozenBatchNorm2d has buffers where others have parameters
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.clone(), requires_grad=False)
        setattr(owner, leaf, parameter)


def _default(layer: nn.Module, option: str, otherwise: Any = None) -> Any:
    """The default of an argument of the class, or of the first it derives from that has one."""
    for cls in type(layer).__mro__:
        start = vars(cls).get("__init__")
        parameter = inspect.signature(start).parameters.get(option) if inspect.isfunction(start) else None
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return otherwise


def _same_parts(old: Any, new: Any) -> None:
    """Give `new` a weight, a bias and statistics where `old` has them, and none where it has none, except where the
    factory asked for other than the default of its class."""
    affine = bool(_default(new, "affine", _default(new, "elementwise_affine", True)))
    tracks = bool(_default(new, "track_running_stats", False))
    usual = {"weight": affine, "bias": affine and bool(_default(new, "bias", True))}
    usual |= dict.fromkeys((*MOMENTS, COUNT), tracks)
    for part, is_usual in usual.items():
        theirs, own = getattr(old, part, None), getattr(new, part, None)
        if (own is not None) != is_usual or not hasattr(new, part) or (part == COUNT and part not in old._buffers):
            continue
        if theirs is None and own is not None and not _alike(new):
            setattr(new, part, None)
        elif theirs is not None and own is None:
            vars(new).pop(part, None)
            if part in AFFINE:
                new.register_parameter(part, nn.Parameter(theirs.detach().clone()))
            else:
                new.register_buffer(part, theirs)
    for flag in ("affine", "elementwise_affine"):
        if hasattr(new, flag):
            setattr(new, flag, new.weight is not None)
    flag = "track_running_stats"
    if hasattr(old, flag) and getattr(new, flag, None) == tracks:
        setattr(new, flag, getattr(old, flag))


def _synchronization(name: str, old: Any, new: Any) -> None:
    if not (isinstance(old, nn.SyncBatchNorm) or getattr(old, "synchronized", False)):
        return
    if hasattr(new, "synchronized"):
        new.synchronized = True
    elif method_of(new) == "bn" and not isinstance(new, nn.SyncBatchNorm) and not _alike(new):
        raise ValueError(
            f"convert: layer {name!r} shares its batch statistics with other processes, an nn.{type(new).__name__} "
            "does not; use nn.SyncBatchNorm, or call cnlib.synchronize(model, False) first"
        )
    if getattr(new, "process_group", ...) is None:
        new.process_group = old.process_group


def _hand_over_hooks(old: nn.Module, new: nn.Module) -> None:
    for name in HOOKS:
        theirs, own = vars(old).get(name) or {}, vars(new)[name]
        for key, hook in list(theirs.items()):
            function = getattr(hook, "hook", hook)
            of_the_layer = getattr(function, "__self__", None) is old or hook in own.values()
            if of_the_layer or (function is _stay_in_evaluation and method_of(old) != method_of(new)):
                del theirs[key]
            elif getattr(hook, "with_module", False):
                hook.module = weakref.ref(new)
        if theirs:
            # the same mapping, so that the handles which remove a hook still find it
            theirs.update(own)
            vars(new)[name] = theirs
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
