"""One iteration of expectation-maximization for a mixture of Gaussians, over one chunk of samples at a time.

A step object is built from the current parameters. For each chunk, `log_joint` gives log(weight_k N(x_n; k)) as a
(K, n) tensor (components first: the softmax over few components then runs along contiguous memory) and keeps
what the moments need; `accumulate` adds the chunk's moments while it is still in cache; `maximize` turns them into
the next parameters. Nothing of the size of the data is ever held.

All arithmetic is float64 and relative to a `center` (the data mean), so that E[x^2] - E[x]^2 loses nothing to an
offset of the data; for full covariances the moments are taken about each component's old mean as well.
"""

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# As in scikit-learn: the mass (in samples) under which a component has no say of its own.
TINY_MASS = 10 * torch.finfo(torch.float64).eps


class CollapsedError(ValueError):
    """A covariance is not positive definite: a component sits on too few distinct samples."""


@dataclass
class Parameters:
    """Weights (K,), means (K, D) relative to `center` (D,), and covariances in scikit-learn's shapes:
    full (K, D, D), tied (D, D), diag (K, D), spherical (K,)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    center: Tensor

    def to(self, device: torch.device) -> "Parameters":
        return Parameters(**{name: value.to(device) for name, value in vars(self).items()})


def cholesky(matrices: Tensor, what: str) -> Tensor:
    """Lower Cholesky factors of (..., D, D); `what` names the matrices in the error."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool((info > 0).any()):
        _collapsed(what, (info > 0).reshape(-1))
    return factor


def _collapsed(what: str, bad: Tensor) -> None:
    where = f" of component(s) {bad.nonzero().flatten().tolist()}" if bad.numel() > 1 else ""
    raise CollapsedError(
        f"the {what}{where} is not positive definite: too few distinct samples, or features that depend linearly on "
        "one another. Increase reg_covar, use fewer components or a simpler covariance, or rescale the data."
    )


def normalize(logits: Tensor) -> Tensor:
    """Turn (K, n) log joint densities into responsibilities, in place; return log p(x_n) as (n,)."""
    top = logits.amax(0)
    total = logits.sub_(top).exp_().sum(0)
    logits.div_(total)
    return total.log_().add_(top)


def harden(logits: Tensor) -> Tensor:
    """Like `normalize`, but all the responsibility goes to the likeliest component (k-means); return max_k (n,)."""
    top, best = logits.max(0)
    logits.zero_().scatter_(0, best[None], 1.0)
    return top


class _Step:
    def __init__(self, parameters: Parameters):
        self.old = parameters
        self.num_features = parameters.means.shape[1]
        self.mass = torch.zeros_like(parameters.weights)
        # moments, as each kind of step needs them
        self.first = self.second = torch.empty(0)
        self.buffer: Tensor | None = None

    def _rows(self, n: int, width: int) -> Tensor:
        """A reusable (n, width) workspace: allocating it for every chunk costs as much as filling it."""
        if self.buffer is None or self.buffer.numel() < n * width:
            self.buffer = self.old.means.new_empty(n * width)
        return self.buffer[: n * width].view(n, width)

    def fork(self, buffer: Tensor | None) -> Self:
        """The same step with moments of its own, for another thread."""
        other = copy.copy(self)
        other.buffer = buffer
        for name in ("mass", "first", "second"):
            setattr(other, name, torch.zeros_like(getattr(self, name)))
        return other

    def merge(self, other: Self) -> None:
        for name in ("mass", "first", "second"):
            getattr(self, name).add_(getattr(other, name))

    def _constant(self, half_log_det_precision: Tensor) -> Tensor:
        normalizer = 0.5 * self.num_features * math.log(2 * math.pi)
        return self.old.weights.log() + half_log_det_precision - normalizer

    def _finish(self, means: Tensor, covariances: Tensor) -> Parameters:
        # A component without mass keeps its place: its old parameters with weight ~0 are an exact maximizer too,
        # so the likelihood cannot fall and nothing divides by zero.
        empty = self.mass < TINY_MASS
        means = torch.where(empty[:, None], self.old.means, means)
        if self.separate:
            shape = (-1,) + (1,) * (covariances.ndim - 1)
            covariances = torch.where(empty.view(shape), self.old.covariances, covariances)
        mass = self.mass + TINY_MASS
        return Parameters(mass / mass.sum(), means, covariances, self.old.center)

    # each component has a covariance of its own
    separate = True


