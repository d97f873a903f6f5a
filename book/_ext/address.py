"""Where the repository lives: read from one place, written by ``make address``. Standard library only."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r'^repository = ".*"$', re.MULTILINE)


def normalize(address: str) -> str | None:
    """``https://host/owner/name`` for any spelling git accepts, without password; None for a local path."""
    address = address.strip()
    if match := re.fullmatch(r"(?:ssh://)?[\w.-]+@([\w.-]+)(?::\d+/|[:/])(.+)", address):
        address = f"https://{match[1]}/{match[2]}"
    parts = urlsplit(address)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.scheme not in ("http", "https") or not parts.hostname or path.count("/") < 1:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}/{path}"


def _remote(root: Path) -> str:
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False).stdout
    except FileNotFoundError:  # a downloaded archive on a machine without git
        return ""


def resolve(root: Path = ROOT, env: Mapping[str, str] = os.environ) -> str | None:
    """The address from pyproject.toml, else the forge's environment, else git's origin, else None."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    github = ""
    if env.get("GITHUB_SERVER_URL") and env.get("GITHUB_REPOSITORY"):
        github = f"{env['GITHUB_SERVER_URL']}/{env['GITHUB_REPOSITORY']}"
    written = config["tool"]["cnlib"]["repository"]
    found = written or github or env.get("CI_PROJECT_URL", "") or _remote(root)
    address = normalize(found)
    if written and address is None:
        raise ValueError(
            f"[tool.cnlib] repository in pyproject.toml is {written!r}; expected https://host/owner/name. "
            "Set it with: make address REPO=https://host/owner/name"
        )
    return address


def write(address: str, root: Path = ROOT) -> str:
    """Put ``address`` into pyproject.toml and return it as written."""
    normal = normalize(address)
    if normal is None:
        raise ValueError(f"{address!r} is no repository address; expected https://host/owner/name")
    path = root / "pyproject.toml"
    text, count = LINE.subn(f'repository = "{normal}"', path.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f'{path}: expected one line repository = "..." under [tool.cnlib], found {count}')
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return normal


if __name__ == "__main__":
    try:
        print(write(sys.argv[1]) if len(sys.argv) > 1 else resolve() or "no address known")
    except ValueError as error:
        sys.exit(f"error: {error}")
