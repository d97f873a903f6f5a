"""A data set on disk: four arrays in a folder, their checksums, and the checks that make a bad one fail early."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
SUMS = "SHA256SUMS"  # the format of sha256sum: `sha256sum --check SHA256SUMS` works too


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images (N, H, W, C) uint8 and labels (N,) int64, split into train and test; `classes` names the labels."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            _check_split(
                self.name, split, getattr(self, f"{split}_images"), getattr(self, f"{split}_labels"), len(self.classes)
            )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: train images are {self.train_images.shape[1:]} and test images "
                f"{self.test_images.shape[1:]}, expected one shape (H, W, C)"
            )

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of the sha256 over shapes and contents of the four arrays."""
        digest = hashlib.sha256()
        for key in ARRAYS:
            array = getattr(self, key)
            digest.update(f"{key} {array.shape} {array.dtype.str}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def subset(self, train_size: int | None = None, test_size: int | None = None) -> ImageData:
        """The first images of each class, in the proportions of the whole, in the order of the whole; None keeps all.

        No randomness: a larger subset contains the smaller one, and every seed of a run sees the same images.
        """
        train = _stratified(self.train_labels, train_size, f"{self.name}: train_size")
        test = _stratified(self.test_labels, test_size, f"{self.name}: test_size")
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
        )


def _stratified(labels: np.ndarray, size: int | None, what: str) -> np.ndarray | slice:
    if size is None:
        return slice(None)
    if not 0 < size <= len(labels):
        raise ValueError(f"{what}={size}: expected 1 to {len(labels)}, or None for all")
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(position, kind="stable")[:size])


def _check_split(name: str, split: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"{name}: {split} images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)")
    if labels.ndim != 1 or labels.dtype != np.int64:
        raise ValueError(f"{name}: {split} labels are {labels.dtype} {labels.shape}, expected int64 (N,)")
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{name}: {len(images)} {split} images and {len(labels)} labels, expected equal numbers, at least 1"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name}: {split} labels run from {low} to {high}, expected 0 to {num_classes - 1}")


def root() -> Path:
    """Where data sets live: ``$CNLIB_DATA``, else ``cnlib/data`` in the user's cache folder."""
    if chosen := os.environ.get("CNLIB_DATA"):
        if (folder := Path(chosen).expanduser()).exists() and not folder.is_dir():
            raise ValueError(f"CNLIB_DATA is {chosen}, a file: expected a folder, which need not exist yet")
        return folder
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cnlib" / "data"


def folder_of(name: str) -> Path:
    """The folder of data set `name` under `root()`. Raises ValueError for what is no plain folder name."""
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"data set name {name!r}: expected a plain folder name")
    return root() / name


def read_folder(
    folder: Path,
    name: str,
    classes: Sequence[str] = (),
    shape: tuple[int, int, int] | None = None,
    count: int | None = None,
) -> ImageData:
    """The data set in `folder`. `shape` (H, W, C) and `count` of classes are checked where they are known;
    class names come from classes.json there, else from `classes`, else they are the numbers."""
    missing = [f"{key}.npy" for key in ARRAYS if not (folder / f"{key}.npy").is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: complete it, or remove the folder to have {name} fetched anew"
        )
    arrays = {key: _read_array(folder / f"{key}.npy", mapped=key.endswith("images")) for key in ARRAYS}
    for key in ("train_labels", "test_labels"):
        if arrays[key].dtype.kind not in "iu":
            raise ValueError(f"{folder / key}.npy holds {arrays[key].dtype}, expected integers")
        arrays[key] = arrays[key].astype(np.int64)
    if shape is not None and arrays["train_images"].shape[1:] != shape:
        raise ValueError(f"{folder}: images are {arrays['train_images'].shape[1:]}, expected {shape} for {name}")
    if (folder / "classes.json").is_file():
        classes = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    highest = max((int(arrays[key].max()) for key in ("train_labels", "test_labels") if arrays[key].size), default=-1)
    classes = tuple(classes) or tuple(map(str, range(count or highest + 1)))
    return ImageData(name=name, classes=classes, **arrays)


def _read_array(path: Path, mapped: bool) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove its folder and load again, or put a whole file there"
        ) from error


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Write a data set with its checksums: into a folder beside, moved into place when it is whole."""
    ImageData(name=folder.name, classes=tuple(classes), **arrays)  # raises before anything is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for key in ARRAYS:
            np.save(temporary / f"{key}.npy", arrays[key], allow_pickle=False)
        (temporary / "classes.json").write_text(json.dumps(list(classes)), encoding="utf-8")
        sums = "".join(f"{_sha256(temporary / f'{key}.npy')}  {key}.npy\n" for key in ARRAYS)
        (temporary / SUMS).write_text(sums, encoding="ascii")
        try:
            os.replace(temporary, folder)
        except OSError:
            if not (folder / SUMS).is_file():
                raise
            # another process fetched the same data set meanwhile; its folder is as good as ours
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(name: str) -> dict[str, str]:
    """Compare the files of data set `name` with the checksums written when they were converted.

    Returns {file: sha256}. Raises ValueError naming the files that differ or the line that is no checksum,
    FileNotFoundError without a folder or a checksum file.
    """
    folder = folder_of(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: fetch {name} first, or put its four arrays there")
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(
            f"{folder / SUMS} does not exist: nothing to compare {name} with. To write it for files you trust: "
            f"cd {folder} && sha256sum *.npy > {SUMS}"
        )
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        if not (match := re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)):  # "*": from sha256sum --binary
            raise ValueError(f"{folder / SUMS}: {line!r} is not a line of sha256sum; write the file anew with it")
        sums[match[2]] = match[1]
    if missing := [f"{key}.npy" for key in ARRAYS if f"{key}.npy" not in sums]:
        raise ValueError(f"{folder / SUMS} has no checksum of {', '.join(missing)}: write it anew with sha256sum *.npy")
    bad = [file for file, digest in sums.items() if not (folder / file).is_file() or _sha256(folder / file) != digest]
    if bad:
        raise ValueError(
            f"{folder}: {', '.join(bad)} changed since conversion: remove the folder and load {name} again"
        )
    return sums


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
