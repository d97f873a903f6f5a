"""JSON Lines that are never silently wrong: whole or refused, by file and line, with a checksum as the last line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnlib.storage import write_atomic

Line = dict[str, Any]
FORMAT = 2  # of a header that says none: 1, without a checksum
CHECKSUM_MARKS = (b'"checksum"', b'"sha256"')
WAY_OUT = "restore or remove the record"


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """The lines, the first with the format's number, and the checksum of them all."""
    header, *rest = lines
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [header | {"format": FORMAT}, *rest])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(text.encode() + checksum_line(text.encode())))


def checksum_line(content: bytes) -> bytes:
    """The last line of a record: the SHA-256 of all bytes before it."""
    return json.dumps({"type": "checksum", "sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


def read_lines(path: Path) -> list[Line]:
    """The lines of a record, without its checksum. A truncated last line (a copy that was cut short) of an unfinished
    one is left out; any other damage raises ValueError."""
    content = path.read_bytes()
    start = content.rfind(b"\n", 0, -1) + 1
    body, last = content[:start], content[start:]
    expected = checksum_line(body)
    # two marks: one flipped bit leaves one of them
    damaged = any(mark in last for mark in CHECKSUM_MARKS) and not expected.startswith(last)
    verified = last == expected
    *rows, rest = (body if verified or damaged else content).split(b"\n")
    lines: list[Line] = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(_line(row, lines))
        except _Misplaced as error:
            raise ValueError(f"{path}: not a record of a run (line {number} {error}): {WAY_OUT}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {WAY_OUT}") from error
    if damaged:  # in a line that can still be read, or in the checksum itself
        raise ValueError(
            f"{path} is damaged: its checksum is not that of its lines; each of the {len(lines)} can be read, so that "
            f"the changed one is not known: {WAY_OUT}"
        )
    after_final = bool(rest and lines and lines[-1]["type"] == "final")
    if rest and not expected.startswith(last):
        with suppress(ValueError, RecursionError):  # whole but for its end
            lines.append(_line(rest, lines))
    missing = bool(lines) and lines[-1]["type"] == "final" and lines[0].get("format", 1) > 1 and not verified
    if after_final or missing:
        raise ValueError(f"{path} is cut short or damaged after line {len(lines)}: its checksum is missing: {WAY_OUT}")
    return lines


class _Misplaced(ValueError):
    """A line that is JSON, and cannot stand where it does."""


def _line(row: bytes, before: list[Line]) -> Line:
    line = strict_json(row.decode())
    if not isinstance(line, dict) or not isinstance(line.get("type"), str):
        raise _Misplaced("is no object with a type")
    if not before and line["type"] != "header":
        raise _Misplaced("does not start with a header line, as a record does")
    if not before and (type(number := line.get("format", 1)) is not int or not 1 <= number <= FORMAT):
        raise _Misplaced(f"is of format {number!r}, this version reads 1 to {FORMAT}")
    if before and line["type"] in ("header", "checksum"):
        raise _Misplaced(f"is a second {line['type']}, are these two records in one?")
    if before and before[-1]["type"] == "final":
        raise _Misplaced("follows the final line")
    return line


def strict_json(text: str) -> Any:
    """json.loads, with ValueError for NaN, Infinity, numbers beyond float64 and keys given twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no finite number")
        return value

    return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
