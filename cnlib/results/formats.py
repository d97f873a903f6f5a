"""The report as a table: numbers for a program, text for a page or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnlib.results.intervals import Interval
from cnlib.results.report import Cell

if TYPE_CHECKING:
    import pandas as pd


def to_numbers(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell, a number or nothing in each column, in percent and percentage points; gaps are to `baseline`."""
    import pandas as pd

    def reading(name: str, value: Interval | None) -> dict[str, object]:
        half = value.half if value and value.n > 1 else None  # a single value has no interval
        return {f"{name}_mean": value and value.mean, f"{name}_half": half, f"{name}_n": value and value.n}

    def row(cell: Cell) -> dict[str, object]:
        gap = cell.ours_gap
        return {
            "table": cell.table,
            "cell": cell.label,
            "baseline": cell.baseline,
            "printed": cell.published,
            "printed_gap": cell.gap,
            **reading("ours", cell.ours),
            **reading("last_three", cell.late),
            **reading("reestimated", cell.reestimated),
            **reading("ours_gap", gap.best if gap else None),
            **reading("last_three_gap", gap.late if gap else None),
            **reading("reestimated_gap", gap.reestimated if gap else None),
            "power": cell.power,
            "diverged": cell.diverged,
            "verdict": cell.verdict,
            "profile": cell.profile,
            "runs": cell.runs,
            "command": cell.command,
        }

    frame = pd.DataFrame([row(cell) for cell in cells])
    return frame.astype({name: "Int64" for name in frame.columns if name.endswith("_n")})


def to_text(cells: Sequence[Cell]) -> pd.DataFrame:
    """The same as text, to print on a page or in a terminal."""
    import pandas as pd

    def text(value: Interval | float | None, spec: str) -> str:
        return "" if value is None else format(value, spec)

    def seeds(cell: Cell) -> str:
        """Those that the verdict rests on, and of how many: not every one is read with statistics estimated again."""
        counted = cell.ours_gap.best if cell.ours_gap else cell.ours
        if counted is None:
            return ""
        decides = cell.ours_gap.claims[0] if cell.ours_gap else counted
        some = f"{decides.n} of {counted.n}" if decides.n < counted.n else f"{counted.n}"
        return some + (f", {cell.diverged} diverged" if cell.diverged else "")

    baseline = " or ".join(dict.fromkeys(cell.baseline for cell in cells if cell.baseline)) or "baseline"

    def row(cell: Cell) -> dict[str, str]:
        gap = cell.ours_gap
        return {
            "table": cell.table,
            "cell": cell.label,
            "printed": text(cell.published, ".2f"),
            "ours": text(cell.ours, ".1f"),
            "re-estimated": text(cell.reestimated, ".1f"),
            "seeds": seeds(cell),
            f"printed - {baseline}": text(cell.gap, "+.2f"),
            f"ours - {baseline}": text(gap.best if gap else None, "+.1f"),
            f"last three - {baseline}": text(gap.late if gap else None, "+.1f"),
            f"re-estimated - {baseline}": text(gap.reestimated if gap else None, "+.1f"),
            "power": text(cell.power, ".2f"),
            "verdict": f"{cell.verdict} ({cell.profile})" if cell.profile else cell.verdict,
            "command": cell.command,
        }

    return pd.DataFrame([row(cell) for cell in cells])
