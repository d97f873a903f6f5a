"""What a sweep would do, and for how long: a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cnlib import data
from cnlib.sweeps.run import EXPLAINED, estimate, recorded, remembering
from cnlib.training import Config


def preview(configs: Mapping[str, Config], out: Path, device: str = "cpu") -> Iterator[str]:
    """A line for each run of a sweep, and one for all; "error: ..." where something keeps runs from being timed, once.

    Runs that differ in seed and rates alone take equally long: one of them is timed.
    """
    load, known, printed = remembering(data.load), dict[Config, float | None](), set[str]()
    total, unknown = 0.0, 0
    for name, config in configs.items():
        try:
            if recorded(config, out / f"{name}.jsonl"):
                yield f"{name}: recorded"
                continue
        except EXPLAINED as error:
            yield f"{name}: would fail: {error}"
            continue
        kind = replace(config, seed=0, lr=1.0, weight_decay=0.0)
        if kind not in known:
            try:
                known[kind] = estimate(config, device, load(config.dataset))
            except EXPLAINED as error:
                known[kind] = None
                if str(error) not in printed:
                    yield f"error: {error}"
                printed.add(str(error))
        seconds = known[kind]
        if seconds is None:
            unknown += 1
            yield f"{name}: cannot be timed, see above"
        else:
            total += seconds
            yield f"{name}: about {clock(seconds)}"
    rest = f", {unknown} runs that cannot be timed" if unknown else ""
    yield f"in all about {clock(total)} on {device}, without the mixture fits{rest}; records would go to {out}"


def clock(seconds: float) -> str:
    """To read: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
