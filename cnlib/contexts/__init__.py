"""Where a context id comes from: the image, the label, the domain, or nothing (controls).

Every source has `fit(images, labels=None, domains=None)` on the training images, `assign(images, labels=None,
domains=None)` -> (N,) int64 ids in [0, num_contexts) on any images, `save(path)`, and `load(path)`;
`load_contexts(path)` restores whichever was saved. A source reads what it needs of the three and leaves the rest.
Images are uint8 arrays (N, H, W, C), memory-mapped or not; labels and domains (N,) are as in `cnlib.data.ImageData`.
`cnlib.contexts.quality` says what a grouping is worth.
"""

from cnlib.contexts.base import Contexts, load_contexts
from cnlib.contexts.controls import CorruptedContexts, RandomContexts, ShuffledContexts
from cnlib.contexts.domain import DomainContexts
from cnlib.contexts.kmeans import KMeansContexts
from cnlib.contexts.labels import CIFAR100_FINE_TO_COARSE, LABEL_GROUPS, PARITY, SuperclassContexts
from cnlib.contexts.mixture import GMMContexts

__all__ = [
    "CIFAR100_FINE_TO_COARSE",
    "Contexts",
    "CorruptedContexts",
    "DomainContexts",
    "GMMContexts",
    "KMeansContexts",
    "LABEL_GROUPS",
    "PARITY",
    "RandomContexts",
    "ShuffledContexts",
    "SuperclassContexts",
    "load_contexts",
]
