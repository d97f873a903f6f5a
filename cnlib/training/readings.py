"""How a network is read on a test set: after each epoch, and once more at the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnlib.norm import ContextNorm, reestimate
from cnlib.norm.recognition import base_of
from cnlib.training import distributed, records
from cnlib.training.batches import Batch, Split
from cnlib.training.build import places
from cnlib.training.config import Config
from cnlib.training.metrics import Meter
from cnlib.training.observe import Observer

if TYPE_CHECKING:
    from cnlib.training.trainer import Trainer

READ_SIZE = 500  # images at once, where nothing depends on how many: training may have two


@dataclass(frozen=True)
class TestSet:
    """Images, and how they are read.

    contexts: from the ids (N,) of a batch to those that the model is told; None: the truth.
    inference: "cn", or "cn+" (Algorithm 3), for layers that know both.
    logits: from logits (N, K) and the batch to the logits that count, e.g. those masked by what is known of the class.
    """

    split: Split
    contexts: Callable[[Tensor], Tensor] | None = None
    inference: str = "cn"
    logits: Callable[[Tensor, Batch], Tensor] | None = None


def prepared(model: nn.Module, inference: str) -> nn.Module:
    """The model in evaluation mode, its layers that know CN+ told which inference to use; in place."""
    for module in model.eval().modules():
        if hasattr(module, "inference"):
            module.inference = inference  # type: ignore[assignment]
    return model


@torch.no_grad()
def evaluate(trainer: Trainer, test: TestSet, model: nn.Module, guesses: list[Tensor] | None = None) -> dict[str, Any]:
    """Metrics on a test set, in batches of the training size: CN+ uses the moments of the batch it sees, so processes
    share the set out in whole batches.

    Also what the first layer under test does to it, one number a context: see `Observer.summary`.
    guesses: gets the predicted class of each image that this process saw, (N,) a batch.
    """
    model = prepared(model, test.inference)
    config, meter = trainer.config, Meter(trainer.num_classes, trainer.device)
    layer = first_layer(model, config)
    takes_ids = hasattr(layer, "given_ids")
    share = distributed.rank(), distributed.size()
    with Observer(layer, config.num_contexts if takes_ids else 1) as observer:
        for batch in test.split.ordered(config.batch_size, share):
            if test.contexts and batch.ids is not None:
                batch = replace(batch, ids=test.contexts(batch.ids))
            observer.ids = batch.ids if takes_ids else None
            logits = trainer.logits(model, batch)
            logits = test.logits(logits, batch) if test.logits else logits
            meter.update(trainer.measure(logits, batch))
            if guesses is not None:
                guesses.append(logits.argmax(1).cpu())
    metrics = meter.compute()
    return metrics | trainer.scores(meter.pooled) | observer.summary()


def first_layer(model: nn.Module, config: Config) -> nn.Module:
    """The first layer of the method under test."""
    names = dict(model.named_modules())
    wanted = places(model, config)[0]
    if wanted in names:
        return names[wanted]
    # a pattern means norm layers, though it may fit the names of others, and the model itself
    fitting = [layer for name, layer in names.items() if fnmatchcase(name, wanted)]
    return next((layer for layer in fitting if base_of(layer)), fitting[0])


def norm_on_image(model: nn.Module, config: Config) -> ContextNorm | None:
    """The context norm on the image, where that is the first layer of the method under test."""
    layer, on_image = first_layer(model, config), getattr(model, "SLOTS", {}).get("input")
    return layer if isinstance(layer, ContextNorm) and places(model, config)[0] == on_image else None


def learned_moments(layer: ContextNorm | None) -> dict[str, Any]:
    """Of a context norm "learned_mean" and "learned_std", (T, C) each; without one nothing."""
    if layer is None:
        return {}
    mean, var = layer.moments()
    return {"learned_mean": mean.tolist(), "learned_std": var.sqrt().tolist()}


def final_readings(trainer: Trainer, late: Mapping[str, TestSet] | None = None) -> dict[str, Any]:
    """Each test set under running statistics re-estimated on the training images with the same weights,
    "test_reestimated_accuracy" and so on; and "predictions", those of both readings.

    Running statistics are averages over the weights of many steps; these are of one network.
    late: test sets that were not read after each epoch: their metrics are recorded, too.
    """
    kept: dict[str, str] = {}
    found: dict[str, Any] = {"predictions": kept}

    def read(test: TestSet, model: nn.Module, name: str) -> dict[str, Any]:
        guesses: list[Tensor] = []
        metrics = evaluate(trainer, test, model, guesses)
        kept[name] = records.pack(distributed.in_turn(guesses))
        return {f"{name}_{key}": value for key, value in metrics.items()}

    tracks = has_running_moments(trainer.tested)
    fresh = {test.inference: reestimated(trainer, test.inference) for test in trainer.tests.values() if tracks}
    for name, test in trainer.tests.items():
        read(test, trainer.tested, name)  # its metrics are those of its own epoch
        if tracks:
            found |= read(test, fresh[test.inference], f"{name}_reestimated")
    for name, test in (late or {}).items():
        found |= read(test, trainer.tested, name)
    return found


@torch.no_grad()
def logits_on(trainer: Trainer, model: nn.Module, split: Split, size: int = READ_SIZE) -> Tensor:
    """(N, K), of all images of a split in their order, `size` at once. model: in the mode in which it is to be read."""
    return torch.cat([trainer.logits(model, batch) for batch in split.ordered(size)])


def some_layer_has(model: nn.Module, attribute: str) -> bool:
    """What a model can be told or asked: its layers say it by their attributes (see CONTRIBUTING.md)."""
    return any(hasattr(layer, attribute) for layer in model.modules())


def has_running_moments(model: nn.Module) -> bool:
    """Whether a layer of it has running statistics."""
    return any(getattr(layer, "running_mean", None) is not None for layer in model.modules())


@torch.no_grad()
def read_inputs(
    trainer: Trainer, split: Split, layers: Mapping[str, nn.Module], read: Callable[[Any, Tensor], Tensor]
) -> dict[str, Tensor]:
    """What `read(layer, x)` makes of the input of each layer, for all images of a split in their order: (N, *) each.

    One pass of the tested network in evaluation mode. Every process reads all images.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    model = prepared(trainer.tested, "cn")
    with ExitStack() as stack:
        for name, layer in layers.items():
            keep = seen[name].append
            see = lambda layer, inputs, keep=keep: keep(read(layer, inputs[0]))  # noqa: E731
            stack.enter_context(layer.register_forward_pre_hook(see))
        for batch in split.ordered(READ_SIZE):
            trainer.logits(model, batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def reestimated(trainer: Trainer, inference: str = "cn") -> nn.Module:
    """A copy of the network with running statistics of all training images, in random batches, not augmented.

    inference: as at test, since what CN+ hands on has another scale than what CN does.
    """
    generator = torch.Generator(trainer.device).manual_seed(trainer.config.seed)
    model = prepared(copy.deepcopy(trainer.tested), inference)
    with trainer.autocast():
        return reestimate(model, trainer.stream(trainer.train, generator, views=[()]))
