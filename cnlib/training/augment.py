"""Augmentation: functions of a batch of uint8 images (N, H, W, C) and a generator, which return such a batch.

A view of an image is what a sequence of them makes of it: `()` is the image itself. Each draws for the whole batch, so
that the random numbers of a run do not depend on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cnlib.training.config import Config

Augmentation = Callable[[Tensor, Generator], Tensor]
View = Sequence[Augmentation]


def usual_view(config: Config) -> View:
    """The flips and shifts that a configuration asks for."""
    return ([flip] if config.flip else []) + ([shift(config.crop)] if config.crop else [])


def see(images: Tensor, view: View, generator: Generator) -> Tensor:
    """The images as the view shows them."""
    for augmentation in view:
        images = augmentation(images, generator)
    return images


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of them, left to right."""
    mirrored = torch.randint(2, (len(images), 1), generator=generator, device=images.device, dtype=torch.bool)
    return torch.where(mirrored[:, :, None, None], images.flip(2), images)


def shift(most: int, border: str = "constant") -> Augmentation:
    """Move each by up to `most` pixels in both directions. border: "constant" is black, "reflect" mirrors the image."""

    def shifted(images: Tensor, generator: Generator) -> Tensor:
        n, height, width, _ = images.shape
        rows = torch.arange(height, device=images.device).expand(n, height) + most
        columns = torch.arange(width, device=images.device).expand(n, width) + most
        moved = torch.randint(-most, most + 1, (2, n, 1), generator=generator, device=images.device)
        padded = _pad(images, most, border)
        which = torch.arange(n, device=images.device)[:, None, None]
        return padded[which, (rows + moved[0])[:, :, None], (columns + moved[1])[:, None, :]]

    return shifted


def _pad(images: Tensor, width: int, border: str) -> Tensor:
    if border == "constant":
        return F.pad(images, (0, 0, width, width, width, width))
    # torch pads by reflection in floating types, along the last axes
    return F.pad(images.permute(0, 3, 1, 2).float(), (width,) * 4, border).permute(0, 2, 3, 1).to(images.dtype)


def cutout(size: int) -> Augmentation:
    """Black out a square of so many pixels around a random position (DeVries & Taylor 2017); it may reach outside."""

    def cut(images: Tensor, generator: Generator) -> Tensor:
        n, height, width, _ = images.shape
        inside = []
        for length in (height, width):
            center = torch.randint(length, (n, 1), generator=generator, device=images.device)
            start = center - size // 2
            at = torch.arange(length, device=images.device)
            inside.append((at >= start) & (at < start + size))
        hole = inside[0][:, :, None, None] & inside[1][:, None, :, None]
        return images.masked_fill(hole, 0)

    return cut


def jitter(most: float) -> Augmentation:
    """Change the contrast of each by a factor of up to 1 +- `most`, its brightness by that share of the middle gray."""

    def jittered(images: Tensor, generator: Generator) -> Tensor:
        draws = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
        contrast, brightness = most * (2 * draws - 1)
        x = (images.float() - 127.5) * (1 + contrast) + 127.5 * (1 + brightness)
        return x.round().clamp(0, 255).to(images.dtype)

    return jittered
