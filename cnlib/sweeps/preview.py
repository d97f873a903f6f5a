"""What a sweep would do, and for how long: a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cnlib import data
from cnlib.sweeps.run import EXPLAINED, estimate, recorded, remembering
from cnlib.training import Config


def preview(configs: Mapping[str, Config], out: Path, device: str = "cpu") -> Iterator[str]:
    """A line for each run of a sweep, in pieces as they are known, and one for all.

    Each reason why runs cannot be timed is given once.

    Runs that differ in seed and rates alone take equally long: one of them is timed.
    """
    load, known, printed = remembering(data.load), dict[Config, float | None](), set[str]()
    total, unknown = 0.0, 0
    for name, config in configs.items():
        yield f"{name}: "
        try:
            if recorded(config, out / f"{name}.jsonl"):
                yield "recorded\n"
                continue
        except EXPLAINED as error:
            yield f"would fail: {error}\n"
            continue
        kind, reason = replace(config, seed=0, lr=1.0, weight_decay=0.0), "as above"
        if kind not in known:
            try:
                known[kind] = estimate(config, device, load(config.dataset))
            except Exception as error:  # nobody asked for this training: its tracebacks come with the run
                known[kind] = None
                text = str(error) if isinstance(error, EXPLAINED) else f"{type(error).__name__}: {error}"
                reason = "as above" if text in printed else text
                printed.add(text)
        seconds = known[kind]
        if seconds is None:
            unknown += 1
            yield f"cannot be timed: {reason}\n"
        else:
            total += seconds
            yield f"about {clock(seconds)}\n"
    rest = f", {unknown} runs that cannot be timed" if unknown else ""
    yield f"in all about {clock(total)} on {device}, without the mixture fits{rest}; records would go to {out}\n"


def clock(seconds: float) -> str:
    """To read: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
