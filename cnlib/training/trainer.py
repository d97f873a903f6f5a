"""Everything one run holds in memory: data, model, optimizer, generators; and what one epoch does with them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnlib.data import ImageData
from cnlib.norm import use_context
from cnlib.norm.arithmetic import widen
from cnlib.training import checkpoint, distributed
from cnlib.training.augment import View, usual_view
from cnlib.training.batches import Batch, Split, moments, wrong_labels
from cnlib.training.build import OPTIMIZERS, build_contexts, build_model, check
from cnlib.training.config import Config
from cnlib.training.metrics import Meter
from cnlib.training.readings import TestSet, evaluate, final_readings, first_layer, some_layer_has
from cnlib.training.schedule import factor, set_rate
from cnlib.training.starts import start_from_images


def grouped(model: nn.Module, part: nn.Module, **group: Any) -> list[dict[str, Any]]:
    """All parameters for the optimizer, those of a part of the model in a group of which `group` says what differs."""
    own = list(part.parameters())
    others = [p for p in model.parameters() if all(p is not q for q in own)]
    return [{"params": others}, *([{"params": own, **group}] if own else [])]


class Trainer:
    """Supervised classification. Another task is a subclass with a row in TASKS. It overrides what differs:

    OPTIONS             {name: default} of the configuration's options that are its own; `self.options` has the values.
                        Of a task that has them, "frozen" leaves the layer under test as it starts, and "from_data"
                        starts it from the moments of so many training images
    HEADLINE            the metric by which a run is judged, of its best epoch too; of a loss the least is best
    WHOLE               whether it cannot do with a part of the images, to be timed
    LENGTH              the option that says how long an epoch is, in proportion, however many images there are
    build               its network
    find_contexts       where contexts come from
    setup               its streams and test sets, and every torch.Generator it draws from, as attributes of its own
    batches, epoch_steps  what an epoch passes, and how many there are; schedule_steps: over how many the rate moves
    parameters          what the optimizer gets: parameters, or groups of them with settings of their own
    step, late_tests    one update with one of them; test sets that are read at the end only
    logits, measure     of the model in training and testing; what is measured of a batch of a test set
    scores              what is recorded besides of how a test set was classified
    state, restore      what else the next epoch depends on; generators that are attributes are carried already

    data: already cut to the configured sizes. state: what `state` returned after an epoch, to go on from there.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    HEADLINE: ClassVar[str] = "test_accuracy"
    WHOLE: ClassVar[bool] = False
    LENGTH: ClassVar[str] = ""

    def __init__(
        self, config: Config, data: ImageData, device: torch.device, state: dict[str, Any] | None = None
    ) -> None:
        check(config, TASKS)
        self.config, self.device, self.epoch, self.steps_done = config, device, 0, 0
        self.num_classes = len(data.classes)
        self.options = {key: dict(config.options).get(key, default) for key, default in self.OPTIONS.items()}
        self.best: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        self.model = self.build(data)
        soft = some_layer_has(self.model, "given_responsibilities")
        clock = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            find = lambda: self.find_contexts(data, soft)  # noqa: E731
            self.contexts = distributed.from_leader(find) if state is None else state["contexts"]
        self.contexts_seconds = time.perf_counter() - clock if self.contexts else 0.0
        if hasattr(first_layer(self.model, config), "given_ids") and not self.contexts:
            raise ValueError(f"norm {config.norm!r} needs contexts: set contexts, e.g. to gmm, random or superclass")
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = self.model.to(device, self.dtype).to(memory_format=layout)
        average = get_ema_multi_avg_fn(config.average)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.average else None
        self.compiled = distributed.parallel(torch.compile(self.model) if config.compile else self.model)
        self.optimizer = OPTIMIZERS[config.optimizer](self.parameters(), config)
        set_rate(self.optimizer, config.lr)  # groups with a factor have their own
        self.setup(data)
        if count := self.options.get("from_data"):
            start_from_images(self, count)
        if state is not None:
            self.restore(state)

    def build(self, data: ImageData) -> nn.Module:
        """The network before its first step; what is not to be trained has requires_grad off."""
        model = build_model(self.config, data, self.OPTIONS)
        if self.options.get("frozen"):
            first_layer(model, self.config).requires_grad_(False)
        return model

    def find_contexts(self, data: ImageData, soft: bool) -> dict[str, Tensor]:
        """What `build_contexts` returns; once a run, before anything else is set up."""
        return build_contexts(self.config, data, self.device, soft)

    def parameters(self) -> Iterable[Any]:
        """What the optimizer gets: all parameters, or groups of them, {"params": [...], "weight_decay": 0.0}; its
        "factor" multiplies the rate of a group."""
        return self.model.parameters()

    def setup(self, data: ImageData) -> None:
        """`train`, and `tests`: {"test": TestSet, ...}, whose names go before their metrics; all begin with "test", but
        for "val". Layers that know CN+ are read with it too: "test_plus"."""
        # its own generator: the order of the images is the same whatever the norm layers draw
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        statistics = moments(data.train_images)
        if noise := self.config.label_noise:
            found = wrong_labels(data.train_images, data.train_labels, self.num_classes, noise, self.config.seed)
            data = replace(data, train_labels=found)
        held_out, images = self.config.validation, len(data.train_labels)
        if held_out >= images:
            raise ValueError(f"validation={held_out}: expected less than the {images} training images")
        self.train = self.split(data, "train", statistics, slice(images - held_out))
        self.tests: dict[str, TestSet] = {}
        if held_out:
            self.tests["val"] = TestSet(self.split(data, "train", statistics, slice(images - held_out, None)))
        self.tests["test"] = TestSet(self.split(data, "test", statistics))
        if some_layer_has(self.model, "inference"):
            self.tests["test_plus"] = replace(self.tests["test"], inference="cn+")

    def split(
        self, data: ImageData, part: str, statistics: tuple[Tensor, Tensor], chosen: slice = slice(None)
    ) -> Split:
        """The "train" or "test" images of the data, with all that goes with them, on the device."""
        mean, std = (value.to(self.dtype) for value in statistics)
        images, labels, domains = (getattr(data, f"{part}_{what}") for what in ("images", "labels", "domains"))
        alongside = {key: self.contexts.get(f"{part}_{key}") for key in ("ids", "responsibilities")}
        columns = {key: None if v is None else v[chosen] for key, v in {**alongside, "domains": domains}.items()}
        layout = self.config.channels_last
        return Split(images[chosen], labels[chosen], (mean, std), self.device, columns, channels_last=layout)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as tensors and plain types."""
        return {
            "epoch": self.epoch,
            "steps": self.steps_done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "best": self.best,
            "generators": {k: g.get_state() for k, g in vars(self).items() if isinstance(g, torch.Generator)},
            "rng": checkpoint.rng_state(self.device),
            "contexts": self.contexts,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch, self.steps_done, self.best = state["epoch"], state.get("steps", 0), state.get("best", {})
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        checkpoint.set_generators(self, state["generators"], (self.config.seed, self.epoch))
        checkpoint.set_rng_state(state["rng"], self.device)

    def batches(self) -> Iterator[Any]:
        """Of one epoch, this process's part of each."""
        return self.stream(self.train, self.generator)

    def epoch_steps(self) -> int:
        """How many batches an epoch has: of the training images, in full batches."""
        return max(1, len(self.train) // self.config.batch_size)

    def schedule_steps(self) -> float:
        """Over how many steps the schedule goes: by default those of the run."""
        return self.config.epochs * self.epoch_steps()

    def stream(
        self,
        split: Split,
        generator: torch.Generator,
        views: Sequence[View] | None = None,
        batch_size: int | None = None,
        count: int | None = None,
    ) -> Iterator[Batch]:
        """A split in random order, this process's part of each batch: one pass, or `count` batches, over as many passes
        as that takes. views: by default one, augmented as configured."""
        c, part = self.config, (distributed.rank(), distributed.size())
        size, views = batch_size or c.batch_size, [usual_view(c)] if views is None else views
        passes = (split.shuffled(size, generator, views, part) for _ in itertools.count())
        return next(passes) if count is None else itertools.islice(itertools.chain.from_iterable(passes), count)

    def run_epoch(self) -> dict[str, Any]:
        """One pass over the training images, then the test sets.

        Train metrics are those of the pass itself: augmented images, weights changing under way. Seconds are wall time
        until the device is done; evaluation is `eval_seconds`.
        """
        start = time.perf_counter()
        config, meter = self.config, Meter(self.num_classes, self.device)
        steps = self.schedule_steps()
        self.model.train()
        distributed.reseed(config.seed, self.epoch)
        for batch in self.batches():
            if config.warmup or config.schedule != "constant":
                set_rate(self.optimizer, config.lr * factor(config.schedule, config.warmup, self.steps_done, steps))
            meter.update(self.step(batch))
            if self.average:
                self.average.update_parameters(self.model)
            self.steps_done += 1
        result: dict[str, Any] = {f"train_{key}": value for key, value in meter.compute().items()}
        trained = time.perf_counter()
        for name, test in self.tests.items():
            result |= {f"{name}_{key}": value for key, value in self.evaluate(test).items()}
        self.epoch += 1
        self._note_the_best(result)
        result["train_seconds"] = trained - start
        result["eval_seconds"] = time.perf_counter() - trained
        result["images_per_second"] = meter.count / result["train_seconds"]
        return result

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One update of the weights. Returns what is recorded of it: "loss"; "logits" (N, K) and "labels" (N,) for the
        metrics of classification; any other number under its name."""
        logits = self.logits(self.compiled, batch)
        loss = F.cross_entropy(logits, batch.labels)
        self.update(loss * batch.weight)
        return {"loss": loss, "logits": logits, "labels": batch.labels}

    def update(self, loss: Tensor) -> None:
        """Backward, and a step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(N, K), at least float32. model: `self.compiled` in training, `tested` in testing."""
        with self.given(model, batch), self.autocast():
            return widen(model(batch.x))

    @property
    def tested(self) -> nn.Module:
        """What the test sets see: the network, or the average of its weights."""
        return self.average.module if self.average else self.model

    def evaluate(self, test: TestSet | None = None) -> dict[str, Any]:
        """Metrics on a test set, by default "test": see `readings.evaluate`."""
        return evaluate(self, test or self.tests["test"], self.tested)

    def measure(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What is recorded of a batch of a test set, as `step` returns it."""
        return {"loss": F.cross_entropy(logits, batch.labels), "logits": logits, "labels": batch.labels}

    def scores(self, confusion: Tensor) -> dict[str, float]:
        """Of the counts (K, K) of a test set, rows true and columns predicted: what is recorded besides the usual."""
        return {}

    def given(self, model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        """The contexts of a batch, for the layers that take them."""
        none = batch.ids is None and batch.responsibilities is None
        return nullcontext() if none else use_context(model, batch.ids, batch.responsibilities)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _note_the_best(self, metrics: Mapping[str, Any]) -> None:
        """Keep the weights of the best epoch on the validation images, where the run stops by them."""
        if not self.config.patience:
            return
        name = self.HEADLINE.replace("test", "val", 1)
        value = metrics[name] * (-1 if name.endswith("loss") else 1)
        if not self.best or value > self.best["value"]:
            weights = {key: tensor.clone() for key, tensor in self.tested.state_dict().items()}
            self.best = {"value": value, "epoch": self.epoch, "model": weights}

    @property
    def done(self) -> bool:
        """Whether all epochs are trained, or the last `patience` of them brought nothing better."""
        patience = self.config.patience
        return self.epoch >= self.config.epochs or bool(patience and self.epoch - self.best.get("epoch", 0) >= patience)

    def conclude(self) -> dict[str, Any]:
        """After the last epoch: the weights of the best one, where the run stops by validation images, and how they
        are read in the end (`final_readings`)."""
        if self.best:
            self.tested.load_state_dict(self.best["model"])
        return final_readings(self, self.late_tests())

    def late_tests(self) -> dict[str, TestSet]:
        """Test sets that are read once, by the weights that the run ends with."""
        return {}

    def memory(self) -> dict[str, int]:
        """Peak memory on a CUDA device in bytes; elsewhere torch does not count it."""
        cuda = self.device.type == "cuda"
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(self.device)} if cuda else {}


TASKS: dict[str, type[Trainer]] = {"classify": Trainer}
