"""The command `cnlib`, and `python -m cnlib`: Ctrl-C ends it in a line, also while packages are still loading."""

import io
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def _stop(_: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but for an import: that would show its traceback, or swallow it. Nothing has begun there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def stop_quietly() -> None:
    """From now on Ctrl-C shows no traceback of an import."""
    # a background job of a shell ignores the signal, and goes on doing so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def main() -> None:
    """Run the command line on the arguments of this process."""
    stop_quietly()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a folder's name may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        from cnlib.cli import app

        app(prog_name="cnlib")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
