"""A data set on disk: its arrays in a folder, their checksums, and errors that say what a folder lacks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cnlib.data.images import ARRAYS, DOMAINS, ImageData

# the format of sha256sum: `sha256sum --check SHA256SUMS` works too
SUMS = "SHA256SUMS"
LONGEST_NAME = 200  # bytes: file systems take 255, and temporary files have longer names


def root() -> Path:
    """Where data sets live: ``$CNLIB_DATA``, else ``cnlib/data`` in the user's cache folder.

    Raises ValueError where that is a file, or unknown because the user has no home directory.
    """
    chosen = os.environ.get("CNLIB_DATA")
    try:
        folder = Path(chosen).expanduser() if chosen else _cache() / "cnlib" / "data"
        there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
        if there.exists() and not there.is_dir():
            what = "a file" if there == folder else "below a file"
            raise ValueError(f"{_called(folder)}, {what}: expected a folder, which need not exist yet")
    except RuntimeError as error:  # what pathlib raises
        place = f"CNLIB_DATA is {chosen}, and" if chosen else "data sets have no place:"
        raise ValueError(f"{place} this user has no home directory: set CNLIB_DATA to a folder") from error
    except OSError as error:
        raise ValueError(f"{_called(folder)}, which cannot be read ({error}): set CNLIB_DATA to a folder") from error
    return folder


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _called(folder: Path) -> str:
    return f"{'CNLIB_DATA' if os.environ.get('CNLIB_DATA') else 'the folder of the data sets'} is {folder}"


def folder_of(name: str) -> Path:
    """The folder of data set `name` under `root()`. Raises ValueError for what is no plain folder name."""
    plain = name.isprintable() and len(os.fsencode(name)) <= LONGEST_NAME
    if not plain or not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"data set name {name[:80]!r}: expected a plain folder name")
    return root() / name


def check_writable(folder: Path, name: str) -> None:
    """Raise OSError where data set `name` could not be written into `folder`: before it is downloaded."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=folder.parent):
            pass
    except OSError as error:
        raise OSError(
            f"{_called(folder.parent)}, where {name} cannot be written ({error}): "
            "set CNLIB_DATA to a folder that can be written, or put the data set there by hand"
        ) from error


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
    arrays = {key: read_array(folder / f"{key}.npy") for key in keys}
    _check_sums(folder, name, [f"{key}.npy" for key in keys if not key.endswith("images")])
    if shape is not None and arrays["train_images"].shape[1:] != shape:
        raise ValueError(f"{folder}: images are {arrays['train_images'].shape[1:]}, expected {shape} for {name}")
    classes = _read_names(folder / "classes.json") or tuple(classes)
    if classes and count and len(classes) != count:
        raise ValueError(f"{folder / 'classes.json'} has {len(classes)} names, expected {count} for {name}")
    domains = _read_names(folder / "domains.json") if len(keys) > len(ARRAYS) else ()
    names = {"labels": classes or _numbers(arrays, "labels", count), "domains": domains or _numbers(arrays, "domains")}
    for key in keys:
        _check_range(folder / f"{key}.npy", arrays[key], len(names.get(key.split("_")[1], ())))
    try:
        return ImageData(name=name, classes=names["labels"], domains=names["domains"], **arrays)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_array(path: Path) -> np.ndarray:
    """Images memory-mapped, anything else as int64. The file's size has to be what its header says."""
    images = path.stem.endswith("images")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        start = array.offset
        if (size := path.stat().st_size) != start + array.nbytes:
            raise ValueError(f"{size} bytes, and its header says {start + array.nbytes}")
    except Exception as error:  # a damaged header is evaluated: it can raise anything
        raise ValueError(
            f"{path} is damaged ({error}): remove its folder and load again, or put a whole file there"
        ) from error
    kind, shape = ("uint8", "(N, H, W, C)") if images else ("integers", "(N,)")
    if (array.dtype != np.uint8) if images else (array.dtype.kind not in "iu"):
        raise ValueError(f"{path} holds {array.dtype}, expected {kind}")
    if array.ndim != (4 if images else 1):
        raise ValueError(f"{path} has shape {array.shape}, expected {shape}")
    return array if images else array.astype(np.int64)


def _check_range(path: Path, ids: np.ndarray, count: int) -> None:
    """Labels and domains are in [0, count)."""
    if not path.stem.endswith("images") and ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise ValueError(
            f"{path}: numbers run from {ids.min()} to {ids.max()}, expected 0 to {count - 1}: "
            "put the right file there, or remove the folder to have it fetched anew"
        )


def _read_names(path: Path) -> tuple[str, ...]:
    """The names in a JSON file; none where there is no file."""
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(names, ensure_ascii=False).encode()  # half a character cannot be printed
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): expected a list of names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} holds {str(names)[:80]}: expected a list of names")
    return tuple(names)


def _numbers(arrays: Mapping[str, np.ndarray], what: str, count: int | None = None) -> tuple[str, ...]:
    """The numbers as names: up to the highest, which is below the number of images unless it is damaged."""
    parts = [array for key, array in arrays.items() if key.endswith(what) and array.size]
    highest = max((int(ids.max()) for ids in parts), default=-1)
    return tuple(map(str, range(count or min(highest + 1, sum(map(len, parts))))))


def write_folder(
    folder: Path, arrays: Mapping[str, np.ndarray], classes: Sequence[str], domains: Sequence[str] = ()
) -> None:
    """Write a data set with its checksums: into a folder beside, moved into place when it is whole.

    `arrays`: train_images, train_labels, test_images, test_labels, and with `domains` train_domains and test_domains.
    Raises FileExistsError where the folder holds something else: nothing is overwritten.
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
        except OSError as error:
            if not folder.is_dir():
                raise
            # where another process fetched the same data set meanwhile, its folder is as good as ours
            if _read_sums(folder) != _read_sums(temporary):
                raise FileExistsError(
                    f"{folder} is there already and holds something else: remove it, or write to another folder"
                ) from error
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
    sums = _read_sums(folder)
    files = [f"{key}.npy" for key in ARRAYS] + [f"{key}.npy" for key in DOMAINS if (folder / f"{key}.npy").exists()]
    if missing := [file for file in files if file not in sums]:
        raise ValueError(f"{folder / SUMS} has no checksum of {', '.join(missing)}: write it anew with sha256sum *.npy")
    _check_sums(folder, name, sums)
    return sums


def _read_sums(folder: Path) -> dict[str, str]:
    """{file: sha256} of the checksum file, none where there is no such file."""
    sums: dict[str, str] = {}
    if not (folder / SUMS).is_file():
        return sums
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        # "*": from sha256sum --binary
        if not (match := re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)):
            raise ValueError(f"{folder / SUMS}: {line!r} is not a line of sha256sum; write the file anew with it")
        sums[match[2]] = match[1]
    return sums


def _check_sums(folder: Path, name: str, files: Iterable[str]) -> None:
    """Raise ValueError where a file differs from its checksum, or is gone; those without one pass."""
    sums = _read_sums(folder)
    checked = [file for file in files if file in sums]
    bad = [file for file in checked if not (folder / file).is_file() or _sha256(folder / file) != sums[file]]
    if bad:
        raise ValueError(
            f"{folder}: {', '.join(bad)} changed since conversion: remove the folder and load {name} again"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
