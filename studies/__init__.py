"""What measures and writes records into the package: speed and memory beside peers (`python -m studies`), and what is
recorded of images and of published ids. The tests run it in small and time nothing."""

import json
from typing import Any


def rounded(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a record as they are read back, with six digits after the point."""
    return json.loads(json.dumps(lines), parse_float=lambda text: round(float(text), 6))
