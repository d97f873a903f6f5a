"""Ship what a network guesses that saw right halves of pictures: chapter 15 tells it to one that sees the left halves.

python -m studies.guesses
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cnlib.arguments import explained


def ship(
    dataset: str = "cifar10",
    epochs: Annotated[int, typer.Option(help="over 25,000 right halves")] = 10,
    out: Annotated[Path | None, typer.Option(help="folder; by default the package's records")] = None,
) -> None:
    """Train the ConvNet of chapter 9 with BN on the right halves of every second training image, the second, fourth,
    ..., and write its guesses at the right halves of the other training images and of the test images."""
    import torch

    from cnlib.data import load
    from cnlib.experiments.second_view import GUESSES, halves, seen_by_others
    from cnlib.training import Config, Trainer
    from cnlib.training.batches import Split, moments
    from cnlib.training.readings import READ_SIZE, reestimated
    from cnlib.training.records import pack, provenance, write_lines

    with explained():
        whole = load(dataset)
    data, device = halves(whole, right=True), torch.device("cpu")
    config = Config(dataset=data.name, profile="guesses", width=0.25, epochs=epochs, flip=True)
    network = Trainer(config, data, device)
    while not network.done:
        found = network.run_epoch()
        print(f"epoch {network.epoch}: {found['test_accuracy']:.1%} of the test images", flush=True)
    model = reestimated(network)

    @torch.no_grad()
    def guesses(images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        split = Split(images, labels, moments(data.train_images), device)
        return torch.cat([network.logits(model, batch).argmax(1) for batch in split.ordered(READ_SIZE)])

    train_guesses = guesses(seen_by_others(whole), whole.train_labels[::2])
    test_guesses = guesses(data.test_images, data.test_labels)
    right = {
        "train": float((train_guesses.numpy() == whole.train_labels[::2]).mean()),
        "test": float((test_guesses.numpy() == whole.test_labels).mean()),
    }
    line = {
        "type": "header",
        "dataset": dataset,
        "data": whole.checksum,
        "config": config.to_dict(),
        "provenance": provenance(device, data.checksum),
        "right": right,
        "train": pack(train_guesses),
        "test": pack(test_guesses),
    }
    write_lines((out or GUESSES) / f"{dataset}.jsonl", [line])
    train_right, test_right = (f"{share:.1%}" for share in right.values())
    print(f"{dataset}: right on {train_right} of {len(train_guesses)} training and {test_right} of test images")


if __name__ == "__main__":
    typer.run(ship)
