"""Contexts from the image: clusters of features, by k-means on the training images."""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.contexts.base import Contexts, State, check_images
from cnlib.mixture.arguments import whole_number
from cnlib.mixture.checks import saved_array
from cnlib.mixture.kmeans import kmeans_plus_plus, lloyd
from cnlib.mixture.samples import Samples


def color_moments(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel in gray levels, (N, 2 C), of images (N, H, W, C)."""
    blocks = []
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024].astype(np.float64)
        blocks.append(np.concatenate([block.mean((1, 2)), block.std((1, 2))], axis=1))
    return np.concatenate(blocks)


class Clusters:
    """k-means with K means: `fit(features)`, then `nearest(features)`, (N, D) and (N,). Ids go by decreasing size: 0 is
    the largest cluster of those fitted. Raises ValueError for features that are not finite real numbers (N, D)."""

    def __init__(self, count: int, seed: int = 0, device: str | None = None) -> None:
        self.count, self.seed = whole_number("num_contexts", count, least=1), whole_number("seed", seed)
        self.device, self.means = device, torch.empty(0)

    def fit(self, features: np.ndarray) -> Self:
        x = Samples(features, self.device, None)
        center = x.center()
        start = kmeans_plus_plus(x, self.count, torch.Generator().manual_seed(self.seed)) - center
        self.means = (lloyd(x, center, start) + center).cpu()
        sizes = self.nearest(features).bincount(minlength=self.count)
        self.means = self.means[sizes.argsort(descending=True, stable=True)]
        return self

    def nearest(self, features: np.ndarray) -> Tensor:
        x = Samples(features, None, None)
        return torch.cat([torch.cdist(chunk, self.means).argmin(1) for _, chunk in x.chunks()])


class KMeansContexts(Contexts):
    """Clusters of the colors of images, fitted on the training images and applied unchanged to others.

    A context is what is nearest to the mean and standard deviation of each channel, in gray levels.
    num_contexts: K; ids go by decreasing size. device: where to compute, for `fit`.
    """

    def __init__(self, num_contexts: int = 3, seed: int = 0, *, device: str | None = None):
        self.clusters = Clusters(num_contexts, seed, device)
        self.num_contexts = self.clusters.count

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Self:
        self.clusters.fit(color_moments(check_images(images)))
        return self

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        self._check_fitted()
        features = color_moments(check_images(images))
        if features.shape[1] != self.clusters.means.shape[1]:
            channels = self.clusters.means.shape[1] // 2
            raise ValueError(f"images must have {channels} channels as in fit, got {images.shape[-1]}")
        return self.clusters.nearest(features)

    def _check_fitted(self) -> None:
        if not self.clusters.means.numel():
            raise RuntimeError("KMeansContexts is not fitted: call fit(training images) or load a saved one first")

    def state(self) -> State:
        self._check_fitted()
        own = {"num_contexts": self.num_contexts, "seed": self.clusters.seed}
        return own, {"means": self.clusters.means.numpy()}

    @classmethod
    def restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        contexts, means = cls(**header), arrays.get("means")
        channels = means.shape[1] // 2 if means is not None and means.ndim == 2 else 1
        shape = (contexts.num_contexts, 2 * max(channels, 1))
        contexts.clusters.means = torch.from_numpy(saved_array(arrays, "means", shape))
        return contexts
