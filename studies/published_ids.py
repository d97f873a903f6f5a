"""The mixture assignments that the authors of context normalization published, put to the checks of chapter 8.

    git clone https://github.com/b-faye/Context-Normalization
    python -m studies.published_ids --repository Context-Normalization --out DIR --dataset cifar10

One file a data set: counts and accuracies, never the ids. The images have to be in the official order.
"""

import hashlib
import io
import pickle
import subprocess
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from cnlib import data
from cnlib.arguments import explained, folder
from cnlib.contexts.quality import audit, contingency, mutual_information, patch_means, shares
from cnlib.data import ImageData
from cnlib.training.records import provenance, write_lines
from studies import rounded

Row = dict[str, Any]
ADDRESS = "https://github.com/b-faye/Context-Normalization"
FILES = {"train": "gmm/gmm_{}_tr_labels", "test": "gmm/gmm_{}_ts_labels"}
# the official files data_batch_1 to 5 make up the training images
PARTS = 5


class _Numbers(pickle.Unpickler):
    """Lists of numbers and nothing else: a pickle can name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a list of ids needs no {module}.{name}")


def read_ids(raw: bytes) -> np.ndarray:
    """The ids (N,) of one published file."""
    return np.array(_Numbers(io.BytesIO(raw)).load(), dtype=np.int64)


def best_order(bits: np.ndarray) -> list[int]:
    """The part of the images for each part of the ids, such that the bits (ids' part, images' part) add up to most."""
    found = max(permutations(range(len(bits))), key=lambda order: sum(bits[i, j] for i, j in enumerate(order)))
    return list(found)


def rows(source: ImageData, train: np.ndarray, test: np.ndarray) -> Iterator[Row]:
    """Shares; counts of id and class for every pair of parts of training ids and training labels; audits."""
    classes, k = len(source.classes), int(max(train.max(), test.max())) + 1
    labels = source.train_labels
    yield {"type": "shares", "train": shares(train, k), "test": shares(test, k)}
    parts, of_labels = np.split(train, PARTS), np.split(labels, PARTS)
    counts = [[contingency(ids, y, k, classes) for y in of_labels] for ids in parts]
    order = best_order(np.array([[mutual_information(table) for table in line] for line in counts]))
    sorted_ids = np.concatenate([parts[order.index(j)] for j in range(PARTS)])
    yield {"type": "parts", "counts": [[table.tolist() for table in line] for line in counts], "order": order}
    yield {"type": "test", "counts": contingency(test, source.test_labels, k, classes).tolist()}
    x, x_test = patch_means(source.train_images), patch_means(source.test_images)
    for name, ids in (("as stored", train), ("parts in order", sorted_ids)):
        yield {"type": "audit", "ids": f"train, {name}", **audit(x[::2], ids[::2], x[1::2], ids[1::2])}
        yield {"type": "audit", "ids": f"across, {name}", **audit(x[::2], ids[::2], x_test, test)}
    yield {"type": "audit", "ids": "test", **audit(x_test[::2], test[::2], x_test[1::2], test[1::2])}


def main(
    repository: Annotated[str, typer.Option(metavar="FOLDER", help="a clone of the authors' repository")],
    out: Annotated[Path, typer.Option(parser=folder, metavar="FOLDER", help="of the record, one file a data set")],
    dataset: Annotated[str, typer.Option(help="cifar10, or another whose ids they publish")] = "cifar10",
) -> None:
    """Audit the published ids, and record what chapter 8 and the errata say of them."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ValueError(f"{repository} is no clone of {ADDRESS} with ids of {dataset} (git says: {said})")
        return done.stdout

    with explained():
        names = {split: name.format(dataset) for split, name in FILES.items()}
        commit = git("rev-parse", "HEAD").decode().strip()
        raw = {split: git("show", f"{commit}:{name}") for split, name in names.items()}
        source = data.load(dataset)
    files = {name: hashlib.sha256(raw[split]).hexdigest() for split, name in names.items()}
    header: Row = {"type": "header", "dataset": dataset, "repository": ADDRESS, "commit": commit, "files": files}
    header["provenance"] = provenance(torch.device("cpu"), source.checksum)
    lines = rounded([header, *rows(source, read_ids(raw["train"]), read_ids(raw["test"]))])
    write_lines(out / f"{dataset}.jsonl", lines)


if __name__ == "__main__":
    typer.run(main)
