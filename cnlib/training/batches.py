"""A data split that lives on the device as uint8; normalization, flips and crops are operations on whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Batch:
    """x (N, C, H, W) normalized; labels (N,); ids (N,) and responsibilities (N, K) where the norm layers use them.

    weight: of its mean loss, where processes share a batch and average their gradients: parts may differ in size.
    """

    x: Tensor
    labels: Tensor
    ids: Tensor | None
    responsibilities: Tensor | None
    weight: float = 1.0


def moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel of uint8 (N, H, W, C) images, float32 (C,); a constant channel gets 1."""
    # from histograms: exact, and no float copy of the images
    values = np.arange(256.0)
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(counts @ values**2 / counts.sum(1) - mean**2)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(np.where(std > 0, std, 1), dtype=torch.float32)


class Split:
    """Images (N, H, W, C) uint8 and labels (N,) on `device`; batches are normalized by `statistics`, (mean, std)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        statistics: tuple[Tensor, Tensor],
        device: torch.device,
        ids: Tensor | None = None,
        responsibilities: Tensor | None = None,
        border: int = 0,
        channels_last: bool = True,
    ) -> None:
        self.size = images.shape[1]
        resident = torch.from_numpy(np.array(images)).to(device)
        self.border, self.channels_last = border, channels_last
        self.images = F.pad(resident, (0, 0, border, border, border, border)) if border else resident
        self.labels = torch.from_numpy(labels).to(device)
        self.mean, self.scale = statistics[0].to(device), statistics[1].reciprocal().to(device)
        self.ids = None if ids is None else ids.to(device)
        self.responsibilities = None if responsibilities is None else responsibilities.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def ordered(self, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every image once, in order, without augmentation; the last batch may be smaller.

        part: (p, P) gives every P-th whole batch from the p-th on.
        """
        inner = slice(self.border, self.border + self.size)
        for start in range(part[0] * batch_size, len(self), part[1] * batch_size):
            chosen = slice(start, start + batch_size)
            yield self._batch(self.images[chosen, inner, self.border : self.images.shape[2] - self.border], chosen)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, flip: bool, crop: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """A random order in full batches; the remainder (another one each epoch) is left out.

        part: (p, P) gives the p-th of P parts of each batch, with the order and augmentation of the whole.
        """
        order = torch.randperm(len(self), generator=generator, device=self.labels.device)
        size = min(batch_size, len(self))
        for start in range(0, len(self) - size + 1, size):
            chosen = order[start : start + size]
            mine = slice(size * part[0] // part[1], size * (part[0] + 1) // part[1])
            batch = self._batch(self._augmented(chosen, generator, flip, crop, mine), chosen[mine])
            batch.weight = part[1] * len(batch.labels) / size
            yield batch

    def _augmented(self, chosen: Tensor, generator: torch.Generator, flip: bool, crop: int, mine: slice) -> Tensor:
        """The images at chosen[mine]; random numbers are drawn for all."""
        height, width = (s - 2 * self.border for s in self.images.shape[1:3])
        if not (flip or crop):
            return self.images[chosen[mine], self.border : self.border + height, self.border : self.border + width]
        device, n = chosen.device, len(chosen)
        rows = torch.arange(height, device=device).expand(n, height) + self.border
        columns = torch.arange(width, device=device).expand(n, width) + self.border
        if flip:
            mirrored = torch.randint(2, (n, 1), generator=generator, device=device, dtype=torch.bool)
            columns = torch.where(mirrored, columns.flip(1), columns)
        if crop:
            shift = torch.randint(-crop, crop + 1, (2, n, 1), generator=generator, device=device)
            rows, columns = rows + shift[0], columns + shift[1]
        return self.images[chosen[mine, None, None], rows[mine, :, None], columns[mine, None, :]]

    def _batch(self, images: Tensor, chosen: Tensor | slice) -> Batch:
        # channel order N H W C in memory is torch's channels_last: the permuted view needs no copy
        x = ((images.to(self.mean.dtype) - self.mean) * self.scale).permute(0, 3, 1, 2)
        return Batch(
            x if self.channels_last else x.contiguous(),
            self.labels[chosen],
            None if self.ids is None else self.ids[chosen],
            None if self.responsibilities is None else self.responsibilities[chosen],
        )
