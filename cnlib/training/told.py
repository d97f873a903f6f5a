"""Classification by a network that may be told a context made from the label, and what is left without being told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnlib.contexts.bayes import combine, context_posterior, marginal
from cnlib.data import ImageData
from cnlib.training import distributed
from cnlib.training.augment import View, resize, usual_view
from cnlib.training.batches import Batch
from cnlib.training.config import Config
from cnlib.training.loop import train
from cnlib.training.metrics import above_half
from cnlib.training.readings import (
    TestSet,
    learned_moments,
    logits_on,
    norm_on_image,
    prepared,
    some_layer_has,
)
from cnlib.training.trainer import TASKS, Trainer

# logits (N, K) on the test images, of networks without contexts that this process trained, by configuration and data
CONTEXT_FREE: dict[tuple[Config, str], Tensor] = {}


class Told(Trainer):
    """Classification where contexts are made from labels: told to the network, or only afterwards, by Bayes' rule.

    frozen: whether the layer under test stays as it starts. predict: whether, at the end, contexts are predicted too:
    by the same network without contexts, which is trained for it where this process has not done so yet.

    Recorded besides the usual: "obedience", the share of predictions inside the context that was told;
    "superclass_accuracy", the share inside the true one; the authors' precision, recall and number of predictions (see
    `above_half`). A network that is not told has "test_masked": `combine` with the truth. One that is told has, at the
    end, "test_shuffled": contexts of other images; "test_predicted"; "test_marginal", the sum over all contexts as they
    are predicted; and "test_constant_accuracy" and "test_constant_obedience", a number for each context told to all.
    Of a context norm on the image: "learned_mean" and "learned_std", (T, C) after the last epoch.
    """

    OPTIONS = {"frozen": False, "predict": True}

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        self.data, self.plus = data, self.tests.pop("test_plus", None)
        self.told = some_layer_has(self.model, "given_ids")
        table = self.contexts.get("given_label")  # (K, T)
        self.given_label = None if table is None else table.to(self.device, self.dtype)
        self.superclass = None if table is None else table.argmax(1).to(self.device)  # (K,)
        if table is not None and not self.told:
            self.tests |= {f"{name}_masked": replace(test, logits=self.mask) for name, test in self.tests.items()}

    def mask(self, logits: Tensor, batch: Batch) -> Tensor:
        """The logits told the contexts of the batch afterwards."""
        assert batch.ids is not None and self.given_label is not None
        return combine(logits, batch.ids, self.given_label)

    def batches(self) -> Iterator[Any]:
        return self.stream(self.train, self.generator, [self.view(self.config)])

    def view(self, config: Config) -> View:
        """As configured, at the size that the network cuts its patches from: the papers enlarge before they turn."""
        height, width = getattr(self.model, "pixels", self.train.images.shape[1:3])
        return [resize((height, width)), *usual_view(config)]

    def measure(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        found = super().measure(logits, batch) | above_half(logits, batch.labels)
        if self.superclass is not None and batch.ids is not None:
            guessed = self.superclass[logits.argmax(1)]
            found["obedience"] = (guessed == batch.ids).double().mean()
            found["superclass_accuracy"] = (guessed == self.superclass[batch.labels]).double().mean()
        return found

    def evaluate(self, test: TestSet | None = None) -> dict[str, Any]:
        found = super().evaluate(test)
        return found | {"their_precision": found["their_recall"] / (found["logits_above"] or 1.0)}

    def late_tests(self) -> dict[str, TestSet]:
        truth = self.tests["test"]
        late = {"test_plus": self.plus} if self.plus else {}
        if self.given_label is not None and self.told:
            split = truth.split
            late["test_shuffled"] = replace(truth, split=split.having(ids=self.shuffled_ids()))
            if self.options["predict"]:
                posterior = context_posterior(self.without_contexts(), self.given_label)
                late["test_predicted"] = replace(truth, split=split.having(ids=posterior.argmax(1)))
                of_each = split.having(responsibilities=posterior)
                late["test_marginal"] = TestSet(of_each, logits=self.under_each_context)
        return late

    def shuffled_ids(self) -> Tensor:
        """The contexts (N,) of the test images, in an order drawn by the run's seed."""
        ids = self.tests["test"].split.alongside["ids"]
        order = torch.from_numpy(np.random.default_rng(self.config.seed).permutation(len(ids)))
        return ids[order.to(self.device)]

    def under_each_context(self, logits: Tensor, batch: Batch) -> Tensor:
        """The marginal over contexts; notes on the way what each of them gives, told to all images."""
        assert batch.ids is not None and batch.responsibilities is not None and self.superclass is not None
        told = [torch.full_like(batch.ids, r) for r in range(self.config.num_contexts)]
        each = torch.stack([self.logits(self.tested, replace(batch, ids=ids)) for ids in told])  # (T, N, K)
        guesses = each.argmax(2)
        obeyed = self.superclass[guesses] == torch.stack(told)
        self.seen.append(torch.stack((guesses == batch.labels, obeyed)).sum(2).cpu())
        return marginal(each, batch.responsibilities)

    def conclude(self) -> dict[str, Any]:
        self.seen: list[Tensor] = []  # right and obedient answers (2, T) of each batch
        found = super().conclude()
        if self.given_label is not None and not self.told and self.config.norm == "none":
            CONTEXT_FREE[self.plain_key()] = self.answers(self.tested)
        found |= learned_moments(norm_on_image(self.tested, self.config))
        if parts := [part for seen in distributed.from_all(self.seen) for part in seen]:
            shares = torch.stack(parts).sum(0).double() / len(self.tests["test"].split)
            found |= dict(zip(("test_constant_accuracy", "test_constant_obedience"), shares.tolist(), strict=True))
        return found

    def without_contexts(self) -> Tensor:
        """Logits (N, K) on the test images, of the same network of the same seed that no layer tells a context."""
        key = self.plain_key()
        if key not in CONTEXT_FREE:
            model = train(key[0], data=self.data, device=self.device, progress=False).model
            assert model is not None
            CONTEXT_FREE.setdefault(key, self.answers(model))
        return CONTEXT_FREE[key]

    def plain_key(self) -> tuple[Config, str]:
        return self.plain(), self.data.checksum

    def plain(self, **changes: Any) -> Config:
        """The configuration of the same network with none but its own norm layers, and no token."""
        place = next(iter(getattr(self.model, "SLOTS", {})), self.config.placement[0])
        options = {k: v for k, v in dict(self.config.options).items() if k not in ("token", *self.OPTIONS)}
        own: dict[str, Any] = {"method": "", "norm": "none", "placement": (place,), "options": options}
        return replace(self.config, **own | changes)

    def answers(self, model: nn.Module) -> Tensor:
        """Logits (N, K) on the test images."""
        return logits_on(self, prepared(model, "cn"), self.tests["test"].split, self.config.batch_size)


TASKS["told"] = Told
