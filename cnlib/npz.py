"""Named arrays and a JSON header in one .npz file: atomic to write, nothing executable to read (no pickle)."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cnlib.files import write_atomic


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
