"""A data split that lives on the device as uint8; normalization and augmentation are operations on whole batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from cnlib.contexts.controls import uniforms
from cnlib.training.augment import View, see


@dataclass
class Batch:
    """x (N, C, H, W) normalized; labels (N,); what the data set and the contexts have for each image besides, or None:
    ids (N,), responsibilities (N, K), domains (N,).

    views: x, and the other views of the same images, where several were asked for.
    weight: of its mean loss, where processes share a batch and average their gradients: parts may differ in size.
    """

    x: Tensor
    labels: Tensor
    ids: Tensor | None = None
    responsibilities: Tensor | None = None
    domains: Tensor | None = None
    views: tuple[Tensor, ...] = ()
    weight: float = 1.0

    def each_view(self) -> list[Batch]:
        """A batch for each of the views, to be joined."""
        return [replace(self, x=view, views=()) for view in self.views]


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, without their further views; what one of them lacks, it lacks."""
    columns = [[getattr(b, name) for b in batches] for name in ("x", "labels", "ids", "responsibilities", "domains")]
    whole: Any = [None if any(v is None for v in column) else torch.cat(column) for column in columns]
    # a weight is the share of a batch that this process has, times the number of processes
    weight = sum(len(b.labels) for b in batches) / sum(len(b.labels) / b.weight for b in batches)
    x, labels, ids, responsibilities, domains = whole
    return Batch(x, labels, ids, responsibilities, domains, weight=weight)


def moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel of uint8 (N, H, W, C) images, float32 (C,); a constant channel gets 1."""
    # from histograms: exact, and no float copy of the images
    values = np.arange(256.0)
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(counts @ values**2 / counts.sum(1) - mean**2)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(np.where(std > 0, std, 1), dtype=torch.float32)


def wrong_labels(images: np.ndarray, labels: np.ndarray, num_classes: int, rate: float, seed: int) -> np.ndarray:
    """Labels (N,) of which a share of about `rate` is wrong: any other class, all equally likely.

    Which images, and what they get, is a hash of their bytes keyed by the seed, the same in any order; what is wrong at
    one rate is wrong, and the same, at every higher one.
    """
    chance, which = uniforms(images, -1 - seed, 2).T  # a key of their own: contexts have those from 0 on
    others = (labels + 1 + (which * (num_classes - 1)).astype(np.int64)) % num_classes
    return np.where(chance < rate, others, labels)


class Split:
    """Images (N, H, W, C) uint8 and what goes with each, on `device`; `statistics`, (mean, std), normalize batches.

    labels (N,). columns: what else a batch has of each image, "ids" (N,), "responsibilities" (N, K), "domains" (N,).
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        statistics: tuple[Tensor, Tensor],
        device: torch.device,
        columns: Mapping[str, Tensor | np.ndarray | None] | None = None,
        channels_last: bool = True,
    ) -> None:
        self.channels_last = channels_last
        self.images = torch.from_numpy(np.array(images)).to(device)
        self.mean, self.scale = statistics[0].to(device), statistics[1].reciprocal().to(device)
        given = {"labels": labels, **(columns or {})}
        self.alongside = {key: torch.as_tensor(v).to(device) for key, v in given.items() if v is not None}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        return self.alongside["labels"]

    def where(self, **values: int) -> Split:
        """The images with these values, e.g. where(domain=1) or where(label=3). ValueError where there are none."""
        kept = torch.ones(len(self), dtype=torch.bool, device=self.images.device)
        for name, value in values.items():
            column = self.alongside.get(f"{name}s")
            if column is None:
                known = ", ".join(key.removesuffix("s") for key in self.alongside)
                raise ValueError(f"where({name}={value}): these images have no {name}; they have {known}")
            kept &= column == value
        if not kept.any():
            raise ValueError(f"where: no image with {values}")
        return self.at(kept)

    def at(self, chosen: Tensor | slice) -> Split:
        """These images alone: positions, a mask (N,), or a slice."""
        part = copy.copy(self)
        part.images = self.images[chosen]
        part.alongside = {key: column[chosen] for key, column in self.alongside.items()}
        return part

    def having(self, **columns: Tensor) -> Split:
        """The same images with these columns, e.g. having(ids=...): one row for each image, in their order."""
        if wrong := [name for name, column in columns.items() if len(column) != len(self)]:
            raise ValueError(f"having: {wrong[0]} has {len(columns[wrong[0]])} rows for {len(self)} images")
        other = copy.copy(self)
        other.alongside = self.alongside | {name: v.to(self.images.device) for name, v in columns.items()}
        return other

    def ordered(self, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every image once, in order, without augmentation; the last batch may be smaller.

        part: (p, P) gives every P-th whole batch from the p-th on.
        """
        for start in range(part[0] * batch_size, len(self), part[1] * batch_size):
            chosen = slice(start, start + batch_size)
            yield self._batch((self.images[chosen],), chosen)

    def shuffled(
        self, batch_size: int, generator: Generator, views: Sequence[View] = ((),), part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """A random order in full batches; the remainder (another one each epoch) is left out.

        views: of each image; the first is the batch's x. part: (p, P) gives the p-th of P parts of each batch, with the
        order and augmentation of the whole.
        """
        order = torch.randperm(len(self), generator=generator, device=self.images.device)
        size = min(batch_size, len(self))
        for start in range(0, len(self) - size + 1, size):
            chosen = order[start : start + size]
            mine = slice(size * part[0] // part[1], size * (part[0] + 1) // part[1])
            images = self.images[chosen]
            batch = self._batch([see(images, view, generator)[mine] for view in views], chosen[mine])
            batch.weight = part[1] * len(batch.labels) / size
            yield batch

    def _batch(self, seen: Sequence[Tensor], chosen: Tensor | slice) -> Batch:
        # channel order N H W C in memory is torch's channels_last: the permuted view needs no copy
        views = tuple(((v.to(self.mean.dtype) - self.mean) * self.scale).permute(0, 3, 1, 2) for v in seen)
        views = views if self.channels_last else tuple(v.contiguous() for v in views)
        alongside: Any = {key: column[chosen] for key, column in self.alongside.items()}
        return Batch(x=views[0], views=views, **alongside)
