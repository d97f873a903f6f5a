"""A data set in memory: images, labels and, where there are several, the domain of each image; checked when made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
DOMAINS = ("train_domains", "test_domains")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images (N, H, W, C) uint8 and labels (N,) int64, split into train and test; `classes` names the labels.

    Where the images come from several places, `train_domains` and `test_domains` (N,) int64 say from which, and
    `domains` names these. Raises ValueError for arrays that do not fit together.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    train_domains: np.ndarray | None = None
    test_domains: np.ndarray | None = None
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            _check_images(self.name, split, images)
            _check_ids(self.name, f"{split} labels", labels, len(images), len(self.classes))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: train images are {self.train_images.shape[1:]} and test images "
                f"{self.test_images.shape[1:]}, expected one shape (H, W, C)"
            )
        self._check_domains()

    def _check_domains(self) -> None:
        there = [key for key in DOMAINS if getattr(self, key) is not None]
        if len(there) == 1:
            (other,) = set(DOMAINS) - set(there)
            raise ValueError(f"{self.name}: {there[0]} without {other}, expected both or neither")
        if bool(there) != bool(self.domains):
            have, lack = ("domains", "their names") if there else ("names of domains", "train_domains and test_domains")
            raise ValueError(f"{self.name}: {have} without {lack}, expected both or neither")
        if len(set(self.domains)) != len(self.domains):
            raise ValueError(f"{self.name}: domains are {self.domains}, expected different names")
        for key in there:
            count = len(getattr(self, key.replace("domains", "images")))
            _check_ids(self.name, key.replace("_", " "), getattr(self, key), count, len(self.domains))

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of the sha256 over shapes and contents of the arrays, domains included where there are
        any."""
        digest = hashlib.sha256()
        for key in ARRAYS + DOMAINS:
            array = getattr(self, key)
            if array is None:
                continue
            digest.update(f"{key} {array.shape} {array.dtype.str}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def subset(self, train_size: int | None = None, test_size: int | None = None) -> ImageData:
        """The first images of each class, in the proportions of the whole, in the order of the whole; None keeps all.

        Domains keep their proportions too, to within one image, and so do the classes within each.
        No randomness: a larger subset contains the smaller one, and every seed of a run sees the same images.
        """
        kept = {"train": train_size, "test": test_size}
        arrays = {}
        for split, size in kept.items():
            labels, domains = getattr(self, f"{split}_labels"), getattr(self, f"{split}_domains")
            where = _stratified(labels, domains, size, f"{self.name}: {split}_size")
            for key in (f"{split}_images", f"{split}_labels", f"{split}_domains"):
                if getattr(self, key) is not None:
                    arrays[key] = getattr(self, key)[where]
        return replace(self, **arrays)


def _stratified(labels: np.ndarray, domains: np.ndarray | None, size: int | None, what: str) -> np.ndarray | slice:
    if size is None:
        return slice(None)
    if not 0 < size <= len(labels):
        raise ValueError(f"{what}={size}: expected 1 to {len(labels)}, or None for all")
    position = _positions(labels if domains is None else domains * (labels.max() + 1) + labels)
    if domains is not None:
        # In the order of these positions within each domain, and not across domains: a subset smaller than one image a
        # pair of domain and label would be of the domain with the larger classes alone.
        in_turn = np.argsort(position, kind="stable")
        position[in_turn] = _positions(domains[in_turn])
    return np.sort(np.argsort(position, kind="stable")[:size])


def _positions(groups: np.ndarray) -> np.ndarray:
    """How far through its group each element lies, in (0, 1): the elements below a bound are that share of each."""
    position = np.empty(len(groups))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return position


def _check_images(name: str, split: str, images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"{name}: {split} images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)")


def _check_ids(name: str, what: str, ids: np.ndarray, num_images: int, num_ids: int) -> None:
    """`what` is "train labels" or the like."""
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise ValueError(f"{name}: {what} are {ids.dtype} {ids.shape}, expected int64 (N,)")
    if num_images != len(ids) or not num_images:
        split, kind = what.split()
        raise ValueError(
            f"{name}: {num_images} {split} images and {len(ids)} {kind}, expected equal numbers, at least 1"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_ids:
        raise ValueError(f"{name}: {what} run from {low} to {high}, expected 0 to {num_ids - 1}")
