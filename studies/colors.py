"""Ship what color the test images of a data set have, so that chapter 10 can say what a layer writes into it.

python -m studies.colors cifar100
"""

from __future__ import annotations

import numpy as np
import typer

from cnlib.arguments import explained
from cnlib.contexts.kmeans import color_moments
from cnlib.data import load
from cnlib.results.images import COLORS, STEP
from cnlib.training.records import pack, write_lines


def ship(datasets: list[str]) -> None:
    """Write mean and standard deviation of each test image in each channel, and its class."""
    import torch

    for name in datasets:
        with explained():
            data = load(name)
        found = dict(zip(("mean", "std"), np.split(color_moments(data.test_images), 2, axis=1), strict=True))
        kept = {key: pack(torch.from_numpy(np.rint(value / STEP)).flatten()) for key, value in found.items()}
        line = {
            "type": "header",
            "dataset": name,
            "data": data.checksum,
            "labels": pack(torch.tensor(data.test_labels)),
        }
        write_lines(COLORS / f"{name}.jsonl", [{**line, **kept}])
        print(f"{len(data.test_labels)} images of {name}")


if __name__ == "__main__":
    typer.run(ship)
