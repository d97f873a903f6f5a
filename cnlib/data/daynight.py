"""Places by day and by night: webcams of AMOS, read from a folder, and pieces of two photographs, made in memory.

Labels are the places, domains the time: 0 day, 1 night. A network that compares places has to be tested on places that
it has not seen, so `split_by_class` splits such a set anew.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cnlib.data.images import ImageData
from cnlib.data.store import read_array

TIMES = ("day", "night")
AMOS = "daynight_amos"  # the folder beside the converted one
AMOS_SHAPE = (96, 128, 3)
CAMERAS = 17
FILES = tuple(f"{part}_{what}.npy" for part in ("train", "test") for what in ("images", "labels", "cameras"))


def amos(name: str, folder: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """240 + 160 pictures of 17 webcams, at half their size (the mean of two by two pixels): 48 by 64.

    Labels are the cameras. These are not part of AMOS's selection: they were found by clustering edge orientations, and
    checked by eye. Two cameras lack one of the times.
    Source: Jacobs, Roman, Pless, "Consistent Temporal Variations in Many Outdoor Scenes", CVPR 2007 (the Archive of
    Many Outdoor Scenes, AMOS). Images of public webcams, without a licence that we know of, and this selection of 400
    has no official download. So nothing is fetched: it is read from a folder beside. Raises FileNotFoundError that says
    what has to be in it, ValueError for arrays that are not of this set.
    """
    place = folder.parent / AMOS
    if missing := [file for file in FILES if not (place / file).is_file()]:
        raise FileNotFoundError(
            f"{name} has no official download, and {place} lacks {', '.join(missing)}. Put them there (CNLIB_DATA "
            "names its parent): 240 + 160 images of AMOS webcams, uint8 (N, 96, 128, 3), labels (N,) 0 day and 1 "
            "night, cameras (N,) 0 to 16. Without them take the data set photo-places: "
            "`cnlib sweep day-for-night --profile book`"
        )
    arrays = {}
    for part in ("train", "test"):
        images, labels, cameras = (read_array(place / f"{part}_{what}.npy") for what in ("images", "labels", "cameras"))
        if images.shape[1:] != AMOS_SHAPE:
            expected = f"uint8 (N, {', '.join(map(str, AMOS_SHAPE))})"
            raise ValueError(f"{place / f'{part}_images.npy'} is {images.dtype} {images.shape}, expected {expected}")
        arrays[f"{part}_images"] = reduced(images, 2)
        arrays[f"{part}_labels"], arrays[f"{part}_domains"] = cameras, labels
    return arrays, tuple(f"camera {i}" for i in range(CAMERAS))


def reduced(images: np.ndarray, factor: int) -> np.ndarray:
    """Images (N, H, W, C) uint8 at a whole fraction of their size: means of squares of pixels, rounded."""
    n, height, width, channels = images.shape
    squares = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)


WINDOW, MARGIN, SHRINK, COPIES = (96, 128), 12, 4, 8
NIGHT_GAIN = (1.25, 0.9, 0.65)  # red, green, blue: night is redder, as under sodium lamps


@lru_cache(maxsize=1)
def photo_places() -> ImageData:
    """32 pieces of the two photographs that ship with scikit-learn, each 8 times "by day" and 8 times "by night".

    Each is cut out of a window of its own, a little elsewhere each time, at a quarter of the size: 24 by 32. Day is a
    factor on all channels, night a smaller one, more red than blue, and noise. The places are real, the night is made.
    Source: `sklearn.datasets.load_sample_images`, china.jpg and flower.jpg.
    """
    try:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise ImportError(
            f"photo-places is made of photographs that ship with scikit-learn, which, or Pillow, is not installed "
            f"({error}): install scikit-learn and pillow"
        ) from error
    rng, (height, width) = np.random.default_rng(0), WINDOW
    found: list[np.ndarray] = []
    for photo in photos:
        for top in range(MARGIN, photo.shape[0] - height - MARGIN + 1, height):
            for left in range(MARGIN, photo.shape[1] - width - MARGIN + 1, width):
                moved = rng.integers(-MARGIN, MARGIN + 1, (2 * COPIES, 2)) + (top, left)
                found += [photo[y : y + height, x : x + width] for y, x in moved]
    pixels = reduced(np.stack(found), SHRINK).astype(float)
    places = len(found) // (2 * COPIES)
    night = np.tile(np.repeat([False, True], COPIES), places)
    gain = np.where(night[:, None], rng.uniform(0.35, 0.6, (len(night), 1)) * NIGHT_GAIN, 1.0)
    gain = np.where(night[:, None], gain, rng.uniform(0.8, 1.1, (len(night), 1)))
    noise = rng.normal(0, 4, pixels.shape) * night[:, None, None, None]
    images = np.clip(np.rint(pixels * gain[:, None, None] + noise), 0, 255).astype(np.uint8)
    labels, domains = np.repeat(np.arange(places), 2 * COPIES), night.astype(np.int64)
    test = np.arange(len(labels)) % 4 == 3
    parts = (images[~test], labels[~test], images[test], labels[test])
    names = tuple(f"place {i}" for i in range(places))
    return ImageData("photo-places", *parts, names, domains[~test], domains[test], TIMES)


def split_by_class(data: ImageData, held_out: int, seed: int) -> ImageData:
    """All images, split anew: `held_out` classes, drawn by the seed, are tested, the others trained on.

    Classes that lack a domain are left out. Raises ValueError where there are no domains, or too few classes.
    """
    if data.train_domains is None or data.test_domains is None:
        raise ValueError(f"{data.name} has no domains: expected a set such as daynight or photo-places")
    images, labels, domains = (
        np.concatenate([getattr(data, f"{part}_{what}") for part in ("train", "test")])
        for what in ("images", "labels", "domains")
    )
    seen = [set(domains[labels == k]) for k in range(len(data.classes))]
    whole = [k for k, there in enumerate(seen) if len(there) == len(data.domains)]
    if not 2 <= held_out <= len(whole) - 2:
        raise ValueError(
            f"held_out={held_out}: {data.name} has {len(whole)} classes with images of all domains, expected two at "
            "least to test and two to train on"
        )
    tested = np.random.default_rng(seed).permutation(whole)[:held_out]
    arrays: dict[str, Any] = {}
    for part, classes in (("train", np.setdiff1d(whole, tested)), ("test", tested)):
        kept = np.isin(labels, classes)
        arrays |= {f"{part}_images": images[kept], f"{part}_labels": labels[kept], f"{part}_domains": domains[kept]}
    return replace(data, **arrays)
