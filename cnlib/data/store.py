"""A data set on disk: its arrays in a folder, their checksums, and errors that say what a folder lacks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnlib.data.images import ARRAYS, DOMAINS, ImageData

# the format of sha256sum: `sha256sum --check SHA256SUMS` works too
SUMS = "SHA256SUMS"


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
    class names come from classes.json there, else from `classes`, else they are the numbers. Domains are read where
    there are any; their names come from domains.json, else they are the numbers."""
    keys = ARRAYS + (DOMAINS if any((folder / f"{key}.npy").is_file() for key in DOMAINS) else ())
    missing = [f"{key}.npy" for key in keys if not (folder / f"{key}.npy").is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: complete it, or remove the folder to have {name} fetched anew"
        )
    arrays = {key: _read_array(folder / f"{key}.npy") for key in keys}
    if shape is not None and arrays["train_images"].shape[1:] != shape:
        raise ValueError(f"{folder}: images are {arrays['train_images'].shape[1:]}, expected {shape} for {name}")
    classes = _read_names(folder / "classes.json") or tuple(classes)
    classes = classes or _numbers(arrays["train_labels"], arrays["test_labels"], count)
    domains: tuple[str, ...] = ()
    if len(keys) > len(ARRAYS):
        domains = _read_names(folder / "domains.json") or _numbers(arrays["train_domains"], arrays["test_domains"])
    return ImageData(name=name, classes=classes, domains=domains, **arrays)


def _read_array(path: Path) -> np.ndarray:
    """Images memory-mapped, anything else as int64."""
    images = path.stem.endswith("images")
    try:
        array = np.load(path, mmap_mode="r" if images else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove its folder and load again, or put a whole file there"
        ) from error
    if not images and array.dtype.kind not in "iu":
        raise ValueError(f"{path} holds {array.dtype}, expected integers")
    return array if images else array.astype(np.int64)


def _read_names(path: Path) -> tuple[str, ...]:
    """The names in a JSON file; none where there is no file."""
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): expected a list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} holds {str(names)[:80]}: expected a list of names")
    return tuple(names)


def _numbers(train: np.ndarray, test: np.ndarray, count: int | None = None) -> tuple[str, ...]:
    highest = max((int(ids.max()) for ids in (train, test) if ids.size), default=-1)
    return tuple(map(str, range(count or highest + 1)))


def write_folder(
    folder: Path, arrays: Mapping[str, np.ndarray], classes: Sequence[str], domains: Sequence[str] = ()
) -> None:
    """Write a data set with its checksums: into a folder beside, moved into place when it is whole.

    `arrays`: train_images, train_labels, test_images, test_labels, and with `domains` train_domains and test_domains.
    """
    # raises before anything is written
    ImageData(name=folder.name, classes=tuple(classes), domains=tuple(domains), **arrays)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = [f"{key}.npy" for key in ARRAYS + DOMAINS if arrays.get(key) is not None]
        for file in files:
            np.save(temporary / file, arrays[file.removesuffix(".npy")], allow_pickle=False)
        (temporary / "classes.json").write_text(json.dumps(list(classes)), encoding="utf-8")
        if domains:
            (temporary / "domains.json").write_text(json.dumps(list(domains)), encoding="utf-8")
            files.append("domains.json")
        sums = "".join(f"{_sha256(temporary / file)}  {file}\n" for file in files)
        (temporary / SUMS).write_text(sums, encoding="ascii")
        try:
            os.replace(temporary, folder)
        except OSError:
            if not (folder / SUMS).is_file():
                raise
            # another process fetched the same data set meanwhile; its folder is as good as ours
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify_folder(folder: Path, name: str) -> dict[str, str]:
    """Compare the files in `folder` with the checksums written beside them; see `cnlib.data.verify`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: fetch {name} first, or put its four arrays there")
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(
            f"{folder / SUMS} does not exist: nothing to compare {name} with. To write it for files you trust: "
            f"cd {folder} && sha256sum *.npy > {SUMS}"
        )
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        # "*": from sha256sum --binary
        if not (match := re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)):
            raise ValueError(f"{folder / SUMS}: {line!r} is not a line of sha256sum; write the file anew with it")
        sums[match[2]] = match[1]
    files = [f"{key}.npy" for key in ARRAYS] + [f"{key}.npy" for key in DOMAINS if (folder / f"{key}.npy").exists()]
    if missing := [file for file in files if file not in sums]:
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
