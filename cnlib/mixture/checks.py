"""Checks of what a mixture is given: whole numbers, the parts of a start, saved parameters."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnlib.mixture.em import cholesky


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int: ints and numpy integers are taken. TypeError for anything else, ValueError below `least`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def parameter_shapes(covariance: str, k: int, d: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of K components in D dimensions; precisions have that of covariances."""
    covariances = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    return {"weights": (k,), "means": (k, d), "covariances": covariances[covariance]}


def given_start(start: Mapping[str, Any], covariance: str, num_components: int, center: Tensor) -> dict[str, Tensor]:
    """The parts of the start that are not None, checked: weights, means (relative to `center`), and covariances from
    precisions. Raises ValueError that names the part."""
    shapes = parameter_shapes(covariance, num_components, len(center))
    shapes["precisions"] = shapes["covariances"]
    given = {}
    for name, value in start.items():
        if value is None:
            continue
        given[name] = torch.as_tensor(value).detach().to(center)
        if given[name].shape != shapes[name]:
            raise ValueError(f"{name}_init must have shape {shapes[name]}, got {tuple(given[name].shape)}")
        if not bool(given[name].isfinite().all()):
            raise ValueError(f"{name}_init holds nan or inf")
    if "weights" in given and (bool((given["weights"] < 0).any()) or abs(float(given["weights"].sum()) - 1) > 1e-6):
        raise ValueError(f"weights_init must be >= 0 and sum to 1, got {given['weights'].tolist()}")
    if "means" in given:
        given["means"] = given["means"] - center
    if "precisions" in given:
        precisions = given.pop("precisions")
        if covariance in ("full", "tied"):
            given["covariances"] = torch.cholesky_inverse(cholesky(precisions, "precisions_init"))
        elif bool((precisions <= 0).any()):
            raise ValueError("precisions_init must be positive")
        else:
            given["covariances"] = precisions.reciprocal()
    return given


def saved_parameters(arrays: Mapping[str, np.ndarray], covariance: str, num_components: int) -> dict[str, Tensor]:
    """`weights_`, `means_` and `covariances_` among the arrays of a file. Raises ValueError where they do not fit."""
    means = arrays.get("means_")
    num_features = means.shape[1] if means is not None and means.ndim == 2 else 0
    parameters = {}
    for name, shape in parameter_shapes(covariance, num_components, num_features).items():
        found = arrays.get(f"{name}_")
        if found is None or found.shape != shape or found.dtype != np.float64:
            what = "none" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"the saved mixture's {name}_: expected float64 {shape}, got {what}")
        parameters[f"{name}_"] = torch.from_numpy(found)
    return parameters
