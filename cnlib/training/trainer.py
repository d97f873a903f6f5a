"""Everything one run holds in memory: data, model, optimizer, generators; and what one epoch does with them."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cnlib.data import ImageData
from cnlib.norm import ContextNorm, use_context
from cnlib.norm._arithmetic import widen
from cnlib.training import checkpoint, distributed
from cnlib.training.batches import Batch, Split, moments
from cnlib.training.build import OPTIMIZERS, build_contexts, build_model
from cnlib.training.config import Config
from cnlib.training.metrics import Meter
from cnlib.training.observe import Observer


class Trainer:
    """Supervised classification. Another task overrides `step`.

    data: already cut to the configured sizes. state: what `state` returned after an epoch, to go on from there.
    """

    def __init__(
        self, config: Config, data: ImageData, device: torch.device, state: dict[str, Any] | None = None
    ) -> None:
        self.config, self.device, self.epoch = config, device, 0
        self.num_classes = len(data.classes)
        clock = time.perf_counter()
        self.contexts = (
            distributed.from_leader(lambda: build_contexts(config, data, device))
            if state is None
            else state["contexts"]
        )
        self.contexts_seconds = time.perf_counter() - clock
        torch.manual_seed(config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = build_model(config, data).to(device, dtype).to(memory_format=layout)
        self.compiled = distributed.parallel(torch.compile(self.model) if config.compile else self.model)
        self.optimizer = OPTIMIZERS[config.optimizer](self.model.parameters(), config)
        # its own generator: the order of the images is the same whatever the norm layers draw
        self.generator = torch.Generator(device).manual_seed(config.seed)
        mean, std = (value.to(dtype) for value in moments(data.train_images))
        self.train, self.test = (
            Split(
                getattr(data, f"{part}_images"),
                getattr(data, f"{part}_labels"),
                (mean, std),
                device,
                ids=self.contexts.get(f"{part}_ids"),
                responsibilities=self.contexts.get(f"{part}_responsibilities"),
                border=config.crop if part == "train" else 0,
                channels_last=config.channels_last,
            )
            for part in ("train", "test")
        )
        if state is not None:
            self.epoch = state["epoch"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"].cpu())
            checkpoint.set_rng_state(state["rng"], device)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as tensors and plain types."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(self.device),
            "contexts": self.contexts,
        }

    def run_epoch(self) -> dict[str, Any]:
        """One pass over the training images, then the test set.

        Train metrics are those of the pass itself: augmented images, weights changing under way. "test_plus_..." is the
        test set under CN+. Seconds are wall time until the device is done; evaluation is `eval_seconds`.
        """
        start = time.perf_counter()
        config, meter = self.config, Meter(self.num_classes, self.device)
        self.model.train()
        distributed.reseed(config.seed, self.epoch)
        part = distributed.rank(), distributed.size()
        for batch in self.train.shuffled(config.batch_size, self.generator, config.flip, config.crop, part):
            meter.update(*self.step(batch))
        result: dict[str, Any] = {f"train_{key}": value for key, value in meter.compute().items()}
        trained = time.perf_counter()
        for mode in ("cn", "cn+") if config.inference == "both" else (config.inference,):
            prefix = "test_plus" if config.inference == "both" and mode == "cn+" else "test"
            result |= {f"{prefix}_{key}": value for key, value in self.evaluate(mode).items()}
        self.epoch += 1
        result["train_seconds"] = trained - start
        result["eval_seconds"] = time.perf_counter() - trained
        result["images_per_second"] = meter.count / result["train_seconds"]
        return result

    def step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One update of the weights. Returns logits (N, K), labels (N,), loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.given(batch), self.autocast():
            logits = self.compiled(batch.x)
        loss = F.cross_entropy(widen(logits), batch.labels)
        (loss * batch.weight).backward()
        self.optimizer.step()
        return logits, batch.labels, loss

    @torch.no_grad()
    def evaluate(self, inference: str = "cn") -> dict[str, Any]:
        """Metrics on the test set, in batches of the training size: CN+ uses the moments of the batch it sees, so
        processes share the set out in whole batches.

        Also what the first layer under test does to it, one number a context: see `Observer.summary`.
        """
        self.model.eval()
        for layer in self.model.modules():
            if isinstance(layer, ContextNorm):
                layer.inference = inference
        meter = Meter(self.num_classes, self.device)
        layer = self.model.get_submodule(self.model.slot(self.config.placement[0]))  # type: ignore[operator]
        with Observer(layer, self.config.num_contexts if self.config.norm == "cn" else 1) as observer:
            for batch in self.test.ordered(self.config.batch_size, (distributed.rank(), distributed.size())):
                observer.ids = batch.ids
                with self.given(batch), self.autocast():
                    logits = widen(self.model(batch.x))
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
