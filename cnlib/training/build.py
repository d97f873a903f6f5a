"""From a configuration to a model, its contexts and its optimizer: tables, so that a new choice is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import cnlib
from cnlib.data import ImageData
from cnlib.models import ConvNet
from cnlib.training.config import Config

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
CONTEXTS = {"gmm": "GMMContexts", "random": "RandomContexts"}  # classes in cnlib.contexts
MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}
OPTIMIZERS: dict[str, Callable[[Any, Config], torch.optim.Optimizer]] = {
    "rmsprop": lambda p, c: torch.optim.RMSprop(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "sgd": lambda p, c: torch.optim.SGD(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "adamw": lambda p, c: torch.optim.AdamW(p, lr=c.lr, weight_decay=c.weight_decay),
}


def build_model(config: Config, data: ImageData) -> nn.Module:
    """The configuration's model for this data; weights come from torch's global generator."""
    _, height, _, channels = data.train_images.shape
    slots = {slot: lambda c: NORMS[config.norm](config, c) for slot in config.placement}
    return MODELS[config.model](len(data.classes), channels, height, width=config.width, slots=slots)


def build_contexts(config: Config, data: ImageData) -> dict[str, Tensor]:
    """{"train_ids": (N,), "test_ids": ...} for norm cn, {"train_responsibilities": (N, K), ...} for norm mn, or {}.

    Fitted on the training images only, and applied to the test images as fitted.
    """
    if config.contexts == "none":
        return {}
    splits = {"train": data.train_images, "test": data.test_images}
    if config.contexts == "one":
        ids = {split: torch.zeros(len(images), dtype=torch.int64) for split, images in splits.items()}
    else:
        from cnlib import contexts

        source = getattr(contexts, CONTEXTS[config.contexts])(config.num_contexts, seed=config.seed)
        source.fit(data.train_images)
        if config.norm == "mn":
            return {
                f"{split}_responsibilities": torch.as_tensor(source.responsibilities(images)).float()
                for split, images in splits.items()
            }
        ids = {split: torch.as_tensor(source.assign(images)).long() for split, images in splits.items()}
    if config.norm == "mn":
        one_hot = torch.nn.functional.one_hot
        return {f"{split}_responsibilities": one_hot(i, config.num_contexts).float() for split, i in ids.items()}
    return {f"{split}_ids": i for split, i in ids.items()}
