"""`cnlib data`: what there is, fetch one, check its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

FAILED, WRONG = 1, 2
data_app = typer.Typer(help="Data sets: what there is, fetch one, check its files.", no_args_is_help=True)


def data_names() -> list[str]:
    """For the shell to complete; nothing where there is no folder to look into."""
    from cnlib import data

    try:
        return data.names()
    except (OSError, ValueError):
        return []


@data_app.command("list")
def list_data() -> None:
    """The data sets that can be named, and which of them are here."""
    from cnlib import data

    try:
        root, names = data.root(), data.names()
    except (OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG) from error
    typer.echo(f"in {root} (set CNLIB_DATA for another place)")
    for name in names:
        missing = "to be put there by hand" if name in data.SOURCES and data.SOURCES[name].by_hand else "to be fetched"
        here = name in data.EMBEDDED or (root / name).is_dir()
        typer.echo(f"{name:<20}{'here' if here else missing}")


@data_app.command()
def fetch(names: Annotated[list[str], typer.Argument(help="one or more", autocompletion=data_names)]) -> None:
    """Download data sets, check them, convert them. What is here already is not fetched again."""
    from cnlib import data

    def fetched(name: str) -> str:
        found = data.load(name)
        shape = "x".join(map(str, found.train_images.shape[1:]))
        return f"{len(found.train_labels):,} + {len(found.test_labels):,} images of {shape}"

    _each(names, fetched)


@data_app.command()
def verify(names: Annotated[list[str], typer.Argument(help="one or more", autocompletion=data_names)]) -> None:
    """Compare the files of data sets with the checksums written when they were converted."""
    from cnlib import data

    def verified(name: str) -> str:
        files = data.verify(name)
        return f"{len(files)} files as converted" if files else "part of what is installed, nothing to check"

    _each(names, verified)


def _each(names: list[str], function: Callable[[str], str]) -> None:
    """Print what the function says of each name; what fails is reported, and the rest goes on."""
    failed = False
    for name in names:
        try:
            typer.echo(f"{name}: {function(name)}")
        except (ImportError, OSError, ValueError) as error:
            typer.echo(f"error: {error}", err=True)
            failed = True
    raise typer.Exit(FAILED if failed else 0)
