"""Recorded benchmarks: time and memory beside peers, as ``python -m studies --record`` writes them."""

from __future__ import annotations

from typing import Any

from cnlib.records import RECORDS
from cnlib.training.records import read_lines

BENCHMARKS = RECORDS / "benchmarks"
PARTS = ("layers", "mixture", "train", "cost")


def machines() -> dict[str, list[str]]:
    """{machine: recorded parts}, e.g. {"cpu-x86_64-2-threads": ["layers", ...]}."""
    found: dict[str, list[str]] = {}
    for path in sorted(BENCHMARKS.glob("*.jsonl")):
        machine, _, part = path.stem.rpartition("-")
        found.setdefault(machine, []).append(part)
    return found


def measured(part: str, machine: str = "cpu-x86_64-2-threads") -> list[dict[str, Any]]:
    """The rows of one part of the benchmarks on one machine; each carries its "provenance".

    part: "layers" (one layer, forward and backward), "mixture" (the fit beside scikit-learn), "train" (images a second
    beside the usual loop), "cost" (a training run with each norm). Times are seconds unless the name says ms; compare
    ratios only within a record, because records come from different machines.
    Raises ValueError where it is not recorded.
    """
    if part not in PARTS:
        raise ValueError(f"no benchmark {part!r}: there are {', '.join(PARTS)}")
    path = BENCHMARKS / f"{machine}-{part}.jsonl"
    if not path.is_file():
        known = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in machines().items()) or "none"
        raise ValueError(
            f"{part} is not recorded for {machine!r} (recorded: {known}): "
            f"run `python -m studies --only {part} --record` there"
        )
    header, *rows = read_lines(path)
    found = []
    for row in rows:
        # rows of layers that were not measured again when others were keep the commit of their own
        own = {"commit": row.pop("commit")} if "commit" in row else {}
        del row["type"]
        found.append(row | {"provenance": header["provenance"] | own})
    return found
