import typer

from studies import main

typer.run(main)
