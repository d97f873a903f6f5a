"""The command line: `cnlib run`, `sweep`, `report`, `data`, `bench`; each a thin layer over a function."""

from __future__ import annotations

from cnlib.__main__ import INTERRUPTED, main

if __name__ == "__main__":
    main()  # first: the rest takes long to import, and Ctrl-C is to show no traceback of that

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cnlib.arguments import (
    MOST_SEEDS,
    MOST_THREADS,
    change,
    check_dataset,
    check_size,
    duration,
    explained,
    folder,
    slots,
    usable_device,
)
from cnlib.data.command import FAILED, data_app, data_names

HELP = """Batch, mixture and context normalization: rerun the published experiments, and compare.

Exit codes: 0 done; 1 something failed (a run, a check, a download); 2 wrong usage; 3 stopped in time, runs are left for
the next call; 130 interrupted. Whatever was finished is kept: the same command goes on from there.
"""
UNFINISHED = 3
DEVICES = ("cpu", "cuda", "mps")

app = typer.Typer(
    name="cnlib", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
app.add_typer(data_app, name="data")
Format = StrEnum("Format", ["text", "markdown", "csv"])


def sweep_names() -> list[str]:
    from cnlib.experiments import EXPERIMENTS

    return [name for experiment in EXPERIMENTS.values() for name in experiment.sweeps]


def experiment_names() -> list[str]:
    from cnlib.experiments import EXPERIMENTS

    return list(EXPERIMENTS)


Profile = Annotated[
    str, typer.Option(help="sizes: smoke (seconds), book (digits), reduced (CPU), narrow (quarter of the width), paper")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps")]
Threads = Annotated[
    int, typer.Option(min=1, max=MOST_THREADS, help="of the CPU, for each process; sums depend on it in the last bit")
]
Out = Annotated[
    Path | None,
    typer.Option(parser=folder, metavar="FOLDER", help="of the records; default runs/EXPERIMENT", show_default=False),
]
Until = Annotated[
    float | None,
    typer.Option(
        parser=duration,
        metavar="TIME",
        help="stop in time, at the end of an epoch: 90s, 8min, 2h. In less than an epoch takes nothing gets on",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would run, and for how long, and do nothing")]


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="the experiment, e.g. convnet", autocompletion=experiment_names)],
    method: Annotated[
        str, typer.Option("--method", "--norm", help="e.g. bn; a name it has not lists those of the experiment")
    ] = "cn",
    dataset: Annotated[str | None, typer.Option(help="see `cnlib data list`", autocompletion=data_names)] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="on every parameter")] = None,
    placement: Annotated[
        str | None, typer.Option(help="slots of the model that get the layer: one, or several as in conv2,conv3")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of weights, order of images, augmentation and contexts")] = 0,
    profile: Profile = "smoke",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="any field of the configuration; repeat")
    ] = None,
    device: Device = "cpu",
    threads: Threads = 2,
    out: Out = None,
    until: Until = None,
    dry_run: DryRun = False,
) -> None:
    """Train one network, or go on where it stopped, or say what is recorded.

    What is not given is the paper's, at the sizes of the profile.

    cnlib run convnet --method cn --dataset cifar10 --lr 1e-3 --seed 0 --profile paper --device cuda
    """
    from cnlib.experiments import EXPERIMENTS
    from cnlib.training import TASKS, check

    if name not in EXPERIMENTS:
        raise typer.BadParameter(f"{name!r}: expected one of {', '.join(EXPERIMENTS)}", param_hint="NAME")
    places = None if placement is None else slots(placement)
    options: dict[str, Any] = {"dataset": dataset, "lr": lr, "weight_decay": weight_decay, "placement": places}
    given = [(key, value) for key, value in options.items() if value is not None] + list(map(change, changes or []))
    if twice := [key for key, count in Counter(key for key, _ in given).items() if count > 1]:
        raise typer.BadParameter(f"{', '.join(twice)} is given twice: expected one value")
    with explained():
        config = EXPERIMENTS[name].config(method, seed, profile, **dict(given))
        check(config, TASKS)
        check_size(config)
        check_dataset(config.dataset)
    _run({EXPERIMENTS[name].record_name(config): config}, out or Path("runs", name), device, threads, until, dry_run)


