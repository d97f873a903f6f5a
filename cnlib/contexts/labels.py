"""Contexts from the label: they leak it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from cnlib.contexts.base import Contexts, State, check_ids, plain_array

# more superclasses than this are a mistake, and a layer with a row for each would not fit into memory
MOST = 2**31
# Superclass of each of the 100 fine classes of CIFAR-100, both in the data set's own (alphabetical) order.
# fmt: off
CIFAR100_FINE_TO_COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1,
    9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on
PARITY = (0, 1) * 5  # of ten digits: the smallest superclasses there are
# by how many there are: of ten classes (in CIFAR-10: animals and vehicles; pairs; each class), and CIFAR-100's own
LABEL_GROUPS: dict[int, tuple[int, ...]] = {
    2: (0, 0, 1, 1, 1, 1, 1, 1, 0, 0),
    5: (0, 1, 2, 3, 4, 3, 2, 4, 0, 1),
    10: tuple(range(10)),
    20: CIFAR100_FINE_TO_COARSE,
}


class SuperclassContexts(Contexts):
    """The superclass of each sample's class; by default the 20 superclasses of CIFAR-100.

    Leakage: this context is computed from the label, of the test images too. A network that is given it chooses
    among five classes, not a hundred. Compare only with models that get the same information.
    """

    def __init__(self, fine_to_coarse: Sequence[int] = CIFAR100_FINE_TO_COARSE):
        table = plain_array("fine_to_coarse", fine_to_coarse)
        whole = table.ndim == 1 and table.dtype.kind in "iu" and table.size
        if not whole or not 0 <= table.min() <= table.max() < MOST:
            raise ValueError(
                f"fine_to_coarse must be one whole number >= 0 for each class, at least one, and below {MOST}, got "
                f"{fine_to_coarse!r:.200}"
            )
        self.fine_to_coarse = table.astype(np.int64)
        self.num_contexts = int(self.fine_to_coarse.max()) + 1

    def assign(
        self, images: np.ndarray | None, labels: ArrayLike | None = None, domains: ArrayLike | None = None
    ) -> Tensor:
        if labels is None:
            raise ValueError("the class label of each image is needed, got none: assign(images, labels)")
        return torch.from_numpy(
            self.fine_to_coarse[check_ids(labels, len(self.fine_to_coarse), images, "class labels")]
        )

    def given_label(self) -> Tensor:
        return F.one_hot(torch.from_numpy(self.fine_to_coarse), self.num_contexts).double()

    def state(self) -> State:
        return {"fine_to_coarse": self.fine_to_coarse.tolist()}, {}
