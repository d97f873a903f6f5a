"""Contexts from the image: components of a Gaussian mixture fitted on the training images."""

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_images
from cnlib.contexts.kmeans import color_moments
from cnlib.mixture.arguments import one_of, real_number, whole_number
from cnlib.mixture.checks import saved_array
from cnlib.mixture.gaussian import GaussianMixture
from cnlib.mixture.samples import Samples, principal_axes


class GMMContexts(Contexts):
    """Components of a Gaussian mixture fitted on the training images, applied unchanged to others. `gmm` is it.

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
        self.num_contexts = whole_number("num_contexts", num_contexts, least=1)
        self.pca = None if pca is None else whole_number("pca", pca, least=1)
        self.features = one_of("features", features, ("pixels", "color"))
        self.tol, self.device = real_number("tol", tol), device
        self.options: dict[str, Any] = {
            "covariance": covariance,
            "seed": seed,
            "n_init": n_init,
            "max_iter": max_iter,
            "reg_covar": reg_covar,
        }
        # checks the options; `fit` makes another when it knows how many features there are
        self.gmm = self._mixture(num_features=1)
        self.options = {name: getattr(self.gmm, name) for name in self.options}
        self.image_shape: tuple[int, ...] | None = None
        # mean (D,) and axes (D, pca)
        self.projection: tuple[np.ndarray, np.ndarray] | None = None

    def _mixture(self, num_features: int) -> GaussianMixture:
        tol = self.tol * num_features
        return GaussianMixture(self.num_contexts, tol=tol, init="k-means", device=self.device, **self.options)

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Self:
        self.image_shape = check_images(images).shape[1:]
        self.projection = None
        x = self.features_of(images)
        if self.pca is not None:
            if self.pca > min(x.shape):
                raise ValueError(f"pca={self.pca} is more than {len(x)} images of {x.shape[1]} features allow")
            mean, axes = principal_axes(Samples(x, self.device, None), self.pca, self.gmm.seed)
            self.projection = mean.cpu().numpy(), axes.cpu().numpy()
            x = self.features_of(images)
        self.gmm = self._mixture(x.shape[1]).fit(x)
        order = self.gmm.weights_.argsort(descending=True, stable=True)
        self.gmm.weights_, self.gmm.means_ = self.gmm.weights_[order], self.gmm.means_[order]
        if self.gmm.covariance != "tied":
            self.gmm.covariances_ = self.gmm.covariances_[order]
        return self

    def features_of(self, images: np.ndarray) -> np.ndarray:
        """(N, D): uint8 gray levels, or float32 features computed a block of images at a time."""
        if self.image_shape is None:
            raise RuntimeError("GMMContexts is not fitted: call fit(training images) or load a saved one first")
        if check_images(images).shape[1:] != self.image_shape:
            raise ValueError(f"images must be {self.image_shape} as in fit, got {images.shape[1:]}")
        if self.features == "pixels" and self.projection is None:
            return images.reshape(len(images), -1)
        blocks = []
        for start in range(0, len(images), 1024):
            block = images[start : start + 1024].astype(np.float64)
            if self.features == "color":
                block = color_moments(block)
            block = block.reshape(len(block), -1)
            if self.projection is not None:
                block = (block - self.projection[0]) @ self.projection[1]
            blocks.append(block.astype(np.float32))
        return np.concatenate(blocks)

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        return self.gmm.predict(self.features_of(images))

    def responsibilities(self, images: np.ndarray) -> Tensor:
        """(N, num_contexts) float32, rows sum to 1: what `MixtureNorm` takes."""
        return self.gmm.responsibilities(self.features_of(images))

    def state(self) -> State:
        if self.image_shape is None:
            raise RuntimeError("GMMContexts is not fitted: nothing to save")
        gmm, arrays = self.gmm.state()
        if self.projection is not None:
            arrays |= dict(zip(("mean", "axes"), self.projection, strict=True))
        own = {"features": self.features, "pca": self.pca, "tol": self.tol, "image_shape": self.image_shape}
        return own | {"gmm": gmm}, arrays

    @classmethod
    def restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        gmm = GaussianMixture.from_state(header["gmm"], arrays)
        options = {name: getattr(gmm, name) for name in ("covariance", "seed", "n_init", "max_iter", "reg_covar")}
        own = {name: header[name] for name in ("features", "pca", "tol")}
        contexts = cls(gmm.num_components, **own, **options)
        contexts.gmm = gmm
        shape = header["image_shape"]
        if not isinstance(shape, list | tuple) or len(shape) != 3:
            raise ValueError(f"the saved image_shape must be height, width and channels, got {shape!r:.60}")
        contexts.image_shape = tuple(whole_number("the saved image_shape", size, least=1) for size in shape)
        count = num_features = math.prod(contexts.image_shape) if contexts.features == "pixels" else 2 * shape[2]
        if contexts.pca is not None:
            count = contexts.pca
            axes = saved_array(arrays, "axes", (num_features, count))
            if not np.allclose(axes.T @ axes, np.eye(count), rtol=0, atol=1e-6):
                raise ValueError("the saved axes must be at right angles and of length 1")
            contexts.projection = saved_array(arrays, "mean", (num_features,)), axes
        if gmm.means_.shape[1] != count or not math.isclose(gmm.tol, contexts.tol * count):
            raise ValueError(
                f"the saved mixture must have {count} features and tol {contexts.tol * count}, got "
                f"{gmm.means_.shape[1]} and {gmm.tol}"
            )
        return contexts
