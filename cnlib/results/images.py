"""What is recorded of images, made by `studies`: the analysis of their mixtures (chapter 8), colors (chapter 10)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnlib.records import RECORDS
from cnlib.results.runs import names_in
from cnlib.storage import read_npz
from cnlib.training.records import read_columns, read_lines

MIXTURES = RECORDS / "mixtures"
COLORS = RECORDS / "colors"
STEP = 0.005  # of kept colors, in gray levels of 0 to 255: at most 51,000 of them, in 16 bits


@dataclass(frozen=True)
class MixtureRecord:
    """header: data set, classes, sizes, provenance. rows: what was measured, by type ("portrait", "fit", "order",
    "fault", "explained"). pictures: uint8 means (K, H, W, C) and deviations (K, H, W) of the components, by name."""

    header: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]
    pictures: dict[str, np.ndarray]

    def select(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Rows of one type that have these values, in order. Raises ValueError where there are none."""
        found = [row for row in self.rows.get(kind, []) if all(row[name] == value for name, value in fields.items())]
        if not found:
            raise ValueError(f"no {kind!r} row with {fields}: types are {', '.join(self.rows)}")
        return found


def mixture_record(dataset: str, folder: Path | None = None) -> MixtureRecord:
    """The record of a data set in the package, or in a folder of your own. Raises ValueError where there is none, or
    where its two files come from different data."""
    folder = folder or MIXTURES
    path = folder / f"{dataset}.jsonl"
    if not path.is_file():
        raise ValueError(f"no mixtures of {dataset!r} in {folder}: there are {names_in(folder)}")
    header, *lines = read_lines(path)
    about, pictures = read_npz(path.with_suffix(".npz"), "mixtures")
    if about["data"] != header["provenance"]["data"]:
        raise ValueError(f"{path} and its .npz file describe different data: record both again")
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(line.pop("type"), []).append(line)
    return MixtureRecord(header, rows, pictures)


class Colors(NamedTuple):
    """mean, std: of each image and channel over its positions, (N, C), with pixels in [0, 1]; labels: (N,)."""

    mean: np.ndarray
    std: np.ndarray
    labels: np.ndarray


def colors(dataset: str) -> Colors:
    """Of all test images of a data set in the package, in its order. Raises ValueError for another.

    A layer (x - mu) / sigma on the image turns mean m and standard deviation s of an image into (m - mu) / sigma and
    s / sigma, channel by channel: what it writes into colors follows from these.
    """
    path = COLORS / f"{dataset}.jsonl"
    if not path.is_file():
        known = names_in(COLORS)
        raise ValueError(f"no colors of {dataset!r} in the package: there are {known}; `python -m studies.colors` adds")
    found = read_columns(path, Colors._fields)[1]
    labels = found["labels"]
    mean, std = (STEP / 255 * found[key].reshape(len(labels), -1) for key in ("mean", "std"))
    return Colors(mean, std, labels)
