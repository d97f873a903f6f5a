"""Run the benchmarks, print their tables of ratios, write one record a part.

    python -m studies                          everything, half an hour on two cores
    python -m studies --only layers --budget 0.2
    python -m studies --only layers --layer ModeNorm --record     one layer anew, in the record that is there
    python -m studies --only train --device cuda

Records go to studies/out/; ``--record`` puts them into the package instead, where the book reads them.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler logs each start and stop

import typer

from cnlib.arguments import usable_device

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "cnlib" / "records" / "benchmarks"


class Part(StrEnum):
    """What can be measured; `train` needs torchvision, `cost` CIFAR-10."""

    layers = "layers"
    mixture = "mixture"
    train = "train"
    cost = "cost"
    all = "all"


def seconds(text: str) -> float:
    """A budget: above 0, at most an hour."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 3600:
        raise typer.BadParameter(f"{text!r}: expected seconds above 0, at most 3600")
    return value


def main(
    only: Annotated[Part, typer.Option(help="one part instead of all")] = Part.all,
    budget: Annotated[
        float, typer.Option(parser=seconds, metavar="SECONDS", help="layers: of timing for each layer and shape")
    ] = 1.0,
    layer: Annotated[
        list[str] | None, typer.Option(help="layers: only this one, anew among the rows recorded on this machine")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=1000, help="mixture, train, cost: alternating runs, or epochs, of each")
    ] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda; the mixture is measured on the CPU")] = "cpu",
    record: Annotated[bool, typer.Option(help="write into the package, for the book")] = False,
) -> None:
    """Every layer, the mixture, the training loop and a training run, each beside its peers in one run."""
    at = usable_device("cpu" if only == Part.mixture else device, ("cpu", "cuda"))
    if layer and only != Part.layers:
        raise typer.BadParameter("expected --only layers beside it", param_hint="--layer")
    parts = [part for part in Part if part != Part.all] if only == Part.all else [only]
    given = ["--budget", str(budget), "--repeats", str(repeats), "--device", device, *["--record"] * record]
    if len(parts) > 1:  # a process each: what one leaves behind in memory is not in the next one's numbers
        failed = [part for part in parts if _measure_elsewhere(["--only", part, *given])]
        raise typer.Exit(1 if failed else 0)

    import torch

    from cnlib.training.allocator import keep_freed_memory
    from cnlib.training.records import provenance, write_lines

    if only in (Part.layers, Part.mixture, Part.cost):
        # otherwise what is measured, for every layer alike, is mostly the system clearing fresh pages
        keep_freed_memory()
    run: dict[Part, Callable[[], tuple[str, list[dict[str, Any]]]]] = {
        Part.layers: lambda: ("layer", _layers(budget, at, layer or ())),
        Part.mixture: lambda: ("mixture", _mixture(repeats)),
        Part.train: lambda: ("train", _training().run_throughput(repeats, at)),
        Part.cost: lambda: ("cost", _training().run_cost(repeats, at)),
    }
    name = f"cpu-{platform.machine()}-{torch.get_num_threads()}-threads" if at.type == "cpu" else _slug(at)
    path = (PACKAGE if record else HERE / "out") / f"{name}-{only}.jsonl"
    others = _recorded(path, provenance(at, "synthetic")) if layer else []  # refused before anything is measured
    try:
        kind, rows = run[only]()
    except (ImportError, OSError) as error:  # a package or data that are not here
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    data = rows[0].get("data", "synthetic")
    # not on Windows
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    header = {"type": "header", "provenance": provenance(at, data), "load": load}
    anew = {row.get("layer") for row in rows}
    kept = [line for line in others if line["layer"] not in anew]
    write_lines(path, [header, *kept, *({"type": kind, **row} for row in rows)])
    print(f"recorded in {path.relative_to(HERE.parent)}")


def _measure_elsewhere(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "studies", *arguments], cwd=HERE.parent, check=False).returncode


def _recorded(path: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a record, each with the commit that it was measured at. here: provenance of what is to stand beside
    them, which has to be alike."""
    from cnlib.training.records import read_lines

    try:
        before, *lines = read_lines(path)
    except OSError as error:
        raise typer.BadParameter(f"there is no record {path.name}: measure all layers first") from error
    was, now = ({key: one[key] for key in ("device", "threads", "torch")} for one in (before["provenance"], here))
    if was != now:
        raise typer.BadParameter(f"{path.name} was recorded with {was}, this is {now}: measure all layers")
    return [{"commit": before["provenance"]["commit"], **line} for line in lines]


def _layers(budget: float, device: torch.device, names: Sequence[str]) -> list[dict[str, Any]]:
    from studies import layers

    try:
        rows = layers.run(budget, device=device, names=names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--layer") from error
    print(layers.summarize(rows))
    return rows


def _mixture(repeats: int) -> list[dict[str, Any]]:
    from studies import mixtures

    return mixtures.run(repeats)


def _training() -> Any:
    from studies import training

    return training


def _slug(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")
