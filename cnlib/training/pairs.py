"""Verification: do two images show the same place? A contrastive loss on pairs of day and night, and what the layer
under test learned on the way, as a swap of colors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cnlib.data import ImageData
from cnlib.data.daynight import split_by_class
from cnlib.norm import ContextNorm
from cnlib.training.augment import see, usual_view
from cnlib.training.batches import Batch, Split
from cnlib.training.build import check_two_domains
from cnlib.training.config import Config
from cnlib.training.metrics import auc
from cnlib.training.readings import TestSet, first_layer, learned_moments, norm_on_image
from cnlib.training.trainer import TASKS, Trainer, grouped
from cnlib.transfer import TRANSFERS, Moments, gain_and_offset, moments_of, readings, red_over_blue, swap

DIRECTIONS = ((0, 1), (1, 0))  # of a swap: day to night, night to day


def contrastive(first: Tensor, second: Tensor, same: Tensor, margin: float = 1.0) -> Tensor:
    """The loss (N,) of pairs, rows of (N, D) each: d^2 where they are the same, max(0, margin - d)^2 where not.

    same: (N,) bool; d: Euclidean. Source: Hadsell, Chopra, LeCun 2006, eq. (4), without its halves.
    """
    d = torch.linalg.vector_norm(first - second, dim=1)
    return torch.where(same, d.square(), (margin - d).clamp_min(0).square())


class Pairs(Trainer):
    """Pairs of one image by day and one by night: half of them of one class, which is a place, half of two.

    The data set's own split is not used: `held_out` classes, drawn by the seed, are tested, the others trained on, and
    those without both times left out (`split_by_class`). batch_size: pairs a step; steps: of an epoch; margin: of
    `contrastive`. cn_lr: factor on the rate of the layer under test, on which weight decay does not act. frozen,
    from_data: it stays as it starts; it starts from the moments of so many training images.

    Tests: "test" and, of a layer that is told the time, "test_swapped", told the other one. Recorded are "auc", the
    probability that a pair of one class is closer than one of two, over all pairs of day and night, and "loss", the
    mean of the losses of both kinds. Of a context norm on the image, after every epoch: "mean_0", "std_0" and so on,
    (C,), and "swap_gap": the rms distance, over the training images' pixels, of its swap from the swap by their
    moments, in units of that of no swap at all, the mean of both ways. At the end: "data_mean", "data_std" (T, C) of
    the training images as the layer sees them, "pixel_mean", "pixel_std" (C,) by which they were standardized, and for
    each way, each of `TRANSFERS`, and "learned", the means over tested classes of `cnlib.transfer.readings` beside the
    real images of the other time: "day_to_night_moments_w1", and of these alone "day_to_night_real_red_blue".
    Raises ValueError for data without two domains, several processes, or validation images.
    """

    OPTIONS = {"steps": 50, "held_out": 5, "margin": 1.0, "cn_lr": 1.0, "frozen": False, "from_data": 0}
    HEADLINE = "test_auc"
    WHOLE = True  # split by class

    def __init__(
        self, config: Config, data: ImageData, device: torch.device, state: dict[str, Any] | None = None
    ) -> None:
        check_two_domains(config, data, "day and night")
        options = {**self.OPTIONS, **dict(config.options)}
        if options["steps"] < 1:
            raise ValueError(f"steps={options['steps']}: expected 1 or more")
        self.times = data.domains
        super().__init__(config, split_by_class(data, options["held_out"], config.seed), device, state)

    def parameters(self) -> Any:
        layer, factor = first_layer(self.model, self.config), self.options["cn_lr"]
        return grouped(self.model, layer, weight_decay=0.0, factor=factor)

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        self.tests.pop("test_plus", None)
        # scores are of pairs over the whole test set, which batches do not have: see `measure`
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.places = [self.at_time(self.train, time) for time in range(len(DIRECTIONS))]
        (whole,) = self.train.ordered(len(self.train))
        assert whole.domains is not None
        self.moments = moments_of(whole.x, whole.domains, len(DIRECTIONS))  # as the layer under test sees them

    @staticmethod
    def at_time(split: Split, time: int) -> list[Tensor]:
        """The rows of each class, in the order of classes."""
        times, labels = split.alongside["domains"], split.labels
        return [((times == time) & (labels == k)).nonzero().squeeze(1) for k in labels.unique()]

    def epoch_steps(self) -> int:
        return int(self.options["steps"])

    def batches(self) -> Iterator[Batch]:
        """Days of some classes, then as many nights: of the first half of the pairs the same classes, of the second
        other ones."""
        count, size = len(self.places[0]), self.config.batch_size
        for _ in range(self.epoch_steps()):
            first, further = (
                torch.randint(high, (size,), generator=self.generator, device=self.device)
                for high in (count, count - 1)
            )
            other = torch.arange(size, device=self.device) >= size // 2
            second = torch.where(other, (first + 1 + further) % count, first)
            chosen = torch.cat([self.drawn(0, first), self.drawn(1, second)])
            pairs = self.train.at(chosen)
            pairs.images = see(pairs.images, usual_view(self.config), self.generator)
            yield from pairs.ordered(len(pairs))

    def drawn(self, time: int, classes: Tensor) -> Tensor:
        """A row of the training images for each of these classes (N,), at that time."""
        draws = torch.rand(len(classes), generator=self.generator, device=self.device).tolist()
        rows = [self.places[time][k] for k in classes.tolist()]
        return torch.stack([of[int(draw * len(of))] for of, draw in zip(rows, draws, strict=True)])

    def step(self, batch: Batch) -> dict[str, Tensor]:
        first, second = self.logits(self.compiled, batch).chunk(2)
        days, nights = batch.labels.chunk(2)
        loss = contrastive(first, second, days == nights, self.options["margin"]).mean()
        self.update(loss)
        return {"loss": loss, "labels": batch.labels}

    def measure(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert batch.domains is not None
        self.seen.append((logits.detach(), batch.labels, batch.domains))
        return {"labels": batch.labels}

    def scores(self, confusion: Tensor) -> dict[str, float]:
        points, labels, times = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        self.seen.clear()
        day, night = ((times == time).nonzero().squeeze(1) for time in range(len(DIRECTIONS)))
        pairs = torch.cartesian_prod(day, night)
        first, second = points[pairs[:, 0]], points[pairs[:, 1]]
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        loss = contrastive(first, second, same, self.options["margin"])
        near = -torch.linalg.vector_norm(first - second, dim=1)
        return {"loss": float(loss[same].mean() + loss[~same].mean()) / 2, "auc": auc(near, same)}

    def run_epoch(self) -> dict[str, Any]:
        return super().run_epoch() | self.progress()

    @property
    def learned(self) -> ContextNorm | None:
        """The context norm on the image, if there is one."""
        return norm_on_image(self.tested, self.config)

    @torch.no_grad()
    def progress(self) -> dict[str, Any]:
        """Where the layer under test is, and how far its swap is from that of the data's moments."""
        if (layer := self.learned) is None:
            return {}
        mean, var = layer.moments()
        rows = {f"mean_{r}": values.tolist() for r, values in enumerate(mean)}
        return {**rows, **{f"std_{r}": v.sqrt().tolist() for r, v in enumerate(var)}, "swap_gap": self.gap(layer)}

    def gap(self, layer: ContextNorm) -> float:
        mean, var = (value.to(self.moments.mean) for value in layer.moments())
        shares = []
        for a, b in DIRECTIONS:
            wanted = gain_and_offset(self.moments.mean, self.moments.var, a, b)
            ours = gain_and_offset(mean, var, a, b, layer.eps)
            nothing = torch.ones_like(ours[0]), torch.zeros_like(ours[1])
            far = [distance(self.moments, a, mine, wanted) for mine in (ours, nothing)]
            shares.append(far[0] / far[1])
        return sum(shares) / len(shares)

    def late_tests(self) -> dict[str, TestSet]:
        if not hasattr(first_layer(self.model, self.config), "given_ids"):
            return {}
        return {"test_swapped": TestSet(self.tests["test"].split, contexts=lambda ids: 1 - ids)}

    def conclude(self) -> dict[str, Any]:
        found = super().conclude()
        del found["predictions"]  # of classes, and nothing is classified
        found |= learned_moments(self.learned) | self.colors()
        found |= {"data_mean": self.moments.mean.tolist(), "data_std": self.moments.var.sqrt().tolist()}
        return found | {"pixel_mean": self.train.mean.tolist(), "pixel_std": (1 / self.train.scale).tolist()}

    @torch.no_grad()
    def colors(self) -> dict[str, float]:
        """The swaps of the tested images beside the real ones of the other time, in units in which white is 1."""
        (test,) = self.tests["test"].split.ordered(len(self.tests["test"].split))
        assert test.domains is not None
        mean, std = (v[:, None, None].double() / 255 for v in (self.train.mean, 1 / self.train.scale))
        white, moments = test.x.double() * std + mean, in_white(self.moments, mean, std)
        sums: dict[str, list[float]] = {}
        for a, b in DIRECTIONS:
            way = f"{self.times[a]}_to_{self.times[b]}"
            for k in test.labels.unique():
                rows, real = ((test.labels == k) & (test.domains == time) for time in (a, b))
                swaps = {name: transfer(white[rows], moments, a, b) for name, transfer in TRANSFERS.items()}
                if (layer := self.learned) is not None:
                    swaps["learned"] = swap(test.x[rows].double(), layer, a, b) * std + mean
                found = {name: readings(images, white[real]) for name, images in swaps.items()}
                found["real"] = {"red_blue": red_over_blue(white[real])}
                for name, values in found.items():
                    for reading, value in values.items():
                        sums.setdefault(f"{way}_{name}_{reading}", []).append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}


def distance(moments: Moments, source: int, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The rms difference of two affine maps, (gain, offset) of (C,) each, over the pixels of one context."""
    gain, offset = (a - b for a, b in zip(first, second, strict=True))
    mean, var = moments.mean[source], moments.var[source]
    return float((gain.square() * var + (gain * mean + offset).square()).mean().sqrt())


def in_white(moments: Moments, mean: Tensor, std: Tensor) -> Moments:
    """Moments of standardized images as those of the images themselves; mean, std: (C, 1, 1)."""
    mean, std = mean.flatten().to(moments.mean), std.flatten().to(moments.mean)
    return Moments(moments.mean * std + mean, moments.var * std.square(), moments.own_std * std)


TASKS["pairs"] = Pairs
