"""k-means on samples read in chunks, and what it is for here: where EM starts."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cnlib.mixture.em import Parameters, harden, make_step, unit_parameters
from cnlib.mixture.samples import DTYPE, Samples


def kmeans_plus_plus(x: Samples, num_components: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007), greedy: of a few candidates drawn in proportion to the squared
    distance to the nearest seed, keep the one that leaves the least. Returns (K, D)."""
    n, trials = len(x), 2 + int(math.log(num_components))
    closest = torch.full((n,), torch.inf, dtype=DTYPE, device=x.device)
    candidates = torch.randint(n, (1,), generator=generator)
    seeds: list[Tensor] = []
    while True:
        points = x[candidates]
        nearest = torch.empty(len(points), n, dtype=DTYPE, device=x.device)
        for where, chunk in x.chunks():
            # Not by matrix product: the distance of equal samples has to be exactly 0.
            distances = torch.cdist(points, chunk, compute_mode="donot_use_mm_for_euclid_dist").square_()
            nearest[:, where] = torch.minimum(distances, closest[where])
        chosen = int(nearest.sum(1).argmin())
        seeds.append(points[chosen])
        if len(seeds) == num_components:
            return torch.stack(seeds)
        closest = nearest[chosen]
        cumulative = closest.cumsum(0)
        if float(cumulative[-1]) > 0:
            draws = torch.rand(trials, generator=generator, dtype=DTYPE).to(x.device)
            candidates = torch.searchsorted(cumulative, draws * cumulative[-1], right=True).clamp(max=n - 1)
        else:
            # every sample is a seed already
            candidates = torch.randint(n, (1,), generator=generator)


def lloyd(x: Samples, center: Tensor, means: Tensor, max_iter: int = 100, tol: float = 1e-4) -> Tensor:
    """Lloyd's k-means from (K, D) means relative to center, until the inertia falls by less than the fraction tol:
    EM with equal unit Gaussians and hard responsibilities."""
    previous = math.inf
    for _ in range(max_iter):
        step = make_step(unit_parameters(means, center, "spherical"), "spherical")
        log_density = x.sweep(step, lambda logits, _: harden(logits))
        means = step.maximize().means
        normalizer = math.log(len(means)) + 0.5 * means.shape[1] * math.log(2 * math.pi)
        inertia = -2 * (log_density / len(x) + normalizer)
        if previous - inertia <= tol * inertia:
            break
        previous = inertia
    return means


def initial_parameters(
    x: Samples,
    center: Tensor,
    scatter: Tensor | None,
    given: Mapping[str, Tensor],
    *,
    num_components: int,
    covariance: str,
    reg_covar: float,
    init: str,
    generator: torch.Generator,
) -> Parameters:
    """The parameters that EM starts from; `given` (weights, means, covariances) replaces what it names."""
    if len(given) == 3:
        return Parameters(center=center, **given)
    if "means" in given:
        means = given["means"]
    elif init == "random_from_data":
        means = x[torch.randperm(len(x), generator=generator)[:num_components]] - center
    else:
        means = kmeans_plus_plus(x, num_components, generator) - center
    if init == "k-means":
        means = lloyd(x, center, means)
    step = make_step(unit_parameters(means, center, covariance), covariance, reg_covar, scatter)
    if init == "random":
        random = torch.rand(len(x), num_components, generator=generator, dtype=DTYPE)
        random /= random.sum(1, keepdim=True)
        x.sweep(step, lambda logits, where: logits.copy_(random[where].T))
    else:
        x.sweep(step, lambda logits, _: harden(logits))
    return Parameters(**{**vars(step.maximize()), **given})
