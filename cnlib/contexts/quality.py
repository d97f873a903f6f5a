"""How a grouping of images relates to the images, to their classes and to another grouping. Chapter 8.

Ids are integers (N,), counted from 0; `k` and `c` say how many there are.
"""

import numpy as np
from numpy.typing import ArrayLike


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Four numbers of each image (N, H, W, C), in gray levels of 0 to 255: brightness (mean), contrast (standard
    deviation over positions), detail (mean absolute difference of neighbors), warmth (first minus last channel)."""
    values = images.astype(np.float32)
    gray = values.mean(3)
    detail = np.abs(np.diff(gray, axis=1)).mean((1, 2)) + np.abs(np.diff(gray, axis=2)).mean((1, 2))
    warmth = values[..., 0].mean((1, 2)) - values[..., -1].mean((1, 2))
    return {"brightness": gray.mean((1, 2)), "contrast": gray.std((1, 2)), "detail": detail / 2, "warmth": warmth}


def between_share(values: ArrayLike, ids: ArrayLike) -> np.ndarray:
    """Share of the variance of each channel that lies between contexts: 1 - within / total, in [0, 1].

    values: (N,) or (N, C, *), every position a sample of its image's context; ids: (N,). Returns (C,).
    """
    groups, x = np.asarray(ids), np.asarray(values, dtype=np.float64)
    if groups.ndim != 1 or len(groups) != len(x):
        raise ValueError(f"one id for each of {len(x)} samples expected, got ids of shape {groups.shape}")
    x = x.reshape(len(x), x.shape[1] if x.ndim > 1 else 1, -1)
    center = x.mean((0, 2))
    between = np.zeros_like(center)
    for r in np.unique(groups):
        between += (groups == r).mean() * (x[groups == r].mean((0, 2)) - center) ** 2
    total = x.var((0, 2))
    return np.divide(between, total, out=np.zeros_like(total), where=total > 0)


def mutual_information(counts: ArrayLike) -> float:
    """Bits that one label tells about the other, from their table of counts (K, C); the plug-in estimate."""
    joint = np.asarray(counts, dtype=np.float64)
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())


def matched(ids: np.ndarray, others: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """Largest share of samples on which two assignments agree after renaming `others`, and the renamed `others`."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-contingency(ids, others, k, k))
    names = np.empty(k, dtype=np.int64)
    names[columns] = rows
    return float((ids == names[others]).mean()), names[others]


def contingency(ids: np.ndarray, others: np.ndarray, k: int, c: int) -> np.ndarray:
    """Counts (k, c) of each pair."""
    return np.bincount(ids * c + others, minlength=k * c).reshape(k, c)


def spectrum(images: np.ndarray) -> np.ndarray:
    """Mean power of the gray image at each spatial frequency of 1 to H / 2 cycles in the height of an image, (H // 2,);
    a cycle of the same length in pixels is the same frequency along rows and columns."""
    gray = images.astype(np.float32).mean(3)
    height, width = gray.shape[1:]
    power = np.abs(np.fft.fft2(gray - gray.mean((1, 2), keepdims=True))) ** 2 / (height * width) ** 2
    per_pixel = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    rings = np.rint(per_pixel * height).astype(int)
    mean = power.mean(0)
    return np.array([mean[rings == r].mean() for r in range(1, height // 2 + 1)])


def shares(ids: np.ndarray, k: int) -> list[float]:
    """Share of the samples with each id."""
    return (np.bincount(ids, minlength=k) / len(ids)).round(5).tolist()


def patch_means(images: np.ndarray) -> np.ndarray:
    """Each image (H, W, C) as its means over patches, 8 by 8 of them (fewer where it has fewer pixels): features for
    trees, (N, 64 C). Patches differ by a pixel where 8 does not divide the size."""
    totals, areas = images, np.ones(())
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
