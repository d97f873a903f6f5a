"""Files that are never half written; .npz files of named arrays and a JSON header, with nothing executable in them."""

import errno
import json
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(file) on a temporary file beside `path`, and move it into place when all of it is on disk.

    Its name cannot be guessed, and no link is followed. Raises OSError that names `path`, whose old content is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags | NOFOLLOW, 0o666)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = (
            f"cannot be written ({error.strerror or error}), what was there is kept: free space or choose another place"
        )
        raise OSError(error.errno or errno.EIO, reason, os.fspath(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_temporary(path: Path) -> None:
    """Remove what `write_atomic` left of `path` in processes that ended under way; only for who alone writes `path`."""
    mine = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.[0-9a-f]+)?\.tmp")
    for other in path.parent.iterdir():
        if (match := mine.fullmatch(other.name)) and not _is_alive(int(match[1])):
            with suppress(OSError):
                other.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether it is another process that runs: in containers the number of a dead one is often one's own."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return process != os.getpid()


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
