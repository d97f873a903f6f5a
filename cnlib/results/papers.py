"""The tables of the papers, exactly as printed, one CSV file each; the file names its source."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from cnlib.records import RECORDS

PUBLISHED = RECORDS / "published"


@dataclass(frozen=True)
class Table:
    """rows: one dictionary a printed number, its "value" a float (percent), or None where nothing is printed."""

    name: str
    source: str
    notes: tuple[str, ...]
    rows: tuple[dict[str, str | float | None], ...]

    def value(self, **where: str | float) -> float | None:
        """The one value whose row has these entries, e.g. value(dataset="cifar10", model="BN", epoch=100)."""
        found = [row["value"] for row in self.rows if all(row[key] == wanted for key, wanted in where.items())]
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: {len(found)} rows have {where}, expected 1; columns are {', '.join(self.rows[0])}"
            )
        return found[0]  # type: ignore[return-value]


def tables() -> list[str]:
    """Names that `published` takes."""
    return sorted((path.stem for path in PUBLISHED.glob("*.csv")), key=lambda name: (name[:-2], len(name), name))


def published(name: str) -> Table:
    """A printed table: "french_table_1" to 4, "icdm_table_5" to 10."""
    path = PUBLISHED / f"{name}.csv"
    if name not in tables():
        raise ValueError(f"no published table {name!r}: there are {', '.join(tables())}")
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ")]
    rows = tuple(
        {key: _value(key, entry) for key, entry in row.items()}
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    )
    return Table(name, comments[0], tuple(comments[1:]), rows)


def _value(key: str, entry: str) -> str | float | None:
    if key in ("dataset", "model", "metric"):
        return entry
    return float(entry) if entry else None
