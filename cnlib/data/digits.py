"""The digits that ship with scikit-learn, which need neither folder nor network: as they are, dark on white, larger."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from cnlib.data.blend import enlarged
from cnlib.data.images import ImageData

TEN = tuple("0123456789")


@lru_cache(maxsize=1)
def digits() -> ImageData:
    """The 1,797 handwritten digits (8x8) that scikit-learn ships, grey levels 0 to 16 scaled to 0 to 255.

    Every fifth image of each class is in the test set: a fixed, stratified split of four to one.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits ships with scikit-learn, which is not installed: install scikit-learn") from error
    bunch = load_digits()
    images = np.rint(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rank = np.empty_like(labels)
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    test = rank % 5 == 4
    return ImageData("digits", images[~test], labels[~test], images[test], labels[test], TEN)


@lru_cache(maxsize=1)
def inverse_digits() -> ImageData:
    """The digits dark on white: blended with `digits`, a second domain of the same classes."""
    x = digits()
    return replace(x, name="inverse-digits", train_images=255 - x.train_images, test_images=255 - x.test_images)


@lru_cache(maxsize=1)
def dark_digits() -> ImageData:
    """The same images under classes of their own: blended with `digits`, a second set with 10 classes more."""
    return replace(inverse_digits(), name="dark-digits", classes=tuple(f"dark {name}" for name in TEN))


@lru_cache(maxsize=1)
def digits_at_16() -> ImageData:
    """The digits at 16 by 16 pixels: at 8 by 8 a ConvNet's last layer has one position, which IN cannot normalize."""
    x = digits()
    train, test = (enlarged(images, (16, 16)) for images in (x.train_images, x.test_images))
    return replace(x, name="digits-16", train_images=train, test_images=test)
