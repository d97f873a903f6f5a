"""Chapters are executed side by side, ahead of the build, which would take them one after the other."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

log = logging.getLogger(__name__)
# a kernel takes about 1 GB; where something else has the other cores, BOOK_AT_ONCE=1 leaves them to it
AT_ONCE = int(os.environ.get("BOOK_AT_ONCE") or min(4, os.cpu_count() or 1))


def not_cached(env: BuildEnvironment, docnames: list[str]) -> Iterator[tuple[Path, NotebookNode]]:
    """The notebooks among the pages that the cache does not have, as the build reads them."""
    cache = get_cache(env.mystnb_config.execution_cache_path)
    for docname in docnames:
        path = Path(env.doc2path(docname))
        if path.suffix != ".ipynb":
            continue
        text = path.read_text(encoding="utf-8")
        reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)
        assert reader is not None, f"{path}: expected a notebook"
        notebook = reader.read(text)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            yield path, notebook


def execute(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Fill the cache. A notebook that fails is left to the build, which executes it again and says where it fails."""
    settings = env.mystnb_config
    if settings.execution_mode != "cache" or AT_ONCE == 1:
        return

    def run(page: tuple[Path, NotebookNode]) -> tuple[Path, NotebookNode, float | None]:
        path, notebook = page
        result = single_nb_execution(
            notebook, cwd=str(path.parent), allow_errors=False, timeout=settings.execution_timeout, meta_override=True
        )
        return path, notebook, None if result.err is not None else result.time

    cache = get_cache(settings.execution_cache_path)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for path, notebook, seconds in pool.map(run, not_cached(env, docnames)):
            if seconds is None:
                continue
            log.info(f"{path.name}: executed in {seconds:.0f} seconds")
            page = cache.add_nb_to_project(str(path))
            bundle = CacheBundleIn(notebook, page.uri, data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
