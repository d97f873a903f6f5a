"""Everything one run holds in memory: data, model, optimizer, generators; and what one epoch does with them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.data import ImageData
from cnlib.norm import ContextNorm, use_context
from cnlib.norm.arithmetic import widen
from cnlib.training import checkpoint, distributed
from cnlib.training.batches import Batch, Split, moments
from cnlib.training.build import OPTIMIZERS, build_contexts, build_model
from cnlib.training.config import CHOICES, Config
from cnlib.training.metrics import Meter
from cnlib.training.observe import Observer


class Trainer:
    """Supervised classification. Another task is a subclass with a row in TASKS. It overrides what differs:

    OPTIONS             {name: default} of the configuration's options that are its own; `self.options` has the values
    setup               its streams and test sets, and every torch.Generator it draws from, as attributes of its own
    batches, step       what an epoch passes, and one update with it
    logits, evaluate    of the model in training and testing; the metrics of a test set
    state, restore      what else the next epoch depends on; generators that are attributes are carried already

    data: already cut to the configured sizes. state: what `state` returned after an epoch, to go on from there.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, config: Config, data: ImageData, device: torch.device, state: dict[str, Any] | None = None
    ) -> None:
        self.config, self.device, self.epoch = config, device, 0
        self.num_classes = len(data.classes)
        self.options = {key: dict(config.options).get(key, default) for key, default in self.OPTIONS.items()}
        clock = time.perf_counter()
        self.contexts = (
            distributed.from_leader(lambda: build_contexts(config, data, device))
            if state is None
            else state["contexts"]
        )
        self.contexts_seconds = time.perf_counter() - clock
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = build_model(config, data, self.OPTIONS).to(device, self.dtype).to(memory_format=layout)
        self.compiled = distributed.parallel(torch.compile(self.model) if config.compile else self.model)
        self.optimizer = OPTIMIZERS[config.optimizer](self.model.parameters(), config)
        self.setup(data)
        if state is not None:
            self.restore(state)

    def setup(self, data: ImageData) -> None:
        """`train`, and `tests`: {"test": Split, ...}, whose names go before their metrics; all begin with "test"."""
        # its own generator: the order of the images is the same whatever the norm layers draw
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        statistics = moments(data.train_images)
        given = [
            {k: self.contexts.get(f"{part}_{k}") for k in ("ids", "responsibilities")} for part in ("train", "test")
        ]
        self.train = self.split(data.train_images, data.train_labels, statistics, **given[0])
        self.tests = {"test": self.split(data.test_images, data.test_labels, statistics, **given[1])}

    def split(
        self, images: np.ndarray, labels: np.ndarray, statistics: tuple[Tensor, Tensor], **contexts: Tensor | None
    ) -> Split:
        """Images and labels on the device, as this run's streams and test sets; contexts: `ids`, `responsibilities`."""
        mean, std = (value.to(self.dtype) for value in statistics)
        c = self.config
        return Split(images, labels, (mean, std), self.device, **contexts, border=c.crop, channels_last=c.channels_last)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as tensors and plain types."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {k: g.get_state() for k, g in vars(self).items() if isinstance(g, torch.Generator)},
            "rng": checkpoint.rng_state(self.device),
            "contexts": self.contexts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["generators"].items():
            getattr(self, key).set_state(value.cpu())
        checkpoint.set_rng_state(state["rng"], self.device)

    def batches(self) -> Iterator[Any]:
        """Of one epoch, this process's part of each."""
        return self.stream(self.train, self.generator)

    def stream(self, split: Split, generator: torch.Generator) -> Iterator[Batch]:
        """One pass over a split in random order, augmented as configured, this process's part of each batch."""
        c = self.config
        return split.shuffled(c.batch_size, generator, c.flip, c.crop, (distributed.rank(), distributed.size()))

    def run_epoch(self) -> dict[str, Any]:
        """One pass over the training images, then the test sets.

        Train metrics are those of the pass itself: augmented images, weights changing under way. "test_plus_..." is the
        test set under CN+. Seconds are wall time until the device is done; evaluation is `eval_seconds`.
        """
        start = time.perf_counter()
        config, meter = self.config, Meter(self.num_classes, self.device)
        self.model.train()
        distributed.reseed(config.seed, self.epoch)
        for batch in self.batches():
            meter.update(*self.step(batch))
        result: dict[str, Any] = {f"train_{key}": value for key, value in meter.compute().items()}
        trained = time.perf_counter()
        for name, split in self.tests.items():
            for mode in ("cn", "cn+") if config.inference == "both" else (config.inference,):
                prefix = f"{name}_plus" if config.inference == "both" and mode == "cn+" else name
                result |= {f"{prefix}_{key}": value for key, value in self.evaluate(mode, split).items()}
        self.epoch += 1
        result["train_seconds"] = trained - start
        result["eval_seconds"] = time.perf_counter() - trained
        result["images_per_second"] = meter.count / result["train_seconds"]
        return result

    def step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """One update of the weights. Returns logits (N, K), labels (N,), loss: what the train metrics are made of."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(self.compiled, batch)
        loss = F.cross_entropy(logits, batch.labels)
        (loss * batch.weight).backward()
        self.optimizer.step()
        return logits, batch.labels, loss

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(N, K), at least float32. model: `self.compiled` in training, `self.model` in testing."""
        with self.given(batch), self.autocast():
            return widen(model(batch.x))

    @torch.no_grad()
    def evaluate(self, inference: str = "cn", split: Split | None = None) -> dict[str, Any]:
        """Metrics on a test set, by default "test", in batches of the training size: CN+ uses the moments of the batch
        it sees, so processes share the set out in whole batches.

        Also what the first layer under test does to it, one number a context: see `Observer.summary`.
        """
        self.model.eval()
        for layer in self.model.modules():
            if isinstance(layer, ContextNorm):
                layer.inference = inference
        meter = Meter(self.num_classes, self.device)
        layer = self.model.get_submodule(self.model.slot(self.config.placement[0]))  # type: ignore[operator]
        with Observer(layer, self.config.num_contexts if self.config.norm == "cn" else 1) as observer:
            for batch in (split or self.tests["test"]).ordered(
                self.config.batch_size, (distributed.rank(), distributed.size())
            ):
                observer.ids = batch.ids
                logits = self.logits(self.model, batch)
                meter.update(logits, batch.labels, F.cross_entropy(logits, batch.labels))
        return meter.compute() | observer.summary()

    def given(self, batch: Batch) -> AbstractContextManager[None]:
        if batch.ids is None and batch.responsibilities is None:
            return nullcontext()
        return use_context(self.model, batch.ids, batch.responsibilities)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def memory(self) -> dict[str, int]:
        """Peak memory on a CUDA device in bytes; elsewhere torch does not count it."""
        if self.device.type != "cuda":
            return {}
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(self.device)}


TASKS: dict[str, type[Trainer]] = {"classify": Trainer}
CHOICES["task"] = TASKS
