"""AdaMatch: one network for labelled images of one domain and unlabelled ones of another, and the program of that name
behind the printed tables.

`AdaMatch` is the algorithm as its inventors run it. `AdaMatchKeras` is the same code under the choices of the Keras
example, which the authors of context normalization took over: each of them is one option, or one field of the
configuration, so that each can be put right, or spoiled, by itself.
Source: Berthelot, Roelofs, Sohn, Carlini, Kurakin (2022) and their program; "Semi-supervision and domain adaptation
with AdaMatch" of the Keras examples (S. Paul, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.data import ImageData
from cnlib.norm import frozen
from cnlib.norm.domain import DomainBatchNorm
from cnlib.training import distributed
from cnlib.training.augment import View, cutout, flip, jitter, shift
from cnlib.training.batches import Batch, Split
from cnlib.training.metrics import weighted_scores
from cnlib.training.readings import TestSet, first_layer, learned_moments, norm_on_image
from cnlib.training.trainer import TASKS, Trainer

DECAY = 0.999  # of the average of the source's classes
LAST = 128  # batches in the average of the target's
FLOOR = 1e-6  # of both in their ratio
PARTS = ("source", "target")  # domain 0 and domain 1
# what a test set is called where the layers are told the other context
SWAPPED = {"test_source": "test_source_as_target", "test_target": "test_target_as_source"}


class Alignment(nn.Module):
    """How often each class is predicted: source (K,), a moving average over batches; target (128, K), a row for each of
    the last batches. Both start uniform."""

    source: Tensor
    target: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("target", torch.full((LAST, num_classes), 1 / num_classes))

    def update(self, source: Tensor, target: Tensor, step: int) -> None:
        """With the means (K,) of a batch; step: counted from 0."""
        self.source.lerp_(source, 1 - DECAY)
        self.target[step % LAST] = target


def aligned(p: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Probabilities (N, K) of the target times (1e-6 + source) / (1e-6 + target), (K,), each row to the sum 1: classes
    that are predicted more often than in the source become less probable."""
    p = p * (FLOOR + source) / (FLOOR + target)
    return p / p.sum(1, keepdim=True)


def aligned_over_all(p: Tensor, source: Tensor) -> Tensor:
    """Probabilities (N, K) of the target times mean(source) / mean(p), over classes too: as rows sum to 1, both means
    are 1/K and nothing is aligned."""
    return p * (source.mean() / p.mean())


def interpolated(joint: Tensor, alone: Tensor, share: Tensor) -> Tensor:
    """Logits between those of the joint pass (share 0) and of the pass without the target (share 1), each with a share
    of its own: (N, K) all three."""
    return joint + (alone - joint) * share


