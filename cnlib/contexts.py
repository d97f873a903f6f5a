"""Where a context id comes from.

Every source has `fit(images, labels=None)` on the training images, `assign(images, labels=None)` -> (N,) int64 ids in
[0, num_contexts) on any images, `save(path)`, and `load(path)`; `load_contexts(path)` restores whichever was saved.
Images are uint8 arrays (N, H, W, C), memory-mapped or not.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.gmm import GaussianMixture
from cnlib.kmeans import Samples, principal_axes
from cnlib.npz import read_npz, write_npz

State = tuple[dict[str, Any], dict[str, np.ndarray]]  # header (JSON), arrays

# Superclass of each of the 100 fine classes of CIFAR-100, both in the data set's own (alphabetical) order.
# fmt: off
CIFAR100_FINE_TO_COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1,
    9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on


def _images(images: np.ndarray) -> np.ndarray:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        what = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
        raise ValueError(f"images must be a numpy uint8 array (N, H, W, C) with at least one image, got {what}")
    return images


def _labels(labels: ArrayLike | None, count: int, images: np.ndarray | None, what: str) -> np.ndarray:
    """Integer labels in [0, count), as many as images (where images are given at all)."""
    if labels is None:
        raise ValueError(f"{what} of each sample needed: assign(images, labels)")
    ids = np.asarray(labels)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be one integer a sample, (N,), got {ids.dtype} {ids.shape}")
    if images is not None and len(images) != len(ids):
        raise ValueError(f"{what}: {len(ids)} given for {len(images)} images")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"{what} must be in [0, {count}), got {int(ids.min())} to {int(ids.max())}")
    return ids.astype(np.int64)


class Contexts:
    """Base of all sources; one without anything to learn only defines `assign`."""

    num_contexts: int

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None) -> Self:
        return self

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None) -> Tensor:
        raise NotImplementedError

    def _state(self) -> State:
        raise NotImplementedError

    @classmethod
    def _restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        return cls(**header)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file, atomically and without pickle."""
        header, arrays = self._state()
        write_npz(path, {"kind": "contexts", "class": type(self).__name__, "state": header}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        contexts = load_contexts(path)
        if not isinstance(contexts, cls):
            raise ValueError(f"{os.fspath(path)} holds {type(contexts).__name__}, expected {cls.__name__}")
        return contexts


class GMMContexts(Contexts):
    """Components of a Gaussian mixture fitted on the training images, applied unchanged to others.

    Args:
        num_contexts: K, 3 in both papers. Ids go by decreasing weight: 0 is the largest component.
        covariance: as in `GaussianMixture`; "full" on raw pixels costs K (HWC)^2 numbers, so combine it with `pca`.
        features: "pixels" (the HWC gray levels) or "color" (mean and standard deviation of each channel).
        pca: project the features on this many principal axes of the training images first.
        reg_covar: in squared gray levels. 1 keeps pixels that are constant in training from deciding alone.
        tol: as in `GaussianMixture`, but per feature.
        device: where to compute, for `fit` and `assign`.

    In thousands of dimensions the responsibilities are nearly one-hot; `pca` or "color" gives softer ones.
    """

    def __init__(
        self,
        num_contexts: int = 3,
        covariance: str = "diag",
        features: str = "pixels",
        pca: int | None = None,
        seed: int = 0,
        *,
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-5,
        reg_covar: float = 1.0,
        device: str | None = None,
    ):
        if features not in ("pixels", "color"):
            raise ValueError(f"features must be 'pixels' or 'color', got {features!r}")
        if pca is not None and pca < 1:
            raise ValueError(f"pca must be None or at least 1, got {pca}")
        self.num_contexts, self.features, self.pca, self.device = num_contexts, features, pca, device
        self.tol = tol
        self.gmm = GaussianMixture(
            num_contexts,
            covariance,
            seed=seed,
            n_init=n_init,
            max_iter=max_iter,
            tol=tol,
            reg_covar=reg_covar,
            init="k-means",
            device=device,
        )
        self.image_shape: tuple[int, ...] | None = None
        self.projection: tuple[np.ndarray, np.ndarray] | None = None  # mean (D,), axes (D, pca)

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None) -> Self:
        self.image_shape = _images(images).shape[1:]
        self.projection = None
        x = self._features(images)
        if self.pca is not None:
            if self.pca > min(x.shape):
                raise ValueError(f"pca={self.pca} is more than {len(x)} images of {x.shape[1]} features allow")
            mean, axes = principal_axes(Samples(x, self.device, None), self.pca, self.gmm.seed)
            self.projection = mean.cpu().numpy(), axes.cpu().numpy()
            x = self._features(images)
        self.gmm.tol = self.tol * x.shape[1]
        self.gmm.fit(x)
        order = self.gmm.weights_.argsort(descending=True, stable=True)
        self.gmm.weights_, self.gmm.means_ = self.gmm.weights_[order], self.gmm.means_[order]
        if self.gmm.covariance != "tied":
            self.gmm.covariances_ = self.gmm.covariances_[order]
        return self

    def _features(self, images: np.ndarray) -> np.ndarray:
        """(N, D): uint8 gray levels, or float32 features computed a block of images at a time."""
        if self.image_shape is None:
            raise RuntimeError("GMMContexts is not fitted: call fit(training images) or load a saved one first")
        if _images(images).shape[1:] != self.image_shape:
            raise ValueError(f"images must be {self.image_shape} as in fit, got {images.shape[1:]}")
        if self.features == "pixels" and self.projection is None:
            return images.reshape(len(images), -1)
        blocks = []
        for start in range(0, len(images), 1024):
            block = images[start : start + 1024].astype(np.float64)
            if self.features == "color":
                block = np.concatenate([block.mean((1, 2)), block.std((1, 2))], axis=1)
            block = block.reshape(len(block), -1)
            if self.projection is not None:
                block = (block - self.projection[0]) @ self.projection[1]
            blocks.append(block.astype(np.float32))
        return np.concatenate(blocks)

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None) -> Tensor:
        return self.gmm.predict(self._features(images))

    def responsibilities(self, images: np.ndarray) -> Tensor:
        """(N, num_contexts) float32, rows sum to 1: what `MixtureNorm` takes."""
        return self.gmm.responsibilities(self._features(images))

    def _state(self) -> State:
        if self.image_shape is None:
            raise RuntimeError("GMMContexts is not fitted: nothing to save")
        gmm, arrays = self.gmm.state()
        if self.projection is not None:
            arrays |= dict(zip(("mean", "axes"), self.projection, strict=True))
        own = {"features": self.features, "pca": self.pca, "tol": self.tol, "image_shape": self.image_shape}
        return own | {"gmm": gmm}, arrays

    @classmethod
    def _restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        gmm = header["gmm"]
        contexts = cls(gmm["num_components"], gmm["covariance"], header["features"], header["pca"], tol=header["tol"])
        if contexts.pca is not None:
            contexts.projection = arrays.pop("mean"), arrays.pop("axes")
        contexts.gmm = GaussianMixture.from_state(gmm, arrays)
        contexts.image_shape = tuple(header["image_shape"])
        return contexts


