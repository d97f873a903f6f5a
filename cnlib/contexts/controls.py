"""Contexts that know nothing, or less: drawn at random, shuffled, all the same, or wrong at a given rate."""

import hashlib
import numbers
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_images, kind, plain_array
from cnlib.mixture.arguments import whole_number


def uniforms(images: np.ndarray, seed: int, draws: int = 1) -> np.ndarray:
    """Numbers in [0, 1) for each image, (N, draws): a hash of its bytes, keyed by the seed."""
    key = seed.to_bytes(8, "little", signed=True)
    size = 8 * draws
    digests = b"".join(hashlib.blake2b(i.tobytes(), digest_size=size, key=key).digest() for i in check_images(images))
    return (np.frombuffer(digests, dtype="<u8").reshape(-1, draws) >> np.uint64(11)) * 2.0**-53


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
        uniform = uniforms(images, self.seed)[:, 0]
        cumulative = np.cumsum(self.probabilities)
        return torch.from_numpy(np.searchsorted(cumulative / cumulative[-1], uniform, side="right").astype(np.int64))

    def state(self) -> State:
        return {"num_contexts": self.num_contexts, "probabilities": self.probabilities, "seed": self.seed}, {}


class Controlled(Contexts):
    """A control made of other contexts, its `base`: fitted and saved with it. options: its further arguments."""

    options: tuple[str, ...] = ("seed",)

    def __init__(self, base: Contexts, seed: int = 0, least: int | None = None):
        if not isinstance(base, Contexts):
            raise TypeError(f"base must be contexts, such as RandomContexts(3), got {base!r}")
        self.base, self.seed, self.num_contexts = base, whole_number("seed", seed, least=least), base.num_contexts

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Self:
        self.base.fit(images, labels, domains)
        return self

    def state(self) -> State:
        header, arrays = self.base.state()
        own = {name: getattr(self, name) for name in self.options}
        return {**own, "class": type(self.base).__name__, "base": header}, arrays

    @classmethod
    def restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        base = kind(header["class"]).restore(header["base"], arrays)
        return cls(base, *(header[name] for name in cls.options))


class ShuffledContexts(Controlled):
    """The ids of `base`, permuted across the samples of one call of `assign`: the same shares, no relation to the
    image. Assign a whole split at once: the permutation depends on the seed and on how many samples there are."""

    def __init__(self, base: Contexts, seed: int = 0):
        super().__init__(base, seed, least=0)

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        ids = self.base.assign(images, labels, domains)
        return ids[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(ids)))]


class CorruptedContexts(Controlled):
    """The ids of `base`, but with probability `rate` any of the T contexts, all equally likely, in its place (so that a
    share rate / T of them is right by chance). Which images, and what they get, is a hash of their bytes keyed by the
    seed: the same in any order or batch; what is wrong at one rate is wrong, and the same, at every higher one."""

    options = ("rate", "seed")

    def __init__(self, base: Contexts, rate: float, seed: int = 0):
        super().__init__(base, seed)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
            raise ValueError(f"rate must be a number from 0 to 1, got {rate!r}")
        self.rate: float = float(rate)

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        ids = self.base.assign(images, labels, domains)
        chance, which = torch.from_numpy(uniforms(images, self.seed, 2)).unbind(1)
        return torch.where(chance < self.rate, (which * self.num_contexts).long(), ids)

    def given_label(self) -> Tensor | None:
        known = self.base.given_label()
        return None if known is None else (1 - self.rate) * known + self.rate / self.num_contexts
