"""Our GaussianMixture beside scikit-learn's: same float64 data, start and number of iterations, two threads each.

    python -m studies --only mixture

The two alternate within each repeat, so that whatever else the machine does hits both; times are medians.
"""

import os
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch

import cnlib

THREADS = 2
ITERATIONS = 20
# (samples, features, covariance, components)
CASES = [
    (50_000, 64, "diag", 3),
    (50_000, 64, "diag", 10),
    (50_000, 32, "full", 3),
    (50_000, 32, "full", 10),
    (50_000, 64, "spherical", 10),
    (50_000, 32, "tied", 10),
]


def clusters(samples: int, features: int, components: int, seed: int = 0) -> np.ndarray:
    """Overlapping Gaussian clusters, correlated features, (samples, features) float64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(components, size=samples)
    mixing = np.eye(features) + 0.3 * rng.normal(size=(components, features, features)) / features**0.5
    x = rng.normal(size=(samples, features)) + rng.normal(size=(components, features))[labels]
    for k in range(components):
        x[labels == k] = x[labels == k] @ mixing[k]
    return x


def run(repeats: int = 5) -> list[dict[str, Any]]:
    """Time `fit` of both on every case and print the table."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows = []
    print("samples    D covariance   K   ours s  sklearn s  speedup  log-likelihood: ours, sklearn")
    try:
        for case in CASES:
            with warnings.catch_warnings(), threadpool_limits(THREADS):
                warnings.simplefilter("ignore")  # a fixed number of iterations never converges
                row = compare(*case, repeats)
            rows.append(row)
            print(
                f"{row['samples']:>7} {row['features']:>4} {row['covariance']:>10} {row['components']:>3} "
                f"{row['seconds']:>8.3f} {row['sklearn_seconds']:>10.3f} {row['speedup']:>8.2f}  "
                f"{row['log_likelihood']:.9f} {row['sklearn_log_likelihood']:.9f}"
            )
    finally:
        torch.set_num_threads(before)
    return rows


def compare(samples: int, features: int, covariance: str, components: int, repeats: int) -> dict[str, Any]:
    """One row: `speedup` is scikit-learn's time over ours, the median over the repeats of the ratio within one."""
    from sklearn.mixture import GaussianMixture as Reference

    x = clusters(samples, features, components)
    shapes = {"full": (components, features, features), "tied": (features, features)}
    shapes |= {"diag": (components, features), "spherical": (components,)}
    precisions = np.ones(shapes[covariance])
    if covariance in ("full", "tied"):
        precisions = precisions * np.eye(features)
    common = {
        "tol": 0.0,
        "max_iter": ITERATIONS,
        "weights_init": np.full(components, 1 / components),
        "means_init": x[np.random.default_rng(1).choice(samples, components, replace=False)],
        "precisions_init": precisions,
    }
    ours = cnlib.GaussianMixture(components, covariance, **common)
    theirs = Reference(components, covariance_type=covariance, **common)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        for name, model in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            model.fit(x)
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {
        "benchmark": "mixture",
        "samples": samples,
        "features": features,
        "covariance": covariance,
        "components": components,
        "iterations": [ours.n_iter_, theirs.n_iter_],
        "threads": THREADS,
        "cores": os.cpu_count(),
        "repeats": repeats,
        "seconds": statistics.median(times["ours"]),
        "sklearn_seconds": statistics.median(times["theirs"]),
        "speedup": statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True)),
        "log_likelihood": float(ours.log_likelihood(x)),
        "sklearn_log_likelihood": float(theirs.score(x)),
    }
