"""Running statistics from outside the layers: hold them still, or take them anew from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cnlib.norm.arithmetic import flatten, unbiased
from cnlib.norm.batch import BATCH, SAMPLE, moments
from cnlib.norm.family import InstanceNorm
from cnlib.norm.gaussians import equal_values, invert
from cnlib.norm.placement import use_context
from cnlib.norm.processes import combine

INSTANCE = nn.modules.instancenorm._InstanceNorm  # ours derives from it
# mass, mean and biased variance of a batch, and its number of equal values, see `equal_values`
Row = tuple[Tensor, Tensor, Tensor, Tensor]


def _tracks(layer: nn.Module) -> bool:
    # not getattr: a compiled model passes on the attributes of the layer it wraps
    return bool(vars(layer).get("track_running_stats")) and getattr(layer, "running_mean", None) is not None


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """A with block in which running statistics do not move, those of our layers and of torch's.

        with cnlib.frozen(model):
            loss = criterion(model(x), y)

    Training mode still normalizes with the batch, evaluation with the running statistics: the layers'
    `track_running_stats` is False inside, which torch reads the same way. Blocks nest; on leaving, also by an error,
    the former settings are back.
    """
    tracking = [layer for layer in model.modules() if _tracks(layer)]
    # InstanceNorm's flag also says what evaluation uses, and torch's moves its buffers without asking it. There a
    # momentum of 0 holds them, up to the rounding of torch's average over samples: hence the copies.
    changes: list[tuple[Any, str, Any]] = [
        (layer, "momentum", 0.0) if isinstance(layer, INSTANCE) else (layer, "track_running_stats", False)
        for layer in tracking
    ]
    former = [(layer, attribute, getattr(layer, attribute)) for layer, attribute, _ in changes]
    copies = [(b, b.clone()) for layer in tracking if isinstance(layer, INSTANCE) for b in layer.buffers()]
    try:
        for layer, attribute, value in changes:
            setattr(layer, attribute, value)
        yield model
    finally:
        for layer, attribute, value in former:
            setattr(layer, attribute, value)
        _copy_back(copies)


def reestimate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Take the running statistics of every layer in ``model`` anew from data, in place, and return the model.

        cnlib.reestimate(model, loader)

    One pass without gradients: each layer with running statistics normalizes with its batch as in training, and they
    become those of all batches together: mean, unbiased variance, and for MixtureNorm the prior, of all values it saw,
    whatever the sizes of the batches (for InstanceNorm, the averages over samples). Other layers stay in the mode they
    are in: after ``model.eval()`` there is no dropout, and a ContextNorm with inference "cn+" works as at test. No
    weight moves, and modes, momentum, counts of batches and random numbers are as before. MixtureNorm's EM starts each
    batch from the running mixture as it was before the pass; where there was none, from the first batch's.

    batches: of tensors x; or tuples (x, ids) or (x, ids, responsibilities), as ``use_context`` takes them; or objects
    with attributes x, ids, responsibilities. Where no layer takes ids, the second entry may be anything, e.g. labels.
    With ``synchronize``, each process passes its part of each batch. Raises ValueError where no layer keeps running
    statistics, or there is no batch; after any error the model is as it was.
    Source: "precise BN" of Wu & Johnson (2021), with the variance of the batches' means, which they leave out.
    """
    tracking = [layer for layer in model.modules() if _tracks(layer) and _watchable(layer)]
    if not tracking:
        raise ValueError("reestimate: no layer of this model keeps running statistics, so there is nothing to estimate")
    seen: dict[nn.Module, list[Row]] = {layer: [] for layer in tracking}
    takes = {name: any(hasattr(layer, "given_" + name) for layer in model.modules()) for name in GIVEN}
    with torch.no_grad(), _as_it_was(model), _watched(seen), torch.compiler.set_stance("force_eager"):
        for layer in tracking:
            layer.training = True
        for batch in batches:
            x, given = _parts(batch, takes)
            with use_context(model, **given) if given else nullcontext():
                model(x)
    if not any(seen.values()):
        raise ValueError("reestimate: no batch reached a layer that keeps running statistics; expected at least one")
    for layer, found in [(layer, _together(layer, rows)) for layer, rows in seen.items() if rows]:
        _write(layer, *found)
    return model


GIVEN = ("ids", "responsibilities")


