"""Contexts that know nothing: drawn at random, shuffled, or all the same."""

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_images, kind, plain_array
from cnlib.mixture.arguments import whole_number


class RandomContexts(Contexts):
    """A context drawn once for each image: a keyed hash of its bytes, so that an image keeps its context in any order,
    batch or process (and equal images share theirs). RandomContexts(1) is the constant context."""

    def __init__(self, num_contexts: int, probabilities: Sequence[float] | None = None, seed: int = 0):
        num_contexts = whole_number("num_contexts", num_contexts, least=1)
        p = np.full(num_contexts, 1 / num_contexts)
        if probabilities is not None:
            p = plain_array("probabilities", probabilities)
        if p.dtype.kind not in "iuf" or p.shape != (num_contexts,) or not (p >= 0).all() or abs(p.sum() - 1) > 1e-6:
            raise ValueError(
                f"probabilities must be {num_contexts} numbers >= 0 that sum to 1, got {probabilities!r:.200}"
            )
        self.num_contexts, self.probabilities = num_contexts, p.astype(float).tolist()
        self.seed = whole_number("seed", seed)

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        key = self.seed.to_bytes(8, "little", signed=True)
        digests = b"".join(hashlib.blake2b(i.tobytes(), digest_size=8, key=key).digest() for i in check_images(images))
        uniform = (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) * 2.0**-53
        cumulative = np.cumsum(self.probabilities)
        return torch.from_numpy(np.searchsorted(cumulative / cumulative[-1], uniform, side="right").astype(np.int64))

    def state(self) -> State:
        return {"num_contexts": self.num_contexts, "probabilities": self.probabilities, "seed": self.seed}, {}


class ShuffledContexts(Contexts):
    """The ids of `base`, permuted across the samples of one call of `assign`: the same shares, no relation to the
    image. Assign a whole split at once: the permutation depends on the seed and on how many samples there are."""

    def __init__(self, base: Contexts, seed: int = 0):
        if not isinstance(base, Contexts):
            raise TypeError(f"base must be contexts, such as RandomContexts(3), got {base!r}")
        self.base, self.seed, self.num_contexts = base, whole_number("seed", seed, least=0), base.num_contexts

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Self:
        self.base.fit(images, labels, domains)
        return self

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        ids = self.base.assign(images, labels, domains)
        return ids[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(ids)))]

    def state(self) -> State:
        header, arrays = self.base.state()
        return {"seed": self.seed, "class": type(self.base).__name__, "base": header}, arrays

    @classmethod
    def restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        return cls(kind(header["class"]).restore(header["base"], arrays), header["seed"])
