"""Augmentation: functions of a batch of uint8 images (N, H, W, C) and a generator, which return such a batch.

A view of an image is what a sequence of them makes of it: `()` is the image itself. Each draws for the whole batch, so
that the random numbers of a run do not depend on how many processes share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cnlib.training.config import Config

Augmentation = Callable[[Tensor, Generator], Tensor]
View = Sequence[Augmentation]


def usual_view(config: Config) -> View:
    """The flips, shifts, rotations and zooms that a configuration asks for."""
    c = config
    asked = ((c.flip, flip), (c.crop, shift(c.crop)), (c.rotate, rotate(c.rotate)), (c.zoom, zoom(c.zoom)))
    return [augmentation for wanted, augmentation in asked if wanted]


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
    """Move each by up to `most` pixels in both directions. border: "constant" is black, "reflect" mirrors the image,
    which has to be larger than `most` then: a ValueError."""

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
    if width >= min(images.shape[1:3]):
        height_width = " x ".join(map(str, images.shape[1:3]))
        raise ValueError(f"crop={width}: expected less than the side of an image of {height_width}, to mirror it there")
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


def resize(size: tuple[int, int]) -> Augmentation:
    """Every image at another (height, width): bilinear between pixel centers. Nothing is drawn."""

    def resized(images: Tensor, generator: Generator) -> Tensor:
        if images.shape[1:3] == size:
            return images
        return _rounded(F.interpolate(_planes(images), size=size, mode="bilinear", align_corners=False), images.dtype)

    return resized


def rotate(most: float) -> Augmentation:
    """Turn each about its center by up to `most` degrees. Keras' RandomRotation(0.02) is 7.2: its unit is a turn."""

    def rotated(images: Tensor, generator: Generator) -> Tensor:
        angle = _draws(1, images, generator)[0] * math.radians(most)
        cos, sin, aspect = angle.cos(), angle.sin(), images.shape[1] / images.shape[2]
        return _warped(images, torch.stack((cos, -sin * aspect, sin / aspect, cos), 1))

    return rotated


def zoom(most: float) -> Augmentation:
    """Let each show up to 1 +- `most` of its height, and of its width another such share: Keras' RandomZoom."""

    def zoomed(images: Tensor, generator: Generator) -> Tensor:
        across, down = 1 + most * _draws(2, images, generator)
        nothing = torch.zeros_like(across)
        return _warped(images, torch.stack((across, nothing, nothing, down), 1))

    return zoomed


def _draws(count: int, images: Tensor, generator: Generator) -> Tensor:
    """Uniform in [-1, 1), (count, N)."""
    return 2 * torch.rand(count, len(images), generator=generator, device=images.device) - 1


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Where each pixel comes from: `matrices` (N, 4) times its place, both from -1 to 1. Bilinear; what lies outside is
    mirrored at the border."""
    n, height, width, channels = images.shape
    theta = F.pad(matrices.view(n, 2, 2), (0, 1))
    grid = F.affine_grid(theta, [n, channels, height, width], align_corners=False)
    seen = F.grid_sample(_planes(images), grid, "bilinear", "reflection", align_corners=False)
    return _rounded(seen, images.dtype)


def _planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()


def _rounded(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return planes.round().clamp(0, 255).to(dtype).permute(0, 2, 3, 1)
