"""Run the benchmarks, print their tables of ratios, write one record.

    python -m benchmarks                          everything, a quarter of an hour on two cores
    python -m benchmarks --budget 0.2 --only layers

The record goes to benchmarks/out/; ``--record`` puts it into the package instead, where the book reads it.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler logs each start and stop
if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    # Freed memory stays with the process, as a GPU's caching allocator keeps it. Otherwise what is measured, for
    # every layer alike, is mostly the kernel clearing fresh pages: up to three times the layer itself.
    tunables = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "34359738368"}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | tunables)

import torch
import typer

from benchmarks import layers, mixture
from cnlib.training.records import provenance, write_lines

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "cnlib" / "results" / "benchmarks"


def main(
    budget: Annotated[float, typer.Option(help="seconds of timing for each layer and shape")] = 1.0,
    repeats: Annotated[int, typer.Option(help="alternating runs of each mixture")] = 5,
    only: Annotated[str, typer.Option(help="layers, mixture, or empty for both")] = "",
    record: Annotated[bool, typer.Option(help="write into the package, for the book")] = False,
) -> None:
    """Forward + backward time and memory of every layer, and the mixture, beside their peers."""
    threads = torch.get_num_threads()
    lines: list[dict[str, object]] = [{"type": "header", "provenance": provenance(torch.device("cpu"), "synthetic")}]
    name = f"cpu-{platform.machine()}-{threads}-threads.jsonl"
    path = (PACKAGE if record else HERE / "out") / name
    if only in ("", "layers"):
        rows = layers.run(budget)
        print(layers.summarize(rows))
        lines += [{"type": "layer", **row} for row in rows]
        write_lines(path, lines)
    if only in ("", "mixture"):
        lines += [{"type": "mixture", **row} for row in mixture.run(repeats)]
        write_lines(path, lines)
    print(f"recorded in {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    typer.run(main)
