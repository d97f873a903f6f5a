"""Color transfer by moments: a picture of one context, dressed as one of another, by a context norm's parameters or by
moments of data; and how far it then is from real pictures.

Chapter 13. Source: Reinhard, Ashikhmin, Gooch, Shirley (2001), who match mean and standard deviation of each channel of
another color space, between two pictures; here it is red, green and blue, between two sets of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cnlib.norm import ContextNorm
from cnlib.norm.arithmetic import wide_type
from cnlib.norm.checks import check_input


def gain_and_offset(mean: Tensor, var: Tensor, source: int, target: int, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """The affine map of a swap, (C,) each: gain sqrt((v_b + eps) / (v_a + eps)) and offset m_b - gain m_a.

    mean, var: (T, C); source a and target b: rows of them. Raises ValueError for a row that is not there.
    """
    for name, row in (("source", source), ("target", target)):
        if type(row) is not int or not 0 <= row < len(mean):
            raise ValueError(f"{name}={row!r}: expected a context, a whole number from 0 to {len(mean) - 1}")
    gain = ((var[target] + eps) / (var[source] + eps)).sqrt()
    return gain, mean[target] - gain * mean[source]


@torch.no_grad()
def swap(x: Tensor, layer: ContextNorm, source: int, target: int) -> Tensor:
    """Normalize under one context, undo it under another: (x - mu_a) sqrt((v_b + eps) / (v_a + eps)) + mu_b.

    x: (N, C) or (N, C, *), as the layer sees it, so standardized where a network's images are; all of context `source`.
    Returns its shape and type. There and back is the identity, and so is a swap between equal contexts, exactly. Scale
    and shift of an affine layer cancel. Raises TypeError for another layer, ValueError for a context that it lacks.
    Source: ICDM paper, section IV-E, in words.
    """
    if not isinstance(layer, ContextNorm):
        raise TypeError(f"swap: layer is a {type(layer).__name__}, expected a ContextNorm")
    check_input(x, layer.num_features, "swap")
    gain, offset = gain_and_offset(*layer.moments(), source, target, layer.eps)
    return affine(x, gain, offset)


def affine(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """gain x + offset by channel, in the type of x; x: (N, C) or (N, C, *), the others (C,)."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    gain, offset = (value.to(wide_type(x)).view(shape) for value in (gain, offset))
    return (gain * x + offset).to(x.dtype)


@dataclass(frozen=True)
class Moments:
    """Of the pixels of each context's images: mean and var (T, C); and own_std (T, C), the mean of the standard
    deviations of single images."""

    mean: Tensor
    var: Tensor
    own_std: Tensor


def moments_of(x: Tensor, ids: Tensor, count: int) -> Moments:
    """Of images (N, C, H, W) whose contexts are ids (N,), of `count` contexts, each with two images at least."""
    parts = [x[ids == r].double() for r in range(count)]
    if short := [r for r, part in enumerate(parts) if len(part) < 2]:
        raise ValueError(f"moments_of: context {short[0]} has {len(parts[short[0]])} images, expected two at least")
    var, mean = (
        torch.stack(rows)
        for rows in zip(*(torch.var_mean(part, (0, 2, 3), correction=0) for part in parts), strict=True)
    )
    own = torch.stack([part.std((2, 3), correction=0).mean(0) for part in parts])
    return Moments(mean, var, own)


def by_instance(x: Tensor, moments: Moments, source: int, target: int) -> Tensor:
    """Each image to the target's mean and to the mean contrast of the target's images: AdaIN with one style."""
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    gain, center = (value[target][:, None, None].to(x) for value in (moments.own_std, moments.mean))
    return (x - mean) / (var + 1e-12).sqrt() * gain + center


# what a swap has to beat: {name: images (N, C, H, W), moments of the data, source, target -> images}
TRANSFERS: dict[str, Callable[[Tensor, Moments, int, int], Tensor]] = {
    "none": lambda x, m, a, b: x,
    "moments": lambda x, m, a, b: affine(x, *gain_and_offset(m.mean, m.var, a, b)),
    "shift": lambda x, m, a, b: affine(x, torch.ones_like(m.mean[a]), m.mean[b] - m.mean[a]),
    "exposure": lambda x, m, a, b: affine(x, m.mean[b] / m.mean[a], torch.zeros_like(m.mean[a])),
    "instance": by_instance,
}


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Earth mover's distance W1 of two samples of numbers, of any sizes: the area between their distribution functions.

    Exact: for equally many it is the mean distance of the sorted. Raises ValueError for an empty sample.
    """
    if not a.numel() or not b.numel():
        raise ValueError(f"wasserstein: {a.numel()} and {b.numel()} numbers, expected at least one each")
    # numpy sorts several times as fast
    first, second = (np.sort(values.detach().cpu().double().numpy().ravel()) for values in (a, b))
    values = np.sort(np.concatenate((first, second)))
    below = [np.searchsorted(part, values[:-1], side="right") / len(part) for part in (first, second)]
    return float(np.abs(below[0] - below[1]) @ np.diff(values))


def color_distance(a: Tensor, b: Tensor) -> float:
    """Mean over channels of `wasserstein` between the pixels of two sets of images, (N, C, H, W) and (M, C, H, W)."""
    return sum(wasserstein(a[:, c], b[:, c]) for c in range(a.shape[1])) / a.shape[1]


def red_over_blue(x: Tensor) -> float:
    """Mean of the first channel over mean of the third: above 1 is reddish. x: (N, 3, H, W)."""
    return float(x[:, 0].double().mean() / x[:, 2].double().mean())


def readings(x: Tensor, real: Tensor) -> dict[str, float]:
    """Of transferred images, in units in which white is 1, beside real ones: "w1", the color distance, and "red_blue",
    both after clipping to [0, 1], and "clipped", the share of values that this changed."""
    seen = x.clamp(0, 1)
    changed = (seen - x).abs() > 1e-4  # more than rounding, and less than a gray level of 1/255
    return {
        "w1": color_distance(seen, real),
        "clipped": float(changed.double().mean()),
        "red_blue": red_over_blue(seen),
    }
