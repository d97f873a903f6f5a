"""Named arrays and a JSON header in one .npz file: atomic to write, nothing executable to read (no pickle)."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_npz(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write to a temporary file beside `path` and move it there: a reader sees the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
