from cnlib.__main__ import stop_quietly

stop_quietly()  # before what takes long to import

import typer  # noqa: E402

from studies.command import main  # noqa: E402

typer.run(main)
