"""The layers on the API page: one entry for each row of the registry, so that a new layer needs no line there."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import cnlib
from cnlib.norm.registry import NORMS, Place

BOOKKEEPING = {"extra_repr", "forward", "reset_parameters", "update_running"}


def entries() -> list[str]:
    """An ``autoclass`` for each layer, with its public methods but for those that every layer has."""
    lines = []
    for layer in dict.fromkeys(entry.layer for entry in NORMS.values() if entry.layer is not Place):
        short = getattr(cnlib, layer.__name__, None) is layer
        lines.append(f".. autoclass:: {'cnlib' if short else layer.__module__}.{layer.__name__}")
        own = [name for name, value in vars(layer).items() if callable(value) and not name.startswith("_")]
        if members := [name for name in own if name not in BOOKKEEPING]:
            lines.append(f"   :members: {', '.join(members)}")
    return lines


class NormLayers(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        block = ["```{eval-rst}", *entries(), "```"]
        self.state.nested_parse(StringList(block, source="norm/registry.py"), self.content_offset, container)
        return container.children
