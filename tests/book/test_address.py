"""The repository's address: one place, sensible fallbacks, no secrets."""

import subprocess
from pathlib import Path

import pytest
from address import normalize, resolve, write

GITHUB = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "owner/fork"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.cnlib]\nrepository = ""\n\n[tool.other]\nkept = 1\n', encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://github.com/owner/name", "https://github.com/owner/name"),
        ("https://github.com/owner/name.git\n", "https://github.com/owner/name"),
        ("https://user:secret@host.org/group/sub/name.git", "https://host.org/group/sub/name"),
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@host.org:2222/owner/name.git", "https://host.org/owner/name"),
        ("http://localhost:3000/owner/name/", "http://localhost:3000/owner/name"),
        ("/some/folder/name", None),
        ("../name", None),
        ("https://github.com/owner", None),
        ("", None),
    ],
)
def test_any_spelling_git_accepts(given: str, expected: str | None) -> None:
    assert normalize(given) == expected


def test_what_is_written_wins(project: Path) -> None:
    assert write("git@github.com:owner/name.git", project) == "https://github.com/owner/name"
    assert resolve(project, GITHUB) == "https://github.com/owner/name"
    assert "kept = 1" in (project / "pyproject.toml").read_text(encoding="utf-8")


def test_forge_then_remote_then_none(project: Path) -> None:
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    assert resolve(project, {}) is None
    command = ["git", "-C", str(project), "remote", "add", "origin", "https://token@host.org/owner/name.git"]
    subprocess.run(command, check=True)
    assert resolve(project, {}) == "https://host.org/owner/name"
    gitlab = "https://gitlab.com/group/name"
    assert resolve(project, {"CI_PROJECT_URL": gitlab}) == gitlab
    assert resolve(project, GITHUB | {"CI_PROJECT_URL": gitlab}) == "https://github.com/owner/fork"


def test_nonsense_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="expected https://host/owner/name"):
        write("not an address", project)
    (project / "pyproject.toml").write_text('[tool.cnlib]\nrepository = "nonsense"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="make address"):
        resolve(project, {})