def target_weight(done: float) -> float:
    """mu: from 0 to 1 along half a wave over the first half of the schedule, then 1. done: its share, 0 to 1."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * done))


def unit_length(p: Tensor) -> Tensor:
    """Rows of Euclidean length 1; of K equal numbers each is then 1 / sqrt(K), and they sum to sqrt(K)."""
    return F.normalize(p, dim=1)


@contextmanager
def by_running_statistics(model: nn.Module) -> Iterator[None]:
    """A with block in which layers that have running statistics normalize with them, as in evaluation."""
    layers = [m for m in model.modules() if m.training and getattr(m, "running_mean", None) is not None]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


# the rows of the table of differences that are choices of the algorithm itself: {option: {value: what it does}}
FIRST_PASS: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "batch": frozen,
    "running": by_running_statistics,
}
ALIGNMENTS: dict[str, Callable[[Tensor, Tensor, Alignment], Tensor]] = {
    "class": lambda p, source, running: aligned(p, running.source, running.target.mean(0)),
    "all": lambda p, source, running: aligned_over_all(p, source),
}
LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard": lambda p: F.one_hot(p.argmax(1), p.shape[1]).to(p),
    "l2": unit_length,
}
CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {"sum": lambda p: p, "l2": unit_length}
# by what pixels are divided once nothing is subtracted; None: standardized by the moments of all training images
PIXELS: dict[str, float | None] = {"standardized": None, "unit": 255.0, "bytes": 1.0}
TABLES: dict[str, Mapping[str, Any]] = {
    "first_pass": FIRST_PASS,
    "alignment": ALIGNMENTS,
    "labels": LABELS,
    "confidence": CONFIDENCES,
    "pixels": PIXELS,
}
LEAST = {"ratio": 1, "noise_batches": 2}


class AdaMatch(Trainer):
    """Domain 0 is the source, whose labels are read; domain 1 the target, whose labels only the monitors see.

    A step: source images, weakly and strongly augmented, go through the network once alone (batch statistics, which
    leave no trace) and once with the target's; their logits are a random mixture of both. The target's probabilities in
    the weak view are aligned with the source's classes; where the largest is at least 0.9 of the source's mean
    confidence, it is the label of the strong view. Loss: 0.5 (weak + strong) + mu target.

    adapt        False trains on the source alone
    steps        of an epoch, 0 for as many as the smaller domain fills. ratio: target images for one of the source
    cutout, jitter  of the strong view, besides the shifts (`crop`) of both: pixels, and share of brightness, contrast
    threshold    tau, on the mean confidence of the source
    first_pass   statistics in the pass of the source alone: "batch", or "running"
    alignment    "class": by running averages of each class; "all": by a ratio of means over classes too, which is 1
    labels, confidence  "hard" or "l2" pseudo-labels, and whether the threshold is on probabilities ("sum") or "l2"
    source_weight  of either view of the source
    stretch      the schedules of rate and mu are laid out for so many times the steps of the run
    pixels       "standardized" by the moments of all training images, "unit" in [0, 1], "bytes" as they are
    frozen, from_data  the layer under test stays as it starts; it starts from the moments of so many training images
    separate     every batch norm is a `DomainBatchNorm`. noise_batches: of the noise scale, two at least

    Weight decay acts on convolutions and linear maps only. One process. Tests: "test_source" and "test_target" under
    their own contexts, "test_source_as_target" and "test_target_as_source" under the other's (the same numbers where
    no layer is told), and of layers that know CN+ "test_source_plus", "test_target_plus" at the end. Recorded besides
    the usual: weighted precision, recall and F1, "share_of_1", predictions of class 1, and "majority", the accuracy of
    always answering the most frequent class; of training "mask", the share of target images with a pseudo-label, and
    "accepted_accuracy", how many of these are right; the two measures of `gradients`; at the end, of a context norm on
    the image, "learned_mean" and "learned_std", (T, C).
    Raises ValueError for data without two domains, an unknown choice, or several processes.
    """

    OPTIONS = {
        "adapt": True,
        "steps": 0,
        "ratio": 3,
        "cutout": 16,
        "jitter": 0.3,
        "threshold": 0.9,
        "first_pass": "batch",
        "alignment": "class",
        "labels": "hard",
        "confidence": "sum",
        "source_weight": 0.5,
        "stretch": 1.0,
        "pixels": "standardized",
        "frozen": False,
        "from_data": 0,
        "separate": False,
        "noise_batches": 16,
    }
    HEADLINE = "test_target_accuracy"
    LENGTH = "steps"

    def build(self, data: ImageData) -> nn.Module:
        for name, table in TABLES.items():
            if self.options[name] not in table:
                raise ValueError(f"{name}={self.options[name]!r}: expected one of {', '.join(table)}")
        for name, least in LEAST.items():
            if self.options[name] < least:
                raise ValueError(f"{name}={self.options[name]}: expected {least} or more")
        if len(data.domains) != len(PARTS):
            raise ValueError(
                f"{data.name} has domains {', '.join(data.domains) or 'none'}: expected a source and a target, such as "
                "load('mnist+svhn')"
            )
        if distributed.size() > 1 or self.config.validation:
            raise ValueError("adamatch trains in one process and without validation images: expected neither")
        model = super().build(data)
        if self.options["separate"]:
            for name, layer in [*model.named_modules()]:
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    own = DomainBatchNorm(layer.num_features, self.config.num_contexts, layer.eps, layer.momentum)
                    model.set_submodule(name, own)
        return model

    def parameters(self) -> Any:
        """Weights of convolutions and linear maps decay; scales, shifts and means do not."""
        decaying = {m.weight for m in self.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        decaying -= {*first_layer(self.model, self.config).parameters()}  # encoders of a context norm are linear maps
        kept = [p for p in self.model.parameters() if p not in decaying]
        return [
            {"params": [p for p in self.model.parameters() if p in decaying]},
            {"params": kept, "weight_decay": 0.0},
        ]

    def split(
        self, data: ImageData, part: str, statistics: tuple[Tensor, Tensor], chosen: slice = slice(None)
    ) -> Split:
        if (divisor := PIXELS[self.options["pixels"]]) is not None:
            statistics = torch.zeros_like(statistics[0]), torch.full_like(statistics[1], divisor)
        return super().split(data, part, statistics, chosen)

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        seed, options = self.config.seed, self.options
        self.target_generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.mixing_generator = torch.Generator(self.device).manual_seed(seed + 2)
        self.alignment = Alignment(self.num_classes).to(self.device, self.dtype)
        self.source, self.target = (self.train.where(domain=d) for d in (0, 1))
        # what running statistics are re-estimated on: the domains in the proportion of a batch
        count = max(1, min(len(self.source), len(self.target) // options["ratio"]))
        domains = self.train.alongside["domains"]
        rows = [(domains == d).nonzero().squeeze(1) for d in (0, 1)]
        self.train = self.train.at(torch.cat((rows[0][:count], rows[1][: count * options["ratio"]])))
        whole = self.tests["test"].split
        self.apart = {f"test_{part}": whole.where(domain=d) for d, part in enumerate(PARTS)}
        self.tests = {name: TestSet(split) for name, split in self.apart.items()}
        told = any(hasattr(layer, "given_ids") for layer in self.model.modules())
        self.told = told and self.config.contexts == "domain"
        if self.told:
            self.tests |= {SWAPPED[k]: replace(t, contexts=lambda ids: 1 - ids) for k, t in self.tests.items()}
        self.start_from_data(options["from_data"])

    def late_tests(self) -> dict[str, TestSet]:
        knows = any(hasattr(layer, "inference") for layer in self.model.modules())
        return {f"{name}_plus": TestSet(s, inference="cn+") for name, s in self.apart.items()} if knows else {}

    def epoch_steps(self) -> int:
        size, ratio = self.config.batch_size, self.options["ratio"]
        return self.options["steps"] or max(1, min(len(self.source) // size, len(self.target) // (ratio * size)))

    def schedule_steps(self) -> float:
        return super().schedule_steps() * self.options["stretch"]

    def views(self) -> list[View]:
        """The weak and the strong one."""
        c, o = self.config, self.options
        moved = [shift(c.crop, "reflect")] if c.crop else []
        hard = [make(o[name]) for name, make in (("jitter", jitter), ("cutout", cutout)) if o[name]]
        return [[*([flip] if c.flip else []), *moved], [*moved, *hard]]

    def batches(self) -> Iterator[tuple[Batch, Batch]]:
        size, count = self.config.batch_size, self.epoch_steps()
        yield from zip(*self.pairs(self.views(), self.generator, self.target_generator, size, count), strict=True)

    def pairs(
        self, views: list[View], first: torch.Generator, second: torch.Generator, size: int, count: int
    ) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Batches of the source, and of the target, `ratio` times as large."""
        return (
            self.stream(self.source, first, views, size, count),
            self.stream(self.target, second, views, self.options["ratio"] * size, count),
        )

    def step(self, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        found = self.losses(*batch, self.mixing_generator, self.steps_done)
        self.update(found["loss"])
        return found

    def losses(
        self, source: Batch, target: Batch, generator: torch.Generator, step: int | None = None
    ) -> dict[str, Tensor]:
        """The loss of a step and what is recorded of it. step: None leaves the running averages of classes as they
        are; running statistics move with the joint pass."""
        o, count = self.options, len(source.labels)
        both = seen([source], source.views)
        if not o["adapt"]:
            logits = self.logits(self.compiled, both)
        else:
            joint = self.logits(self.compiled, seen([source, target], (*source.views, *target.views)))
            with FIRST_PASS[o["first_pass"]](self.model):
                alone = self.logits(self.compiled, both)
            share = torch.rand(alone.shape, generator=generator, device=alone.device, dtype=alone.dtype)
            logits = interpolated(joint[: 2 * count], alone, share)
        weak, strong = logits.chunk(2)
        of_source = F.cross_entropy(weak, source.labels) + F.cross_entropy(strong, source.labels)
        loss = o["source_weight"] * of_source
        found = {"logits": weak.detach(), "labels": source.labels}
        if o["adapt"]:
            target_weak, target_strong = joint[2 * count :].chunk(2)
            p_source, p_target = weak.detach().softmax(1), target_weak.detach().softmax(1)
            if step is not None:
                self.alignment.update(p_source.mean(0), p_target.mean(0), step)
            p = ALIGNMENTS[o["alignment"]](p_target, p_source, self.alignment)
            accepted = CONFIDENCES[o["confidence"]](p).amax(1) >= o["threshold"] * p_source.amax(1).mean()
            of_target = F.cross_entropy(target_strong, LABELS[o["labels"]](p), reduction="none") * accepted
            loss = loss + target_weight(self.steps_done / self.schedule_steps()) * of_target.mean()
            right = accepted & (p.argmax(1) == target.labels)  # the only use of the target's labels: to watch
            found |= {"mask": accepted.to(p).mean(), "mask_right": right.to(p).mean(), "target_loss": of_target.mean()}
        return {"loss": loss, **found}

    def run_epoch(self) -> dict[str, Any]:
        found = super().run_epoch()
        if "train_mask" in found:
            right, mask = found.pop("train_mask_right"), found["train_mask"]
            found["train_accepted_accuracy"] = right / mask if mask else math.nan
        return self.under_both_contexts(found) | self.gradients()

    def conclude(self) -> dict[str, Any]:
        found = super().conclude()
        found["predictions"] = self.under_both_contexts(found["predictions"])
        found |= learned_moments(norm_on_image(self.tested, self.config))
        return self.under_both_contexts(found)

    def under_both_contexts(self, found: dict[str, Any]) -> dict[str, Any]:
        """What was read, and where no layer is told the domain the same as read under the other one."""
        if self.told:
            return found
        again = ((key, name) for key in found for name in SWAPPED if key == name or key.startswith(f"{name}_"))
        return found | {key.replace(name, SWAPPED[name], 1): found[key] for key, name in again if "_plus" not in key}

    def scores(self, confusion: Tensor) -> dict[str, float]:
        names = ("weighted_precision", "weighted_recall", "weighted_f1")
        shares = confusion.double() / confusion.sum()
        return {
            **dict(zip(names, weighted_scores(confusion), strict=True)),
            "share_of_1": float(shares[:, 1].sum()),
            "majority": float(shares.sum(1).max()),
        }

    def gradients(self) -> dict[str, float]:
        """Two measures at the weights of this epoch's end, which leave weights, statistics and random numbers alone.

        "gradient_variance_max", "gradient_variance_mean": of the sum of all logits on a weakly augmented batch of each
        domain, in training mode: the variance over the entries of each weight tensor's gradient; its largest and mean
        over tensors. This is the published Figure 3, by the program of its authors; it is no variance of a stochastic
        gradient. "noise_scale": of the loss, over `noise_batches` batches: the sum over weights of the gradient's
        variance, over the squared length of its mean (McCandlish et al. 2018, without their correction for so few).
        """
        weights = [p for p in self.model.parameters() if p.requires_grad]
        first, second, third = (
            torch.Generator(self.device).manual_seed(int(number))
            for number in np.random.SeedSequence((self.config.seed, self.epoch)).generate_state(3)
        )
        streams = self.pairs(self.views(), first, second, self.config.batch_size, self.options["noise_batches"])
        of_loss, variances = [], torch.zeros(1)
        self.model.train()
        with frozen(self.model):
            for i, (source, target) in enumerate(zip(*streams, strict=True)):
                if i == 0:
                    logits = self.logits(self.model, seen([source, target], (source.x, target.x)))
                    grads = gradients_of(logits.sum(), weights)
                    variances = torch.stack([g.var(correction=0) for g in grads])
                loss = self.losses(source, target, third)["loss"]
                of_loss.append(torch.cat([g.flatten() for g in gradients_of(loss, weights)]))
        each = torch.stack(of_loss)  # (batches, weights)
        scale = each.var(0).sum() / each.mean(0).square().sum()
        numbers = torch.stack((variances.max(), variances.mean(), scale)).tolist()
        return dict(zip(("gradient_variance_max", "gradient_variance_mean", "noise_scale"), numbers, strict=True))

    def state(self) -> dict[str, Any]:
        return super().state() | {"alignment": self.alignment.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.alignment.load_state_dict(state["alignment"])


class AdaMatchKeras(AdaMatch):
    """`AdaMatch` as the Keras example and the authors of context normalization run it: its own options, whose other
    half are fields of the configuration (Adam, no decay, last weights, flips), stand in the experiment."""

    OPTIONS = {
        **AdaMatch.OPTIONS,
        "first_pass": "running",
        "alignment": "all",
        "labels": "l2",
        "confidence": "l2",
        "source_weight": 1.0,
        # steps an epoch that the program counts on, 60,000 / 64, over those it has, 73,257 / 192
        "stretch": 937 / 382,
        "pixels": "unit",
    }


def gradients_of(value: Tensor, weights: list[Any]) -> tuple[Tensor, ...]:
    """Zeros where a weight had no part in it; nothing is added to anybody's `.grad`."""
    return torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)


def seen(batches: list[Batch], views: tuple[Tensor, ...]) -> Batch:
    """Views of several batches as one batch: equally many of each, and in their order."""
    repeats = len(views) // len(batches)
    parts = [batch for batch in batches for _ in range(repeats)]
    ids = None if batches[0].ids is None else torch.cat([batch.ids for batch in parts])  # type: ignore[misc]
    return Batch(torch.cat(views), torch.cat([batch.labels for batch in parts]), ids)


TASKS |= {"adamatch": AdaMatch, "adamatch-keras": AdaMatchKeras}
