"""A progress bar where somebody watches: tqdm in a terminal, one live line in a notebook, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Report = Callable[[int, str], None]


def reporter(total: int, title: str, show: bool | None = None) -> tuple[Report, Callable[[], None]]:
    """(report(done, text), close()). show: None looks whether anybody watches; True and False decide."""
    notebook = _notebook()
    watched = notebook or sys.stderr.isatty() if show is None else show
    if not watched:
        return (lambda done, text: None), (lambda: None)
    if notebook:
        return _notebook_line(total, title)
    try:
        from tqdm import tqdm
    except ImportError:

        def line(done: int, text: str) -> None:
            print(f"\r{title}: {done}/{total} {text}", end="", file=sys.stderr, flush=True)

        return line, lambda: print(file=sys.stderr)
    bar = tqdm(total=total, desc=title, unit="epoch", leave=False, mininterval=0)

    def update(done: int, text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    return update, bar.close


def _notebook() -> bool:
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _notebook_line(total: int, title: str) -> tuple[Report, Callable[[], None]]:
    # No widget: pages built from a notebook must not need scripts from elsewhere, and a cell keeps one line of output.
    from IPython.display import display

    handle = display({"text/plain": title}, raw=True, display_id=True)

    def update(done: int, text: str) -> None:
        handle.update({"text/plain": f"{title}: {done}/{total} {text}"}, raw=True)

    return update, lambda: None