@app.command()
def sweep(
    table: Annotated[str, typer.Argument(help="the sweep, e.g. table-v", autocompletion=sweep_names)],
    profile: Profile = "smoke",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="how many; by default the profile's own number")
    ] = None,
    only: Annotated[str, typer.Option(help="pattern of record names, e.g. '*cifar100*'")] = "*",
    device: Device = "cpu",
    threads: Threads = 2,
    out: Out = None,
    until: Until = None,
    dry_run: DryRun = False,
) -> None:
    """Run every missing cell of a published table, the most telling first.

    What is recorded is skipped, what was killed goes on, what fails is reported and the rest goes on. Several processes
    or machines may share the folder: none runs a cell that another has.

    cnlib sweep table-v --profile reduced --until 2h
    """
    from cnlib.experiments import find_sweep

    with explained():
        experiment = find_sweep(table)
        configs = experiment.configs(table, profile, seeds, only)
    if not configs:
        known = ", ".join(dict.fromkeys(name for grid in experiment.sweeps[table] for name in grid.profiles))
        rest = f"; it has cells at {known}" if known else ": see --dry-run without it"
        raise typer.BadParameter(f"no cell of {table} at profile {profile} matches {only!r}{rest}")
    _run(configs, out or Path("runs", experiment.name), device, threads, until, dry_run)


def _run(configs: Mapping[str, Any], out: Path, device: str, threads: int, until: float | None, dry_run: bool) -> None:
    import torch

    from cnlib import sweeps
    from cnlib.training import distributed

    usable_device(device, DEVICES)
    torch.set_num_threads(threads)
    if dry_run:
        for text in sweeps.preview(configs, out, device):
            typer.echo(text, nl=False)
        return
    try:
        results = sweeps.sweep(configs, out, device=device, minutes=until)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; finished epochs are in {out}: the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    counts = Counter(results.values())
    if distributed.leader():
        typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; records are in {out}")
    left = counts.keys() & {"unfinished", "not started", "busy"}
    raise typer.Exit(FAILED if "failed" in counts else UNFINISHED if left else 0)


@app.command()
def report(
    records: Annotated[
        list[Path] | None,
        typer.Option(parser=folder, metavar="FOLDER", help="of your own records; repeat. Default: the package's"),
    ] = None,
    table: Annotated[str | None, typer.Option(help="one published table, e.g. icdm_table_5")] = None,
    form: Annotated[Format, typer.Option("--format", help="for a terminal, a page, or a program")] = Format.text,
) -> None:
    """Every published number beside ours: mean, 95 % interval over seeds, verdict, and the command that reruns it."""
    with explained():
        from cnlib import results

        runs = [run for folder in records for run in results.load(folder)] if records else None
        cells = results.reproduction(runs, None if table is None else [table])
        if form is Format.csv:
            text = results.to_numbers(cells).to_csv(index=False)
        elif form is Format.markdown:
            text = results.to_text(cells).to_markdown(index=False) + "\n"
        else:
            text = results.to_text(cells).to_string(index=False) + "\n"
    typer.echo(text, nl=False)
    typer.echo(", ".join(f"{n} {verdict}" for verdict, n in Counter(cell.verdict for cell in cells).items()), err=True)


@app.command(context_settings={"ignore_unknown_options": True})
def bench(
    given: Annotated[
        list[str] | None, typer.Argument(metavar="PART", help="layers, mixture, train, cost, or all; then options")
    ] = None,
) -> None:
    """Measure speed and memory beside peers, in one run. Options go to `python -m studies`.

    cnlib bench layers --budget 0.2
    """
    import cnlib

    root = Path(cnlib.__file__).parents[1]
    if not (root / "studies" / "__main__.py").is_file():
        raise typer.BadParameter(
            "the benchmarks are in the repository, not in the package: clone it and run them there"
        )
    part = ["--only"] if given and not given[0].startswith("-") else []
    command = [sys.executable, "-m", "studies", *part, *(given or [])]
    raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)
