"""How a grouping of images relates to the images, to their classes and to another grouping. Chapter 8.

Ids are integers (N,), counted from 0; `k` and `c` say how many there are.
"""

import numpy as np
from numpy.typing import ArrayLike

from cnlib.contexts.base import check_ids, plain_array
from cnlib.mixture.arguments import whole_number


def _pictures(images: np.ndarray) -> np.ndarray:
    """`images`, real numbers (N, H, W, C), none of them nan. Raises ValueError for anything else."""
    x = plain_array("images", images)
    if x.ndim != 4 or 0 in x.shape or x.dtype.kind not in "uif" or not np.isfinite(x).all():
        raise ValueError(f"images must be finite real numbers (N, H, W, C), at least one, got {x.dtype} {x.shape}")
    return x


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Four numbers of each image (N, H, W, C), in gray levels of 0 to 255: brightness (mean), contrast (standard
    deviation over positions), detail (mean absolute difference of neighbors), warmth (first minus last channel)."""
    values = _pictures(images).astype(np.float32)
    gray = values.mean(3)
    detail = np.abs(np.diff(gray, axis=1)).mean((1, 2)) + np.abs(np.diff(gray, axis=2)).mean((1, 2))
    warmth = values[..., 0].mean((1, 2)) - values[..., -1].mean((1, 2))
    return {"brightness": gray.mean((1, 2)), "contrast": gray.std((1, 2)), "detail": detail / 2, "warmth": warmth}


def between_share(values: ArrayLike, ids: ArrayLike) -> np.ndarray:
    """Share of the variance of each channel that lies between contexts: 1 - within / total, in [0, 1].

    values: (N,) or (N, C, *), every position a sample of its image's context; ids: (N,). Returns (C,).
    """
    groups, x = plain_array("ids", ids), plain_array("values", values)
    if x.dtype.kind not in "buif" or not x.ndim or not x.size or not np.isfinite(x).all():
        raise ValueError(f"values must be finite real numbers (N,) or (N, C, *), got {x.dtype} {x.shape}")
    if groups.ndim != 1 or len(groups) != len(x) or groups.dtype.kind not in "iu":
        raise ValueError(f"one id for each of {len(x)} samples expected, got ids of {groups.dtype} {groups.shape}")
    x = x.astype(np.float64)
    x = x.reshape(len(x), x.shape[1] if x.ndim > 1 else 1, -1)
    center = x.mean((0, 2))
    between = np.zeros_like(center)
    for r in np.unique(groups):
        between += (groups == r).mean() * (x[groups == r].mean((0, 2)) - center) ** 2
    total = x.var((0, 2))
    return np.divide(between, total, out=np.zeros_like(total), where=total > 0)


def mutual_information(counts: ArrayLike) -> float:
    """Bits that one label tells about the other, from their table of counts (K, C); the plug-in estimate."""
    table = plain_array("counts", counts)
    if table.ndim != 2 or table.dtype.kind not in "uif" or not (table >= 0).all() or not 0 < table.sum() < np.inf:
        raise ValueError(f"counts must be a table (K, C) of numbers >= 0, not all 0, got {table.tolist()!r:.200}")
    joint = table.astype(np.float64)
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())


def matched(ids: np.ndarray, others: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """Largest share of samples on which two assignments agree after renaming `others`, and the renamed `others`."""
    from scipy.optimize import linear_sum_assignment

    ids = check_ids(ids, whole_number("k", k, least=1), None, "ids")
    others = check_ids(others, k, None, "others")
    if not len(ids):
        raise ValueError("ids must hold at least one sample, got none")
    rows, columns = linear_sum_assignment(-contingency(ids, others, k, k))
    names = np.empty(k, dtype=np.int64)
    names[columns] = rows
    return float((ids == names[others]).mean()), names[others]


def contingency(ids: np.ndarray, others: np.ndarray, k: int, c: int) -> np.ndarray:
    """Counts (k, c) of each pair."""
    k, c = whole_number("k", k, least=1), whole_number("c", c, least=1)
    ids, others = check_ids(ids, k, others, "ids"), check_ids(others, c, None, "others")
    return np.bincount(ids * c + others, minlength=k * c).reshape(k, c)


def spectrum(images: np.ndarray) -> np.ndarray:
    """Mean power of the gray image at each spatial frequency of 1 to H / 2 cycles in the height of an image, (H // 2,);
    a cycle of the same length in pixels is the same frequency along rows and columns."""
    gray = _pictures(images).astype(np.float32).mean(3)
    height, width = gray.shape[1:]
    power = np.abs(np.fft.fft2(gray - gray.mean((1, 2), keepdims=True))) ** 2 / (height * width) ** 2
    per_pixel = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    rings = np.rint(per_pixel * height).astype(int)
    mean = power.mean(0)
    return np.array([mean[rings == r].mean() for r in range(1, height // 2 + 1)])


def shares(ids: np.ndarray, k: int) -> list[float]:
    """Share of the samples with each id."""
    ids = check_ids(ids, whole_number("k", k, least=1), None, "ids")
    if not len(ids):
        raise ValueError("ids must hold at least one sample, got none")
    return (np.bincount(ids, minlength=k) / len(ids)).round(5).tolist()


def patch_means(images: np.ndarray) -> np.ndarray:
    """Each image (H, W, C) as its means over patches, 8 by 8 of them (fewer where it has fewer pixels): features for
    trees, (N, 64 C). Patches differ by a pixel where 8 does not divide the size."""
    totals, areas = _pictures(images), np.ones(())
    for axis, size in ((1, images.shape[1]), (2, images.shape[2])):
        edges = np.linspace(0, size, min(8, size) + 1).astype(int)
        totals = np.add.reduceat(totals, edges[:-1], axis=axis, dtype=np.float32)
        areas = np.multiply.outer(areas, np.diff(edges))
    return (totals / areas[..., None].astype(np.float32)).reshape(len(images), -1)


def audit(x: np.ndarray, ids: np.ndarray, x_new: np.ndarray, ids_new: np.ndarray) -> dict[str, float]:
    """Accuracy of boosted trees that predict the ids of new images from pixels, beside the share of the majority."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0).fit(x, ids)
    return {
        "accuracy": float(model.score(x_new, ids_new)),
        "majority": float(np.bincount(ids_new).max() / len(ids_new)),
    }
