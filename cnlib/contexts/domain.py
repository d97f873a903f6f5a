"""Contexts from where an image comes from."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_ids, plain_array


class DomainContexts(Contexts):
    """The domain an image is known to come from: `domains` are indices into `names`, or names; labels are not read."""

    def __init__(self, names: Sequence[str]):
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"names must be a list of different domains, got {names!r}")
        given = list(names)
        if not given or not all(isinstance(name, str) for name in given) or len(set(given)) != len(given):
            raise ValueError(f"names must be different domains, by their names and at least one, got {given}")
        self.names = [str(name) for name in given]
        self.num_contexts = len(self.names)

    def assign(
        self, images: np.ndarray | None, labels: ArrayLike | None = None, domains: ArrayLike | None = None
    ) -> Tensor:
        if domains is None:
            got = "neither labels nor domains" if labels is None else "labels only"
            raise ValueError(
                f"the domain of each image is needed, got {got}: assign(images, domains=...), with the domains of a "
                "data set that has some, such as load('cifar100+mnist')"
            )
        ids = plain_array("domains", domains)
        if ids.dtype.kind in "UO":
            index = {name: i for i, name in enumerate(self.names)}
            unknown = sorted({str(name) for name in ids.flat} - set(index))
            if unknown:
                raise ValueError(f"unknown domain(s) {unknown}, expected some of {self.names}")
            ids = np.array([index[str(name)] for name in ids.flat], dtype=np.int64).reshape(ids.shape)
        return torch.from_numpy(check_ids(ids, self.num_contexts, images, "domains"))

    def state(self) -> State:
        return {"names": self.names}, {}
