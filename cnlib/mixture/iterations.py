"""EM from one or several starts, until the likelihood settles."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cnlib.mixture.em import CollapsedError, Parameters, make_step, normalize
from cnlib.mixture.kmeans import initial_parameters
from cnlib.mixture.samples import Samples


def best_of_starts(
    samples: Samples,
    center: Tensor,
    given: Mapping[str, Tensor],
    *,
    num_components: int,
    covariance: str,
    init: str,
    seed: int,
    n_init: int,
    reg_covar: float,
    tol: float,
    max_iter: int,
    before: Sequence[float] = (),
) -> tuple[list[float], Parameters]:
    """What `iterate` returns from the start with the best last bound, out of n_init (one where all of it is `given`).

    Raises CollapsedError where a covariance is singular in every start."""
    generator = torch.Generator().manual_seed(seed)
    scatter = samples.scatter(center) if covariance == "tied" else None
    fits: list[tuple[list[float], Parameters]] = []
    collapsed: CollapsedError | None = None
    for _ in range(1 if len(given) == 3 else n_init):
        try:
            start = initial_parameters(
                samples,
                center,
                scatter,
                given,
                num_components=num_components,
                covariance=covariance,
                reg_covar=reg_covar,
                init=init,
                generator=generator,
            )
            iterations = {"reg_covar": reg_covar, "tol": tol, "max_iter": max_iter, "before": before}
            fits.append(iterate(samples, start, covariance, scatter, **iterations))  # type: ignore[arg-type]
        except CollapsedError as error:
            collapsed = error
    if collapsed is not None and not fits:
        raise collapsed
    return max(fits, key=lambda fit: fit[0][-1:])


def iterate(
    samples: Samples,
    parameters: Parameters,
    covariance: str,
    scatter: Tensor | None,
    *,
    reg_covar: float,
    tol: float,
    max_iter: int,
    before: Sequence[float] = (),
) -> tuple[list[float], Parameters]:
    """The mean log-likelihood at the start of each iteration, and the last parameters. `before`: of the iterations that
    this goes on from.

    Raises CollapsedError where a covariance is singular, ValueError where the likelihood overflows.
    """
    bounds: list[float] = []
    while len(bounds) < max_iter and not settled([*before, *bounds], tol):
        step = make_step(parameters, covariance, reg_covar, scatter)
        bound = samples.sweep(step, lambda logits, _: normalize(logits)) / len(samples)
        if not math.isfinite(bound):
            raise ValueError(f"the mean log-likelihood is {bound}: rescale x, its squares overflow float64")
        parameters = step.maximize()
        bounds.append(bound)
    return bounds, parameters


def settled(bounds: Sequence[float], tol: float) -> bool:
    """Whether the last iteration changed the mean log-likelihood by less than tol."""
    return len(bounds) > 1 and abs(bounds[-1] - bounds[-2]) < tol
