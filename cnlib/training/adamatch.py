"""AdaMatch: one network for labelled images of one domain and unlabelled ones of another, and the program of that name
behind the printed tables.

`AdaMatch` is the algorithm of its inventors: loss, alignment, threshold and both passes are those of their program.
Around it three things are not. Their pixels lie from -1 to 1, ours are standardized by the moments of all training
images; their strong view draws from a longer list (CTAugment), ours changes brightness and contrast and cuts out a
square; and the network differs as `cnlib.models.WideResNet` says. `AdaMatchKeras` is the same code under the choices of
the Keras example, which the authors of context normalization took over: each of them is one option, or one field of the
configuration, so that each can be put right, or spoiled, by itself.
Source: Berthelot, Roelofs, Sohn, Carlini, Kurakin (2022) and their program; "Semi-supervision and domain adaptation
with AdaMatch" of the Keras examples (S. Paul, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.data import ImageData
from cnlib.norm import frozen
from cnlib.norm.domain import DomainBatchNorm
from cnlib.training.adamatch_formulas import (
    ALIGNMENTS,
    CONFIDENCES,
    FIRST_PASS,
    LABELS,
    PIXELS,
    TABLES,
    Alignment,
    interpolated,
    target_weight,
)
from cnlib.training.augment import View, cutout, flip, jitter, shift
from cnlib.training.batches import Batch, Split, join
from cnlib.training.build import check_two_domains
from cnlib.training.metrics import gradient_scores, gradients_of, weighted_scores
from cnlib.training.readings import TestSet, first_layer, learned_moments, norm_on_image, some_layer_has
from cnlib.training.trainer import TASKS, Trainer

PARTS = ("source", "target")  # domain 0 and domain 1
# what a test set is called where the layers are told the other context
SWAPPED = {"test_source": "test_source_as_target", "test_target": "test_target_as_source"}
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
    frozen, from_data  see `Trainer`
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
        check_two_domains(self.config, data, "a source and a target, such as load('mnist+svhn')")
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
        seed, ratio = self.config.seed, self.options["ratio"]
        self.target_generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.mixing_generator = torch.Generator(self.device).manual_seed(seed + 2)
        self.alignment = Alignment(self.num_classes).to(self.device, self.dtype)
        self.source, self.target = (self.train.where(domain=d) for d in (0, 1))
        # what running statistics are re-estimated on: the domains in the proportion of a batch
        count = max(1, min(len(self.source), len(self.target) // ratio))
        domains = self.train.alongside["domains"]
        rows = [(domains == d).nonzero().squeeze(1) for d in (0, 1)]
        self.train = self.train.at(torch.cat((rows[0][:count], rows[1][: count * ratio])))
        whole = self.tests["test"].split
        self.apart = {f"test_{part}": whole.where(domain=d) for d, part in enumerate(PARTS)}
        self.tests = {name: TestSet(split) for name, split in self.apart.items()}
        self.told = some_layer_has(self.model, "given_ids") and self.config.contexts == "domain"
        if self.told:
            self.tests |= {SWAPPED[k]: replace(t, contexts=lambda ids: 1 - ids) for k, t in self.tests.items()}

    def late_tests(self) -> dict[str, TestSet]:
        if not some_layer_has(self.model, "inference"):
            return {}
        return {f"{name}_plus": TestSet(split, inference="cn+") for name, split in self.apart.items()}

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
        alone = join(source.each_view())
        if not self.options["adapt"]:
            return self.source_loss(self.logits(self.compiled, alone), source)
        joint = self.logits(self.compiled, join([*source.each_view(), *target.each_view()]))
        with FIRST_PASS[self.options["first_pass"]](self.model):
            apart = self.logits(self.compiled, alone)
        share = torch.rand(apart.shape, generator=generator, device=apart.device, dtype=apart.dtype)
        found = self.source_loss(interpolated(joint[: len(apart)], apart, share), source)
        found |= self.target_loss(joint[len(apart) :], found["logits"].softmax(1), target, step)
        mu = target_weight(self.steps_done / self.schedule_steps())
        return found | {"loss": found["loss"] + mu * found["target_loss"]}

    def source_loss(self, logits: Tensor, source: Batch) -> dict[str, Tensor]:
        """logits (2 N, K): of the weak views, then of the strong ones."""
        weak, strong = logits.chunk(2)
        of_views = F.cross_entropy(weak, source.labels) + F.cross_entropy(strong, source.labels)
        return {"loss": self.options["source_weight"] * of_views, "logits": weak.detach(), "labels": source.labels}

    def target_loss(self, logits: Tensor, p_source: Tensor, target: Batch, step: int | None) -> dict[str, Tensor]:
        """logits (2 M, K), as `source_loss` has them; p_source (N, K): probabilities in the source's weak views."""
        o, (weak, strong) = self.options, logits.chunk(2)
        p_target = weak.detach().softmax(1)
        if step is not None:
            self.alignment.update(p_source.mean(0), p_target.mean(0), step)
        p = ALIGNMENTS[o["alignment"]](p_target, p_source, self.alignment)
        accepted = CONFIDENCES[o["confidence"]](p).amax(1) >= o["threshold"] * p_source.amax(1).mean()
        each = F.cross_entropy(strong, LABELS[o["labels"]](p), reduction="none") * accepted
        right = accepted & (p.argmax(1) == target.labels)  # the only use of the target's labels: to watch
        return {"mask": accepted.to(p).mean(), "mask_right": right.to(p).mean(), "target_loss": each.mean()}

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
        """`gradient_scores` at the weights of this epoch's end: of the logits of a weakly augmented batch of each
        domain, and of the losses of `noise_batches` batches. Weights, statistics and random numbers are left alone."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        first, second, third = (
            torch.Generator(self.device).manual_seed(int(number))
            for number in np.random.SeedSequence((self.config.seed, self.epoch)).generate_state(3)
        )
        size, count = self.config.batch_size, self.options["noise_batches"]
        batches = [*zip(*self.pairs(self.views(), first, second, size, count), strict=True)]
        self.model.train()
        with frozen(self.model):
            of_logits = gradients_of(self.logits(self.model, join(batches[0])).sum(), weights)
            of_losses = [gradients_of(self.losses(*batch, third)["loss"], weights) for batch in batches]
        return gradient_scores(of_logits, of_losses)

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


TASKS |= {"adamatch": AdaMatch, "adamatch-keras": AdaMatchKeras}