def _parts(batch: Any, takes: dict[str, bool]) -> tuple[Any, dict[str, Tensor]]:
    """The input, and what the model's layers take of the rest."""
    if isinstance(batch, Tensor):
        return batch, {}
    if isinstance(batch, tuple | list) and batch:
        x, rest = batch[0], dict(zip(GIVEN, batch[1:], strict=False))
    elif hasattr(batch, "x"):
        x, rest = batch.x, {name: getattr(batch, name, None) for name in GIVEN}
    else:
        raise TypeError(
            f"reestimate: a batch is a {type(batch).__name__}; expected a tensor x, a tuple (x, ids) or "
            "(x, ids, responsibilities), or an object with attributes x, ids, responsibilities"
        )
    return x, {name: value for name, value in rest.items() if value is not None and takes[name]}


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every layer of the model is in the mode it was in before, after an error as well."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what a pass in training mode changes beside the parameters."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {t.device.index for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        with modes_kept(model), torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        _copy_back(buffers)


def _copy_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, copy in copies:
            buffer.copy_(copy)


def _by_input(layer: nn.Module) -> bool:
    """Whether a layer's batch moments are those of its input; others hand theirs to their `update_running`."""
    if hasattr(layer, "update_running"):
        return isinstance(layer, INSTANCE)
    return isinstance(layer, (INSTANCE, nn.modules.batchnorm._BatchNorm))


def _watchable(layer: nn.Module) -> bool:
    return _by_input(layer) or hasattr(layer, "update_running")


@contextmanager
def _watched(seen: dict[nn.Module, list[Row]]) -> Iterator[None]:
    """Collect a row for each of a layer's batches."""
    hooks = []
    try:
        for layer, rows in seen.items():
            if _by_input(layer):
                hooks.append(layer.register_forward_pre_hook(_input_watcher(rows), with_kwargs=True))
            else:
                layer.update_running = _moments_watcher(layer, rows)  # type: ignore[assignment]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in seen:
            vars(layer).pop("update_running", None)


def _input_watcher(rows: list[Row]) -> Callable[..., None]:
    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = [*args, *kwargs.values()][0]
        if isinstance(layer, INSTANCE) and not isinstance(layer, InstanceNorm) and x.dim() == layer._get_no_batch_dim():
            x = x.unsqueeze(0)
        view = flatten(x).unsqueeze(2)  # (N, C, 1, L)
        if isinstance(layer, INSTANCE):
            mean, var, m = moments(view, SAMPLE)
            count = mean.new_tensor([len(x)])
            rows.append((count, mean.mean(0).flatten(), var.mean(0).flatten() * (m / (m - 1)), count))
        else:
            mean, var, m = moments(view, BATCH, _group_of_torchs(layer))
            count = mean.new_tensor([m])
            rows.append((count, mean.flatten(), var.flatten(), count))

    return watch


def _group_of_torchs(layer: nn.Module) -> Any:
    """The processes over which torch's own SyncBatchNorm takes its moments."""
    if not (isinstance(layer, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()):
        return None
    return layer.process_group or dist.group.WORLD


def _moments_watcher(layer: Any, rows: list[Row]) -> Callable[..., None]:
    def watch(mean: Tensor, var: Tensor, m: Tensor | int, *weighted: Tensor) -> None:
        mass = values = mean.new_ones(1) * m
        if weighted:  # a component's own
            priors, values = weighted
            mass = (priors * m).unsqueeze(1)
        rows.append((mass, mean, var, values))
        if not getattr(layer, "started", True):
            # its means name the components for the batches to come
            type(layer).update_running(layer, mean, var, m, *weighted)

    return watch


def _together(layer: nn.Module, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, mean and unbiased variance of all batches."""
    masses, means, variances, values = (torch.stack(column).cpu().double() for column in zip(*rows, strict=True))
    mass, mean, var = combine(masses, means, variances)
    if isinstance(layer, INSTANCE):
        return mass, mean, combine(masses, variances, torch.zeros_like(variances))[1]
    return mass, mean, unbiased(var, equal_values(mass, (masses.square() * invert(values)).sum(0)))


@torch.no_grad()
def _write(layer: Any, mass: Tensor, mean: Tensor, var: Tensor) -> None:
    for running, value in ((layer.running_mean, mean), (layer.running_var, var)):
        # a component that no batch has seen keeps the moments it had
        running.copy_(torch.where(mass > 0, value, running.cpu().double()))
    if hasattr(layer, "running_prior"):
        layer.running_prior.copy_(mass[:, 0] / mass.sum())
