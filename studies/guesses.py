"""Ship what a network guesses that saw halves of pictures: chapter 15 tells it to one that sees the left halves.

python -m studies.guesses
python -m studies.guesses --side left
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cnlib.arguments import explained, folder


def ship(
    dataset: str = "cifar10",
    side: Annotated[str, typer.Option(help="the half that it sees: right or left")] = "right",
    epochs: Annotated[int, typer.Option(min=1, help="over 25,000 halves")] = 10,
    out: Annotated[
        Path | None, typer.Option(parser=folder, metavar="FOLDER", help="by default the package's records")
    ] = None,
) -> None:
    """Train the ConvNet of chapter 9 with BN on these halves of every second training image, the second, fourth, ...,
    and write its guesses at the same halves of the other training images and of the test images."""
    import torch

    from cnlib.data import load
    from cnlib.experiments.second_view import GUESSES, halves
    from cnlib.training import Config, Trainer
    from cnlib.training.batches import Split, moments
    from cnlib.training.readings import logits_on, reestimated
    from cnlib.training.records import pack, provenance, write_lines

    if side not in ("left", "right"):
        raise typer.BadParameter(f"{side!r}: expected left or right", param_hint="--side")
    with explained():
        whole = load(dataset)
        ours, data, device = halves(whole, side), halves(whole, side, ours=False), torch.device("cpu")
        config = Config(dataset=data.name, profile="guesses", width=0.25, epochs=epochs, flip=True)
        network = Trainer(config, data, device)
    while not network.done:
        found = network.run_epoch()
        print(f"epoch {network.epoch}: {found['test_accuracy']:.1%} of the test images", flush=True)
    model = reestimated(network)

    def guesses(images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        return logits_on(network, model, Split(images, labels, moments(data.train_images), device)).argmax(1)

    train_guesses = guesses(ours.train_images, ours.train_labels)
    test_guesses = guesses(ours.test_images, ours.test_labels)
    right = {
        "train": float((train_guesses.numpy() == ours.train_labels).mean()),
        "test": float((test_guesses.numpy() == ours.test_labels).mean()),
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
    write_lines((out or GUESSES) / f"{data.name}.jsonl", [line])
    train_right, test_right = (f"{share:.1%}" for share in right.values())
    print(f"{data.name}: right on {train_right} of {len(train_guesses)} training and {test_right} of test images")


if __name__ == "__main__":
    typer.run(ship)