class SuperclassContexts(Contexts):
    """The superclass of each sample's class; by default the 20 superclasses of CIFAR-100.

    Leakage: this context is computed from the label, of the test images too. A network that is given it chooses
    among five classes, not a hundred. Compare only with models that get the same information.
    """

    def __init__(self, fine_to_coarse: Sequence[int] = CIFAR100_FINE_TO_COARSE):
        self.fine_to_coarse = np.asarray(fine_to_coarse, dtype=np.int64)
        self.num_contexts = int(self.fine_to_coarse.max()) + 1

    def assign(self, images: np.ndarray | None, labels: ArrayLike | None = None) -> Tensor:
        return torch.from_numpy(self.fine_to_coarse[_labels(labels, len(self.fine_to_coarse), images, "class labels")])

    def _state(self) -> State:
        return {"fine_to_coarse": self.fine_to_coarse.tolist()}, {}


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
        return torch.from_numpy(_labels(labels, self.num_contexts, images, "domains"))

    def _state(self) -> State:
        return {"names": self.names}, {}


class RandomContexts(Contexts):
    """A context drawn once for each image: a keyed hash of its bytes, so that an image keeps its context in any order,
    batch or process (and equal images share theirs). RandomContexts(1) is the constant context."""

    def __init__(self, num_contexts: int, probabilities: Sequence[float] | None = None, seed: int = 0):
        if num_contexts < 1:
            raise ValueError(f"num_contexts must be at least 1, got {num_contexts}")
        p = np.full(num_contexts, 1 / num_contexts) if probabilities is None else np.asarray(probabilities, dtype=float)
        if p.shape != (num_contexts,) or not (p >= 0).all() or abs(p.sum() - 1) > 1e-6:
            raise ValueError(f"probabilities must be {num_contexts} numbers >= 0 that sum to 1, got {probabilities}")
        self.num_contexts, self.probabilities, self.seed = num_contexts, p.tolist(), seed

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None) -> Tensor:
        key = self.seed.to_bytes(8, "little", signed=True)
        digests = b"".join(hashlib.blake2b(i.tobytes(), digest_size=8, key=key).digest() for i in _images(images))
        uniform = (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) * 2.0**-53
        cumulative = np.cumsum(self.probabilities)
        return torch.from_numpy(np.searchsorted(cumulative / cumulative[-1], uniform, side="right").astype(np.int64))

    def _state(self) -> State:
        return {"num_contexts": self.num_contexts, "probabilities": self.probabilities, "seed": self.seed}, {}


class ShuffledContexts(Contexts):
    """The ids of `base`, permuted across the samples of one call of `assign`: the same shares, no relation to the
    image. Assign a whole split at once: the permutation depends on the seed and on how many samples there are."""

    def __init__(self, base: Contexts, seed: int = 0):
        self.base, self.seed, self.num_contexts = base, seed, base.num_contexts

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None) -> Self:
        self.base.fit(images, labels)
        return self

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None) -> Tensor:
        ids = self.base.assign(images, labels)
        return ids[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(ids)))]

    def _state(self) -> State:
        header, arrays = self.base._state()
        return {"seed": self.seed, "class": type(self.base).__name__, "base": header}, arrays

    @classmethod
    def _restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        return cls(_class(header["class"])._restore(header["base"], arrays), header["seed"])


def _class(name: str) -> type[Contexts]:
    known = {c.__name__: c for c in (GMMContexts, SuperclassContexts, DomainContexts, RandomContexts, ShuffledContexts)}
    if name not in known:
        raise ValueError(f"unknown contexts {name!r}, expected one of {sorted(known)}")
    return known[name]


def load_contexts(path: str | os.PathLike[str]) -> Contexts:
    """Read what `save` of any of these classes wrote."""
    header, arrays = read_npz(path, "contexts")
    return _class(header["class"])._restore(header["state"], arrays)
