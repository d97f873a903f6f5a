"""Classification of several data sets at once, in equal parts, and what could go wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cnlib.data import ImageData
from cnlib.training.batches import Batch, join
from cnlib.training.readings import TestSet
from cnlib.training.told import Told
from cnlib.training.trainer import TASKS


class Blended(Told):
    """Classification of several sets at once, in equal parts; a domain is the context, and has a test set of its own.

    images: of each set an epoch, 0 for as many as the largest has. from_data: the layer under test, on the image,
    starts from the moments of so many training images. Of the probes: raw, all sets but the first are left at 0 to 255;
    labels, theirs start at 0; flips, they are mirrored too. Raises ValueError for data without domains.
    """

    OPTIONS = {**Told.OPTIONS, "images": 0, "from_data": 0, "raw": False, "labels": False, "flips": False}
    LENGTH = "images"

    def setup(self, data: ImageData) -> None:
        if not data.domains:
            raise ValueError(f"{data.name} has no domains: expected several sets in one, as cifar100+mnist")
        if self.options["labels"]:
            train, test = (labels_from_0(data, part) for part in ("train", "test"))
            data = replace(data, train_labels=train, test_labels=test)
        super().setup(data)
        self.parts = [self.train.where(domain=d) for d in self.train.alongside["domains"].unique().tolist()]
        for d, name in enumerate(data.domains):
            self.tests[f"test_{name}"] = TestSet(self.tests["test"].split.where(domain=d))

    def epoch_steps(self) -> int:
        return max(1, (self.options["images"] or max(map(len, self.parts))) * len(self.parts) // self.config.batch_size)

    def batches(self) -> Iterator[Batch]:
        size, c = self.config.batch_size // len(self.parts), self.config
        plain = replace(c, flip=c.flip and self.options["flips"])
        views = [[self.view(c if d == 0 else plain)] for d in range(len(self.parts))]
        streams = [
            self.stream(part, self.generator, view, size, self.epoch_steps())
            for part, view in zip(self.parts, views, strict=True)
        ]
        yield from map(join, zip(*streams, strict=True))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.options["raw"]:
            assert batch.domains is not None
            other = (batch.domains > 0)[:, None, None, None]
            scale, mean = (v[:, None, None] for v in (1 / self.train.scale, self.train.mean))
            batch = replace(batch, x=torch.where(other, batch.x * scale + mean, batch.x))
        return super().logits(model, batch)

    def late_tests(self) -> dict[str, TestSet]:
        late, count = super().late_tests(), self.config.num_contexts
        swapped = {
            f"{name}_swapped": replace(test, contexts=lambda ids: (ids + 1) % count)
            for name, test in self.tests.items()
        }
        return late | (swapped if self.told else {})


def labels_from_0(data: ImageData, part: str) -> np.ndarray:
    """Labels of which every set has its own from 0 on."""
    labels: np.ndarray = getattr(data, f"{part}_labels")
    domains = getattr(data, f"{part}_domains")
    first = np.array([data.train_labels[data.train_domains == d].min() for d in range(len(data.domains))])
    return labels - first[domains]


TASKS["blended"] = Blended
