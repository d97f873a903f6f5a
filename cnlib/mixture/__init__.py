"""Mixtures of Gaussians: the estimator, EM, k-means, and samples read in chunks."""

from cnlib.mixture.gaussian import GaussianMixture

__all__ = ["GaussianMixture"]
