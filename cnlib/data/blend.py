"""Several data sets as one, made in memory: images of one shape, and the set that each comes from as its domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from cnlib.data.images import ImageData

LOAD_ERRORS = (ConnectionError, ImportError, ValueError)
BLOCK = 2048


@lru_cache(maxsize=2)
def load_blend(name: str, root: Path, load: Callable[[str], ImageData]) -> ImageData:
    """The sets that `name` joins with "+", one after the other; domain i is the i-th of them.

    Images are enlarged to the largest height and width (bilinear), and one channel is repeated where others have more.
    Sets whose class names are equal share their labels; otherwise the labels of a set come after those before it, and
    a class name that two sets use for different labels is prefixed with its set's. Domains that a part has of its own
    give way to the part. `root`: where `load` looks, so that another folder is another blend.
    Raises ValueError where a set is named twice or images cannot be brought to one shape, and what `load` raises.
    """
    names = tuple(name.split("+"))
    if len(set(names)) != len(names):
        raise ValueError(f"{name}: expected different data sets, each once")
    parts = [_load(name, part, load) for part in names]
    shape = _common_shape(name, parts)
    offsets, classes = _labels(parts)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        images = [getattr(part, f"{split}_images") for part in parts]
        labels = [getattr(part, f"{split}_labels") + offsets[part.classes] for part in parts]
        arrays[f"{split}_images"] = _joined(images, shape)
        arrays[f"{split}_labels"] = np.concatenate(labels)
        arrays[f"{split}_domains"] = np.repeat(np.arange(len(parts), dtype=np.int64), [len(x) for x in images])
    return ImageData(name=name, classes=classes, domains=names, **arrays)


def _load(name: str, part: str, load: Callable[[str], ImageData]) -> ImageData:
    try:
        return load(part)
    except LOAD_ERRORS as error:
        kind = next(kind for kind in LOAD_ERRORS if isinstance(error, kind))
        raise kind(f"{name}: {part!r} of it could not be loaded: {error}") from error


def _common_shape(name: str, parts: list[ImageData]) -> tuple[int, int, int]:
    heights, widths, channels = zip(*(part.train_images.shape[1:] for part in parts), strict=True)
    if len(set(channels) - {1}) > 1:
        each = ", ".join(f"{part.name} {count}" for part, count in zip(parts, channels, strict=True))
        raise ValueError(f"{name}: numbers of channels are {each}, expected one number, or 1 beside it")
    return max(heights), max(widths), max(channels)


def _labels(parts: list[ImageData]) -> tuple[dict[tuple[str, ...], int], tuple[str, ...]]:
    """The first label of each list of class names, and the names of all labels."""
    lists = {part.classes: part.name for part in reversed(parts)}
    offsets: dict[tuple[str, ...], int] = {}
    uses = Counter(label for classes in lists for label in set(classes))
    names: list[str] = []
    for part in parts:
        if part.classes not in offsets:
            offsets[part.classes] = len(names)
            names += [f"{lists[part.classes]} {label}" if uses[label] > 1 else label for label in part.classes]
    return offsets, tuple(names)


def _joined(parts: list[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """All images one after the other in one array; a block at a time, so that no part is held as floats."""
    joined = np.empty((sum(map(len, parts)), *shape), dtype=np.uint8)
    end = 0
    for images in parts:
        start, end = end, end + len(images)
        for first in range(0, len(images), BLOCK):
            block = images[first : first + BLOCK]
            joined[start + first : start + first + len(block)] = enlarged(block, shape[:2])
    return joined


def enlarged(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (N, H, W, C) uint8 at another height and width: bilinear between pixel centers, rounded."""
    if images.shape[1:3] == size:
        return images
    import torch  # here: the rest of cnlib.data, and so the command line, loads in no time without it
    from torch.nn import functional as F

    x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)  # (N, C, H, W)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
