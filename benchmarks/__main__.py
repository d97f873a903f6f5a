import typer

from benchmarks import main

typer.run(main)
