"""How the layer under test starts from data, where it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnlib.norm import frozen
from cnlib.training.augment import usual_view
from cnlib.training.batches import Batch
from cnlib.training.readings import first_layer

if TYPE_CHECKING:
    from cnlib.training.trainer import Trainer


def start_from(trainer: Trainer, *given: Tensor | None) -> None:
    """The layer under test starts from these, as its own `start_from` says. ValueError where it has none."""
    start = getattr(first_layer(trainer.model, trainer.config), "start_from", None)
    if start is None:
        norm = trainer.config.norm
        raise ValueError(f"norm {norm!r} cannot start from data: leave out the option that says so")
    start(*given)


def start_from_images(trainer: Trainer, count: int) -> None:
    """The layer under test, on the image, starts from the moments of so many training images, drawn at random."""
    generator = torch.Generator(trainer.device).manual_seed(trainer.config.seed)
    batch = next(trainer.stream(trainer.train, generator, [()], batch_size=min(count, len(trainer.train))))
    start_from(trainer, batch.x, batch.ids)


@torch.no_grad()
def first_inputs(trainer: Trainer) -> tuple[Tensor, Batch]:
    """What the layer under test gets of a batch of training images in an order of their own, and the batch, the same in
    every process. Nothing of the network moves."""
    generator = torch.Generator(trainer.device).manual_seed(trainer.config.seed)
    batch = next(trainer.train.shuffled(trainer.config.batch_size, generator, [usual_view(trainer.config)]))
    seen: list[Tensor] = []
    layer = first_layer(trainer.model, trainer.config)
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), frozen(trainer.model):
        trainer.logits(trainer.model, batch)
    return seen[0], batch
