"""Contexts from where an image comes from."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_labels


class DomainContexts(Contexts):
    """The domain each sample is known to come from; `labels` are indices into `names`, or names."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.num_contexts = len(self.names)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"names must be different domains, at least one, got {self.names}")

    def assign(self, images: np.ndarray | None, labels: ArrayLike | None = None) -> Tensor:
        if labels is not None and np.asarray(labels).dtype.kind in "UO":
            index = {name: i for i, name in enumerate(self.names)}
            unknown = sorted({str(name) for name in np.asarray(labels).flat} - set(index))
            if unknown:
                raise ValueError(f"unknown domain(s) {unknown}, expected some of {self.names}")
            labels = np.array([index[str(name)] for name in np.asarray(labels).flat], dtype=np.int64)
        return torch.from_numpy(check_labels(labels, self.num_contexts, images, "domains"))

    def state(self) -> State:
        return {"names": self.names}, {}
