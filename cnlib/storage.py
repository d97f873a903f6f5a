"""Files that are never half written; .npz files of named arrays and a JSON header, with nothing executable in them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(file) on a temporary file beside `path`, and move it into place when all of it is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write the file atomically: a reader sees the old file or the whole new one."""
    header_array = np.array(json.dumps(header))
    write_atomic(Path(path), lambda file: np.savez(file, allow_pickle=False, header=header_array, **arrays))


def read_npz(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file whose header says it is of this `kind`; ValueError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is not a {kind} file written by cnlib: {error}") from error
    if header.get("kind") != kind:
        raise ValueError(f"{os.fspath(path)} holds {header.get('kind')!r}, expected {kind!r}")
    return header, arrays
