"""What is executed ahead of the build stands in the cache; what fails is left to the build."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import side_by_side
from myst_nb.core.config import NbParserConfig
from myst_parser.config.main import MdParserConfig


def pages(folder: Path, **sources: str) -> Any:
    """An environment of pages, each with one code cell, and one page of prose."""
    for name, source in sources.items():
        cell = nbformat.v4.new_code_cell(source, id=name)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / f"{name}.ipynb")
    (folder / "prose.md").write_text("# Prose\n", encoding="utf-8")
    settings = NbParserConfig(execution_mode="cache", execution_cache_path=str(folder / "cache"))
    return SimpleNamespace(
        mystnb_config=settings,
        myst_config=MdParserConfig(),
        doc2path=lambda name: str(folder / (f"{name}.md" if name == "prose" else f"{name}.ipynb")),
    )


def test_the_cache_has_what_ran_and_not_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "AT_ONCE", 2)
    env = pages(tmp_path, good="print(6 * 7)", bad="1 / 0")
    names = ["prose", "good", "bad"]

    def missing() -> list[str]:
        return [path.stem for path, _ in side_by_side.not_cached(env, names)]

    assert missing() == ["good", "bad"]
    side_by_side.execute(None, env, names)  # type: ignore[arg-type]
    assert missing() == ["bad"]
    cache = side_by_side.get_cache(env.mystnb_config.execution_cache_path)
    (record,) = cache.list_cache_records()
    (cell,) = cache.get_cache_bundle(record.pk).nb.cells
    assert cell.outputs[0].text == "42\n" and record.data["execution_seconds"] > 0


def test_nothing_runs_ahead_where_nothing_is_cached_or_one_core_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "single_nb_execution", lambda *_, **__: pytest.fail("executed"))
    env = pages(tmp_path, good="1")
    monkeypatch.setattr(side_by_side, "AT_ONCE", 1)
    side_by_side.execute(None, env, ["good"])  # type: ignore[arg-type]
    monkeypatch.setattr(side_by_side, "AT_ONCE", 2)
    env.mystnb_config = env.mystnb_config.copy(execution_mode="off")
    side_by_side.execute(None, env, ["good"])  # type: ignore[arg-type]
