"""Checks of the parts of a start and of saved parameters."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnlib.mixture.em import cholesky
from cnlib.mixture.iterations import settled


def parameter_shapes(covariance: str, k: int, d: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of K components in D dimensions; precisions have that of covariances."""
    covariances = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    return {"weights": (k,), "means": (k, d), "covariances": covariances[covariance]}


def start_values(name: str, value: Any) -> Tensor:
    """A part of a start as a float64 tensor. Raises TypeError for what holds no real numbers, ValueError for nan."""
    try:
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)).detach()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds nan or inf")
    if name == "weights_init":
        check_weights(name, tensor)
    return tensor.to(torch.float64)


def check_weights(name: str, weights: Tensor) -> None:
    if bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"{name} must be >= 0 and sum to 1, got {weights.tolist()}")


def check_positive(name: str, values: Tensor, covariance: str) -> None:
    """Covariances or precisions: positive numbers, or symmetric positive definite matrices."""
    if covariance in ("full", "tied"):
        if not torch.allclose(values, values.mT, rtol=1e-6, atol=1e-9 * float(values.abs().max())):
            raise ValueError(f"{name} must be symmetric")
        cholesky(values, name)
    elif bool((values <= 0).any()):
        raise ValueError(f"{name} must be positive")


def given_start(start: Mapping[str, Any], covariance: str, num_components: int, center: Tensor) -> dict[str, Tensor]:
    """The parts of the start that are not None, checked: weights, means (relative to `center`), and covariances from
    precisions. Raises ValueError that names the part."""
    shapes = parameter_shapes(covariance, num_components, len(center))
    shapes["precisions"] = shapes["covariances"]
    given = {}
    for name, value in start.items():
        if value is None:
            continue
        given[name] = start_values(f"{name}_init", value).to(center)
        if given[name].shape != shapes[name]:
            raise ValueError(f"{name}_init must have shape {shapes[name]}, got {tuple(given[name].shape)}")
    if "means" in given:
        given["means"] = given["means"] - center
    if "precisions" in given:
        precisions = given.pop("precisions")
        check_positive("precisions_init", precisions, covariance)
        if covariance in ("full", "tied"):
            given["covariances"] = torch.cholesky_inverse(cholesky(precisions, "precisions_init"))
        else:
            given["covariances"] = precisions.reciprocal()
    return given


def saved_array(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """That array of a file. Raises ValueError where it is not there, or not finite float64 of this shape."""
    found = arrays.get(name)
    if found is None or found.shape != shape or found.dtype != np.float64 or not np.isfinite(found).all():
        what = "none" if found is None else f"{found.dtype} {found.shape}"
        values = "" if found is None or found.dtype.kind != "f" or np.isfinite(found).all() else " with nan or inf"
        raise ValueError(f"the saved {name}: expected float64 {shape}, got {what}{values}")
    return found


def saved_parameters(arrays: Mapping[str, np.ndarray], covariance: str, num_components: int) -> dict[str, Tensor]:
    """`weights_`, `means_` and `covariances_` among the arrays of a file. Raises ValueError where they do not fit."""
    means = arrays.get("means_")
    num_features = means.shape[1] if means is not None and means.ndim == 2 else 0
    shapes = parameter_shapes(covariance, num_components, max(num_features, 1))
    parameters = {f"{name}_": torch.from_numpy(saved_array(arrays, f"{name}_", s)) for name, s in shapes.items()}
    check_weights("the saved weights_", parameters["weights_"])
    check_positive("the saved covariances_", parameters["covariances_"], covariance)
    return parameters


def saved_history(header: Mapping[str, Any], tol: float) -> None:
    """Raises ValueError where what a file says of the iterations contradicts itself."""
    bounds = header["lower_bounds_"]
    if not isinstance(bounds, list) or not all(type(b) is float and math.isfinite(b) for b in bounds):
        raise ValueError(f"the saved lower_bounds_ must be a list of finite numbers, got {bounds!r:.60}")
    for name, expected in {
        "lower_bound_": bounds[-1] if bounds else -math.inf,
        "n_iter_": len(bounds),
        # after a warm start, one more iteration may have been enough
        "converged_": header["converged_"] is True if len(bounds) == 1 else settled(bounds, tol),
    }.items():
        if type(header[name]) is not type(expected) or header[name] != expected:
            raise ValueError(f"the saved {name} must be {expected}, from lower_bounds_ and tol, got {header[name]!r}")
