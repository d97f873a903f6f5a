"""From a configuration to a model, its contexts and its optimizer: tables, so that a new choice is a new row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cnlib
from cnlib import contexts
from cnlib.data import ImageData
from cnlib.models import ConvNet
from cnlib.training.config import CHOICES, Config

# A group holds 8 channels where that divides them: GroupNorm's paper found groups of 8 to 32 channels about equal.
NORMS: dict[str, Callable[[Config, int], nn.Module]] = {
    "bn": lambda config, c: cnlib.BatchNorm(c),
    "ln": lambda config, c: cnlib.LayerNorm(c),
    "in": lambda config, c: cnlib.InstanceNorm(c, affine=True),
    "gn": lambda config, c: cnlib.GroupNorm(c // 8 if c % 8 == 0 else 1, c),
    "mn": lambda config, c: cnlib.MixtureNorm(c, config.num_contexts),
    "cn": lambda config, c: cnlib.ContextNorm(c, config.num_contexts, encoder=config.encoder),
    "none": lambda config, c: nn.Identity(),
}


def _mixture(config: Config, at: str | None) -> contexts.GMMContexts:
    return contexts.GMMContexts(config.num_contexts, seed=config.seed, device=at)


CONTEXTS: dict[str, Callable[[Config, str | None], contexts.Contexts | None]] = {
    "none": lambda c, at: None,
    "gmm": _mixture,
    "random": lambda c, at: contexts.RandomContexts(c.num_contexts, seed=c.seed),
    "shuffled": lambda c, at: contexts.ShuffledContexts(_mixture(c, at), seed=c.seed),
    "superclass": lambda c, at: contexts.SuperclassContexts(),
    "one": lambda c, at: contexts.RandomContexts(1),
}
MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}
OPTIMIZERS: dict[str, Callable[[Any, Config], torch.optim.Optimizer]] = {
    "rmsprop": lambda p, c: torch.optim.RMSprop(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "sgd": lambda p, c: torch.optim.SGD(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "adamw": lambda p, c: torch.optim.AdamW(p, lr=c.lr, weight_decay=c.weight_decay),
}
CHOICES.update(model=MODELS, norm=NORMS, contexts=CONTEXTS, optimizer=OPTIMIZERS)


def build_model(config: Config, data: ImageData, others: Collection[str] = ()) -> nn.Module:
    """The configuration's model for this data; weights come from torch's global generator.

    others: options that are the task's; the model gets the rest. Raises ValueError for one that it does not take.
    """
    _, height, _, channels = data.train_images.shape
    model = MODELS[config.model]
    options = {key: value for key, value in dict(config.options).items() if key not in others}
    known = set(inspect.signature(model).parameters) - {"num_classes", "in_channels", "image_size", "width", "slots"}
    if unknown := options.keys() - known:
        raise ValueError(
            f"options: no {', '.join(sorted(unknown))}; {config.model} takes {', '.join(sorted(known)) or 'none'}, "
            f"{config.task} takes {', '.join(sorted(others)) or 'none'}"
        )
    slots = {slot: lambda c: NORMS[config.norm](config, c) for slot in config.placement}
    return model(len(data.classes), channels, height, width=config.width, slots=slots, **options)


def build_contexts(config: Config, data: ImageData, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """{"train_ids": (N,), "test_ids": ...} for norm cn, {"train_responsibilities": (N, K), ...} for norm mn, or {}.

    Fitted on the training images only, and applied to the test images as fitted. Superclass contexts are computed from
    the labels, those of the test images too: that is what the papers do, and it leaks (see the class).
    """
    at = str(device) if torch.device(device).type == "cuda" else None  # float64 sums: not on mps
    source = CONTEXTS[config.contexts](config, at)
    if source is None:
        return {}
    source.fit(data.train_images, data.train_labels)
    if source.num_contexts != config.num_contexts:
        raise ValueError(f"num_contexts={config.num_contexts}: {config.contexts!r} has {source.num_contexts}")
    given = {}
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        if config.norm == "mn" and isinstance(source, contexts.GMMContexts):
            given[f"{split}_responsibilities"] = source.responsibilities(images).float().cpu()
            continue
        ids = source.assign(images, labels).cpu()
        if config.norm == "mn":
            given[f"{split}_responsibilities"] = F.one_hot(ids, config.num_contexts).float()
        else:
            given[f"{split}_ids"] = ids
    return given
