"""Images a second of our training loop beside the usual one, and what each norm layer costs a whole training run.

The usual loop is what a tutorial writes: a map-style data set of PIL images, torchvision transforms, a DataLoader, the
same network with nn.BatchNorm2d, contiguous and eager, the same optimizer. It gets 0 and 2 workers that stay alive, and
the better of the two counts. All loops alternate within each repeat, a ratio is taken within a repeat, and the median
over the repeats is kept, so that a machine whose speed drifts drifts for all.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.data import ImageData, load
from cnlib.models import ConvNet
from cnlib.training import Config, Trainer
from cnlib.training.allocator import keep_freed_memory
from cnlib.training.batches import moments
from cnlib.training.build import OPTIMIZERS
from studies.layers import peak_bytes

Row = dict[str, Any]
WORKERS = (0, 2)
METHODS: dict[str, dict[str, Any]] = {
    "none": {"norm": "none"},
    "bn": {"norm": "bn"},
    "mn": {"norm": "mn", "contexts": "gmm"},
    "mn-em": {"norm": "mn"},
    "cn": {"norm": "cn", "contexts": "gmm", "encoder": "linear"},
}
EVERYWHERE = ("conv1", "conv2", "conv3", "conv4")


def pictures(train: int, test: int = 256) -> ImageData:
    """Random images of CIFAR-10's shape: how long a step takes does not depend on what they show."""
    rng = np.random.default_rng(0)
    arrays = [(rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10) for n in (train, test)]
    (images, labels), (test_images, test_labels) = arrays
    return ImageData("random", images, labels, test_images, test_labels, tuple("0123456789"))


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Image by image, as torchvision's CIFAR10 gives them."""

    def __init__(self, data: ImageData, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = data.train_images, data.train_labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class UsualLoop:
    """An epoch of the loop of a tutorial. workers: of its DataLoader."""

    def __init__(self, config: Config, data: ImageData, device: torch.device, workers: int) -> None:
        from torchvision import transforms

        mean, std = ((statistic / 255).tolist() for statistic in moments(data.train_images))  # ToTensor divides
        steps = [transforms.RandomHorizontalFlip()] if config.flip else []
        transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
        self.device = device
        self.loader = torch.utils.data.DataLoader(
            Pictures(data, transform),
            config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        torch.manual_seed(config.seed)
        self.model = ConvNet(len(data.classes), width=config.width, norm=nn.BatchNorm2d).to(device)
        self.optimizer = OPTIMIZERS[config.optimizer](self.model.parameters(), config)

    def run_epoch(self) -> None:
        self.model.train()
        total = correct = 0.0
        for x, labels in self.loader:
            x, labels = x.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.optimizer.zero_grad()
            logits = self.model(x)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            correct += (logits.argmax(1) == labels).sum().item()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run_epoch()  # its .item() calls wait for the device
        return time.perf_counter() - start


def throughput(
    width: float, size: int, repeats: int, device: torch.device, compiled: tuple[bool, ...] = (False, True)
) -> Iterator[Row]:
    """One row for each variant of our loop: {"images_per_second", "usual_images_per_second", "speedup", ...}.

    size: images an epoch. The seconds a variant took to compile, in its first epoch,
    are a column of their own; the compiler's cache on disk may have made them fewer.
    """
    data = pictures(size)
    config = Config(dataset="random", width=width, flip=True, batch_size=256)
    images = size // config.batch_size * config.batch_size
    usual = {workers: UsualLoop(config, data, device, workers) for workers in WORKERS}
    ours = {flag: Trainer(replace(config, compile=flag), data, device) for flag in compiled}
    first = {flag: trainer.run_epoch()["train_seconds"] for flag, trainer in ours.items()}
    for loop in usual.values():
        loop.run_epoch()
    theirs: list[dict[int, float]] = []
    mine: dict[bool, list[float]] = {flag: [] for flag in ours}
    for _ in range(repeats):
        theirs.append({workers: loop.seconds() for workers, loop in usual.items()})
        for flag, trainer in ours.items():
            mine[flag].append(trainer.run_epoch()["train_seconds"])
    middle = {workers: statistics.median(row[workers] for row in theirs) for workers in WORKERS}
    best = min(WORKERS, key=middle.__getitem__)
    for flag, seconds in mine.items():
        ratios = [row[best] / own for row, own in zip(theirs, seconds, strict=True)]
        yield {
            "width": width,
            "batch_size": config.batch_size,
            "images": images,
            "repeats": repeats,
            "compiled": flag,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "images_per_second": images / statistics.median(seconds),
            "usual_images_per_second": {str(workers): images / middle[workers] for workers in WORKERS},
            "usual_workers": best,
            "speedup": statistics.median(ratios),
            "speedup_range": [min(ratios), max(ratios)],
            "compile_seconds": max(0.0, first[flag] - statistics.median(seconds)) if flag else 0.0,
        }


def cost(
    width: float, placement: tuple[str, ...], epochs: int, size: int, device: torch.device, dataset: str = "cifar10"
) -> Iterator[Row]:
    """One row a method: seconds an epoch and peak memory of a training step, as ratios to BN of the same run.

    The methods alternate, an epoch each. The peak is what torch allocates at once in a training step, weights, data and
    optimizer state not counted: on the CPU from its profiler, on CUDA from its counter. size: training images.
    """
    data = load(dataset).subset(size, 256)
    common: dict[str, Any] = {"dataset": dataset, "width": width, "placement": placement, "flip": True}
    trainers = {name: Trainer(Config(**common, **fields), data, device) for name, fields in METHODS.items()}
    for trainer in trainers.values():  # warms up: allocations, optimizer state, running mixtures
        for batch, _ in zip(trainer.train.ordered(trainer.config.batch_size), range(2), strict=False):
            trainer.step(batch)
    results: dict[str, list[Row]] = {name: [] for name in trainers}
    for _ in range(epochs):
        for name, trainer in trainers.items():
            results[name].append(trainer.run_epoch())
    peaks = {name: step_peak(trainer) for name, trainer in trainers.items()}
    reference = [row["train_seconds"] for row in results["bn"]]
    for name, rows in results.items():
        seconds = [row["train_seconds"] for row in rows]
        yield {
            "method": name,
            "width": width,
            "placement": list(placement),
            "dataset": dataset,
            "data": data.checksum,
            "train_images": len(data.train_labels),
            "epochs": epochs,
            "threads": torch.get_num_threads(),
            "epoch_seconds": statistics.median(seconds),
            "time_ratio": statistics.median(a / b for a, b in zip(seconds, reference, strict=True)),
            "contexts_seconds": trainers[name].contexts_seconds,
            "peak_bytes": peaks[name],
            "peak_ratio": peaks[name] / peaks["bn"],
        }


def step_peak(trainer: Trainer) -> int:
    """The most that one training step allocates at once, beyond what is there before it."""
    batch = next(trainer.train.ordered(trainer.config.batch_size))
    trainer.model.train()  # the test sets leave it in evaluation, and CN in CN+
    return peak_bytes(lambda: trainer.step(batch), trainer.device)


def run_throughput(repeats: int, device: torch.device) -> list[Row]:
    """The network of Table IV at a quarter of its width, and at full width.

    On the CPU twice, all loops alike: in a process that gives freed memory back to the system, as the usual loop does
    unless somebody tells it otherwise, and in one that keeps it, as `train` does.
    """
    rows = []
    for keeps in (False, True) if device.type == "cpu" else (False,):
        if keeps:
            keep_freed_memory()
        for width, size in ((0.25, 4096), (1.0, 1024)):
            rows += [row | {"keeps_memory": keeps} for row in throughput(width, size, repeats, device)]
    print(f"{'width':>6}{'memory':>10}{'ours':>10}{'images/s':>10}{'usual, 0 and 2 workers':>24}{'speedup':>9}")
    for row in rows:
        usual = ", ".join(f"{value:.0f}" for value in row["usual_images_per_second"].values())
        mode = "compiled" if row["compiled"] else "eager"
        memory = "kept" if row["keeps_memory"] else "returned"
        print(
            f"{row['width']:>6}{memory:>10}{mode:>10}{row['images_per_second']:>10.0f}{usual:>24}{row['speedup']:>9.2f}"
        )
    return rows


def run_cost(epochs: int, device: torch.device) -> list[Row]:
    """The norm under test in the third layer, as the papers have it, and in all four; the former at full width too."""
    rows: list[Row] = []
    for width, placement, size in ((0.25, ("conv3",), 10240), (0.25, EVERYWHERE, 5120), (1.0, ("conv3",), 1280)):
        rows += cost(width, placement, epochs, size, device)
    print(f"{'width':>6}{'layers':>8}{'norm':>8}{'s/epoch':>9}{'time':>7}{'peak':>7}{'mixture, s':>12}")
    for row in rows:
        print(
            f"{row['width']:>6}{len(row['placement']):>8}{row['method']:>8}{row['epoch_seconds']:>9.2f}"
            f"{row['time_ratio']:>7.2f}{row['peak_ratio']:>7.2f}{row['contexts_seconds']:>12.1f}"
        )
    return rows
