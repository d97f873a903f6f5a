"""Ship the classes of the test images that recorded runs are read on, so that intervals can cover images.

python -m studies.labels cifar10 cifar100 --test-size 2000
"""

from __future__ import annotations

from typing import Annotated

import typer

from cnlib.arguments import explained
from cnlib.data import load
from cnlib.results.contrasts import LABELS
from cnlib.training.records import pack, write_lines


def ship(
    datasets: list[str],
    test_size: Annotated[int | None, typer.Option(help="of a stratified subset; by default all")] = None,
) -> None:
    """Write labels and domains of each data set's test images, in the order in which runs of that size see them."""
    import torch

    for name in datasets:
        with explained():
            data = load(name)
            test = data.subset(None, test_size)
        chosen = torch.as_tensor(test.test_labels)
        line = {"type": "header", "dataset": name, "data": data.checksum, "labels": pack(chosen)}
        if test.test_domains is not None:
            line["domains"] = pack(torch.as_tensor(test.test_domains))
        write_lines(LABELS / f"{name}-{test_size or 'all'}.jsonl", [line])
        print(f"{len(chosen)} labels of {name}")


if __name__ == "__main__":
    typer.run(ship)
