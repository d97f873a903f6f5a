"""Mixtures of Gaussians by maximum likelihood (expectation-maximization), on CPU and GPU.

Dempster, Laird & Rubin 1977. Parameter names, the order of the steps, the stopping rule and the meaning of
`reg_covar` are scikit-learn's, so that both reach the same numbers from the same start.
"""

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cnlib.mixture.arguments import known_device, one_of, real_number, refused_by_name, whole_number, yes_or_no
from cnlib.mixture.checks import given_start, saved_history, saved_parameters, start_values
from cnlib.mixture.em import Parameters, cholesky, make_step, normalize
from cnlib.mixture.iterations import best_of_starts, settled
from cnlib.mixture.samples import Array, Samples
from cnlib.storage import read_npz, write_npz

COVARIANCES = ("full", "diag", "spherical", "tied")
INITS = ("k-means++", "random", "k-means", "random_from_data")
SAVED = ("num_components", "covariance", "n_init", "tol", "max_iter", "reg_covar", "init", "seed", "chunk_size")
FITTED = ("converged_", "n_iter_", "lower_bound_", "lower_bounds_")


class GaussianMixture:
    """Mixture of `num_components` Gaussians in R^D.

    `x` is (N, D): a tensor or an array, float or integer (uint8 images need no float copy), memory-mapped or not.
    It is read in chunks, so that memory does not grow with N beyond a few numbers per sample. Arithmetic and
    parameters are float64 whatever the type of `x`; what is returned per sample is float64 for float64 data,
    otherwise float32, on the device of `x`.

    Args:
        num_components: K.
        covariance: "full", "diag", "spherical" or "tied".
        n_init: number of starts; the one with the best likelihood is kept. One is enough if the start is given.
        tol: stop when the mean log-likelihood per sample changes by less than this in one iteration.
        max_iter: most iterations for each start; 0 keeps the start.
        reg_covar: added to the diagonal of each covariance, in squared units of `x`. With 0 the likelihood never
            decreases; with more it may, slightly, where a variance is of the order of reg_covar.
        init: "k-means++" (greedy seeding, then each sample to its nearest seed), "k-means" (Lloyd's iterations in
            between), "random_from_data" (samples drawn as seeds, each other to its nearest) or "random" (random
            responsibilities: all components start near the global mean).
        weights_init, means_init, precisions_init: (K,), (K, D) and inverse covariances in the shape of
            `covariances_`; each replaces that part of the start. Given means are also the seeds of the rest.
        seed: of the starts. The same seed gives the same fit.
        device: where to compute; None: where `x` is. MPS has no float64, so there the CPU computes.
        warm_start: `fit` goes on from the parameters of the last fit, where there are some.
        chunk_size: samples at a time; None: as many as stay in the cache (CPU) or in about 128 MB (GPU).

    Attributes after `fit` (tensors are float64, on the computing device):
        weights_ (K,), means_ (K, D), covariances_: full (K, D, D), tied (D, D), diag (K, D), spherical (K,);
        converged_, n_iter_; lower_bounds_: mean log-likelihood per sample at the start of each iteration, a list;
        lower_bound_: the last of them.
    """

    weights_: Tensor
    means_: Tensor
    covariances_: Tensor

    def __init__(
        self,
        num_components: int,
        covariance: str = "full",
        *,
        n_init: int = 1,
        tol: float = 1e-3,
        max_iter: int = 100,
        reg_covar: float = 1e-6,
        init: str = "k-means++",
        weights_init: Array | None = None,
        means_init: Array | None = None,
        precisions_init: Array | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        chunk_size: int | None = None,
        warm_start: bool = False,
    ):
        self.num_components = whole_number("num_components", num_components, least=1)
        self.n_init = whole_number("n_init", n_init, least=1)
        self.max_iter = whole_number("max_iter", max_iter, least=0)
        self.chunk_size = None if chunk_size is None else whole_number("chunk_size", chunk_size, least=1)
        self.seed = whole_number("seed", seed)
        self.covariance, self.init = (
            one_of("covariance", covariance, COVARIANCES),
            one_of("init", init, INITS),
        )
        self.tol, self.reg_covar = real_number("tol", tol), real_number("reg_covar", reg_covar)
        self.device, self.warm_start = known_device(device), yes_or_no("warm_start", warm_start)
        self.weights_init, self.means_init, self.precisions_init = weights_init, means_init, precisions_init
        for name in ("weights_init", "means_init", "precisions_init"):
            if getattr(self, name) is not None:
                start_values(name, getattr(self, name))
        self.converged_, self.n_iter_, self.lower_bound_ = False, 0, -math.inf
        self.lower_bounds_: list[float] = []

    def __repr__(self) -> str:
        return f"GaussianMixture({self.num_components}, covariance={self.covariance!r}, seed={self.seed})"

    @torch.no_grad()
    def fit(self, x: Array) -> Self:
        """Estimate the parameters from (N, D) samples.

        Raises ValueError on nan or inf, on fewer samples than components, and when a covariance is singular in spite
        of `reg_covar` (in every start). Warns when the kept start did not converge or a component ended without
        samples."""
        samples = self._samples(x)
        if len(samples) < self.num_components:
            raise ValueError(
                f"x holds {len(samples)} samples, expected at least num_components={self.num_components}: give more "
                "samples, or use fewer components"
            )
        center = samples.center()
        start = {"weights": self.weights_init, "means": self.means_init, "precisions": self.precisions_init}
        given = given_start(start, self.covariance, self.num_components, center)
        before: list[float] = []
        if self.warm_start and hasattr(self, "means_"):
            self._check_features(samples)
            last = Parameters(self.weights_, self.means_.to(center) - center, self.covariances_, center)
            given = {name: value for name, value in vars(last.to(center.device)).items() if name != "center"}
            before = [] if self.converged_ else self.lower_bounds_[-1:]
        options = {name: getattr(self, name) for name in SAVED if name != "chunk_size"}
        with samples.threads():
            self.lower_bounds_, best = best_of_starts(samples, center, given, before=before, **options)
        self.lower_bound_ = self.lower_bounds_[-1] if self.lower_bounds_ else -math.inf
        self.n_iter_, self.converged_ = len(self.lower_bounds_), settled([*before, *self.lower_bounds_], self.tol)
        self.weights_, self.means_, self.covariances_ = best.weights, best.means + center, best.covariances
        self._warn(len(samples))
        return self

    def _warn(self, num_samples: int) -> None:
        empty = (self.weights_ * num_samples < 1e-6).nonzero().flatten().tolist()
        if empty:
            text = f"component(s) {empty} hold no samples: x has fewer groups than num_components={self.num_components}"
            warnings.warn(f"{text}, or try another seed", RuntimeWarning, stacklevel=4)
        if self.max_iter and not self.converged_:
            text = f"EM did not reach tol={self.tol} in max_iter={self.max_iter} iterations: increase one of them"
            warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _check_fitted(self) -> None:
        if not hasattr(self, "means_"):
            raise RuntimeError("this mixture has no parameters yet: call fit(x) or load(path) first")

    def _check_features(self, samples: Samples) -> None:
        if samples.x.shape[1] != self.means_.shape[1]:
            raise ValueError(f"x must be (N, {self.means_.shape[1]}) as in fit, got {tuple(samples.x.shape)}")

    def _samples(self, x: Array) -> Samples:
        floats_per_feature = self.num_components if self.covariance == "full" else 1
        return Samples(x, self.device, self.chunk_size, floats_per_feature)

    def _evaluate(self, x: Array) -> Iterator[tuple[Samples, Tensor, Tensor]]:
        """For each chunk: log p(x) (n,) and the responsibilities (K, n)."""
        self._check_fitted()
        samples = self._samples(x)
        self._check_features(samples)
        center = self.weights_ @ self.means_
        parameters = Parameters(self.weights_, self.means_ - center, self.covariances_, center)
        step = make_step(parameters.to(samples.device), self.covariance)
        for _, chunk in samples.chunks():
            responsibilities = step.log_joint(chunk)
            log_density = normalize(responsibilities)
            if not bool(log_density.isfinite().all()):
                samples.check_finite()
                raise ValueError("x lies so far from the mixture that its log density overflows float64")
            yield samples, log_density, responsibilities

    @torch.no_grad()
    def responsibilities(self, x: Array) -> Tensor:
        """p(component | x), (N, K); rows sum to 1 (scikit-learn's `predict_proba`)."""
        return torch.cat([r.T.to(samples.x.device, samples.out_dtype) for samples, _, r in self._evaluate(x)])

    @torch.no_grad()
    def predict(self, x: Array) -> Tensor:
        """The likeliest component of each sample, (N,) int64."""
        return torch.cat([r.argmax(0).to(samples.x.device) for samples, _, r in self._evaluate(x)])

    @torch.no_grad()
    def score_samples(self, x: Array) -> Tensor:
        """log p(x_n), (N,), in nats."""
        return torch.cat([p.to(samples.x.device, samples.out_dtype) for samples, p, _ in self._evaluate(x)])

    @torch.no_grad()
    def log_likelihood(self, x: Array) -> Tensor:
        """Mean over the samples of log p(x_n), in nats, a 0-dim float64 tensor (scikit-learn's `score`)."""
        parts = [(p.sum(), len(p)) for _, p, _ in self._evaluate(x)]
        return torch.stack([total for total, _ in parts]).sum() / sum(n for _, n in parts)

    def num_parameters(self) -> int:
        """Free parameters of the fitted mixture."""
        self._check_fitted()
        k, d = self.means_.shape
        covariances = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d, "spherical": k}
        return covariances[self.covariance] + k * d + k - 1

    def bic(self, x: Array) -> float:
        """Bayesian information criterion on x; lower is better."""
        return -2 * len(x) * float(self.log_likelihood(x)) + self.num_parameters() * math.log(len(x))

    def aic(self, x: Array) -> float:
        """Akaike information criterion on x; lower is better."""
        return -2 * len(x) * float(self.log_likelihood(x)) + 2 * self.num_parameters()

    @torch.no_grad()
    def sample(self, num_samples: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Independent samples (num_samples, D) in float64 and the component of each (num_samples,), on the CPU."""
        self._check_fitted()
        num_samples = whole_number("num_samples", num_samples, least=1)
        generator = torch.Generator().manual_seed(self.seed if seed is None else whole_number("seed", seed))
        weights, means, covariances = (value.cpu() for value in (self.weights_, self.means_, self.covariances_))
        labels = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
        noise = torch.randn(num_samples, means.shape[1], generator=generator, dtype=means.dtype)
        if self.covariance in ("full", "tied"):
            factors = cholesky(covariances, "covariance").expand(len(means), -1, -1)
            for k, factor in enumerate(factors):
                noise[labels == k] = noise[labels == k] @ factor.T
        else:
            noise *= covariances.view(len(means), -1)[labels].sqrt()
        return means[labels] + noise, labels

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The fitted mixture as plain values and arrays. Device and given starts are not part of it."""
        self._check_fitted()
        header = {name: getattr(self, name) for name in SAVED + FITTED}
        return header, {name: getattr(self, name).cpu().numpy() for name in ("weights_", "means_", "covariances_")}

    @classmethod
    def from_state(
        cls, header: dict[str, Any], arrays: dict[str, np.ndarray], device: torch.device | str | None = None
    ) -> Self:
        """What `state` returned, restored. Raises ValueError where a part is missing, has another shape, or
        contradicts the rest."""
        if missing := [name for name in SAVED + FITTED if name not in header]:
            raise ValueError(f"the saved mixture lacks {', '.join(missing)}: fit it again and save it")
        mixture = cls(**{name: header[name] for name in SAVED}, device=device)
        parameters = saved_parameters(arrays, mixture.covariance, mixture.num_components)
        saved_history(header, mixture.tol)
        for name in FITTED:
            setattr(mixture, name, header[name])
        for name, value in parameters.items():
            setattr(mixture, name, value.to(device))
        return mixture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted mixture to one .npz file, atomically and without pickle."""
        header, arrays = self.state()
        write_npz(path, {"kind": "GaussianMixture", **header}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> Self:
        """Read what `save` wrote. Raises ValueError that names the file where it is damaged, or is another."""
        with refused_by_name(path, "GaussianMixture"):
            return cls.from_state(*read_npz(path, "GaussianMixture"), device=device)