class _QuadraticStep(_Step):
    """diag, spherical and tied: the log density is linear in the squares (x - center)^2 (their sum but for diag) and
    in x, so that matrix products give the densities and the moments. tied is spherical after whitening x by the
    shared covariance."""

    def __init__(self, parameters: Parameters, covariance: str, reg_covar: float, scatter: Tensor | None):
        super().__init__(parameters)
        self.reg_covar, self.scatter, self.separate = reg_covar, scatter, covariance != "tied"
        means, covariances = parameters.means, parameters.covariances
        self.factor: Tensor | None = None
        if covariance == "tied":
            self.factor = cholesky(covariances, "shared covariance")
            eye = torch.eye(self.num_features, dtype=means.dtype, device=means.device)
            self.whitener = torch.linalg.solve_triangular(self.factor, eye, upper=False).T
            means = means @ self.whitener
            precisions = torch.ones_like(means[:, :1])
            half_log_det = -self.factor.diagonal().log().sum()
        else:
            variances = covariances.view(len(means), -1)  # (K, D) or (K, 1)
            if bool((variances <= 0).any()):
                _collapsed("covariance", (variances <= 0).any(1))
            precisions = variances.reciprocal()
            half_log_det = 0.5 * precisions.log().sum(1) * (self.num_features / variances.shape[1])
        self.slopes, self.curvatures = precisions * means, -0.5 * precisions
        # For diag, where x is of the size of x - center, x itself (in cache already) serves as the linear part, and
        # the centered copy can be squared in place. Under a large offset that would cost digits.
        self.raw = False
        if precisions.shape[1] > 1:
            spread = means.abs().amax(0) + precisions.rsqrt().amax(0)
            self.raw = bool((parameters.center.abs() <= 4 * spread).all())
        self.origin = parameters.center if self.raw else torch.zeros_like(parameters.center)
        constant = self._constant(half_log_det) - (self.slopes * (0.5 * means + self.origin)).sum(1)
        self.constant = constant[:, None]
        self.first, self.second = torch.zeros_like(self.slopes), torch.zeros_like(precisions)

    def log_joint(self, x: Tensor) -> Tensor:
        self.linear = torch.sub(x, self.old.center, out=self._rows(len(x), self.num_features))
        if self.factor is not None:
            self.linear = self.linear @ self.whitener
        if self.second.shape[1] == 1:
            self.squares = torch.linalg.vector_norm(self.linear, dim=1, keepdim=True).square_()
        elif self.raw:
            self.squares, self.linear = self.linear.square_(), x
        else:
            self.squares = self.linear.square()
        logits = torch.addmm(self.constant, self.curvatures, self.squares.T)
        return logits.addmm_(self.slopes, self.linear.T)

    def accumulate(self, responsibilities: Tensor) -> None:
        self.mass += responsibilities.sum(1)
        self.first.addmm_(responsibilities, self.linear)
        self.second.addmm_(responsibilities, self.squares)

    def maximize(self) -> Parameters:
        mass = self.mass.clamp(min=TINY_MASS)[:, None]
        means, second = self.first / mass - self.origin, self.second / mass
        if self.factor is not None:
            assert self.scatter is not None
            means = means @ self.factor.T
            covariances = (self.scatter - (self.mass[:, None] * means).T @ means) / self.mass.sum()
            covariances.diagonal().add_(self.reg_covar)
        else:
            if second.shape[1] > 1 or self.num_features == 1:
                variances = second - means.square()
            else:
                variances = (second - means.square().sum(1, keepdim=True)) / self.num_features
            # Rounding may leave a constant feature a variance just under zero.
            covariances = variances.clamp_(min=0).add_(self.reg_covar).view_as(self.old.covariances)
        return self._finish(means, covariances)


class _FullStep(_Step):
    """full: y = L_k^-1 (x - m_k) for all components in one batched product; the moments are those of y, which are of
    order one however far apart the components lie."""

    def __init__(self, parameters: Parameters, reg_covar: float):
        super().__init__(parameters)
        self.reg_covar = reg_covar
        self.factor = cholesky(parameters.covariances, "covariance")
        eye = torch.eye(self.num_features, dtype=self.factor.dtype, device=self.factor.device)
        self.whitener = torch.linalg.solve_triangular(self.factor, eye, upper=False).mT.contiguous()
        self.shift = -(parameters.means[:, None] @ self.whitener)  # (K, 1, D)
        self.constant = self._constant(-self.factor.diagonal(dim1=1, dim2=2).log().sum(1))[:, None]
        self.first = torch.zeros_like(self.shift)
        self.second = torch.zeros_like(self.factor)

    def log_joint(self, x: Tensor) -> Tensor:
        n, components = len(x), len(self.mass)
        centered = x - self.old.center
        self.white = self._rows(n, components * self.num_features).view(components, n, self.num_features)
        torch.baddbmm(self.shift, centered.expand(components, -1, -1), self.whitener, out=self.white)
        return self.constant - 0.5 * torch.linalg.vecdot(self.white, self.white)

    def accumulate(self, responsibilities: Tensor) -> None:
        self.mass += responsibilities.sum(1)
        roots = responsibilities.sqrt()
        self.white *= roots[:, :, None]
        self.first.baddbmm_(roots[:, None], self.white)
        self.second.baddbmm_(self.white.mT, self.white)

    def maximize(self) -> Parameters:
        mass = self.mass.clamp(min=TINY_MASS)[:, None, None]
        move = self.first / mass  # (K, 1, D), in whitened coordinates
        inner = self.second / mass - move.mT @ move
        covariances = self.factor @ inner @ self.factor.mT
        covariances = 0.5 * (covariances + covariances.mT)
        covariances.diagonal(dim1=1, dim2=2).add_(self.reg_covar)
        means = self.old.means + (move @ self.factor.mT)[:, 0]
        return self._finish(means, covariances)


Step = _QuadraticStep | _FullStep


def make_step(parameters: Parameters, covariance: str, reg_covar: float = 0.0, scatter: Tensor | None = None) -> Step:
    """The step for a covariance type. `scatter`: sum over samples of (x - center)(x - center)^T, which the M-step of
    tied needs (it is the same in every iteration)."""
    if covariance == "full":
        return _FullStep(parameters, reg_covar)
    return _QuadraticStep(parameters, covariance, reg_covar, scatter)


def unit_parameters(means: Tensor, center: Tensor, covariance: str) -> Parameters:
    """Equal weights and unit covariances about (K, D) means: the nearest mean is the likeliest component."""
    k, d = means.shape
    if covariance in ("full", "tied"):
        covariances = torch.eye(d, dtype=means.dtype, device=means.device)
        covariances = covariances.repeat(k, 1, 1) if covariance == "full" else covariances
    else:
        covariances = torch.ones_like(means if covariance == "diag" else means[:, 0])
    return Parameters(torch.full_like(means[:, 0], 1 / k), means, covariances, center)
