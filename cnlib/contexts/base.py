"""What every source of contexts has in common: fit, assign, save, load."""

import os
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cnlib.mixture.arguments import refused_by_name
from cnlib.storage import read_npz, write_npz

# header (JSON), arrays
State = tuple[dict[str, Any], dict[str, np.ndarray]]
# every source by the name of its class, for `load_contexts`
KINDS: dict[str, type["Contexts"]] = {}


def check_images(images: np.ndarray) -> np.ndarray:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        what = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
        raise ValueError(f"images must be a numpy uint8 array (N, H, W, C) with at least one image, got {what}")
    return images


def plain_array(what: str, values: Any) -> np.ndarray:
    """`values` as an array; ValueError where its rows do not fit together."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what} cannot be read as an array: {error}") from error


def check_ids(ids: ArrayLike, count: int, images: np.ndarray | None, what: str) -> np.ndarray:
    """Integers in [0, count), as many as images (where images are given at all); `what` they are, for the errors."""
    ids = plain_array(what, ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be one integer a sample, (N,), got {ids.dtype} {ids.shape}")
    if images is not None and len(images) != len(ids):
        raise ValueError(f"{what}: {len(ids)} given for {len(images)} images")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"{what} must be in [0, {count}), got {int(ids.min())} to {int(ids.max())}")
    return ids.astype(np.int64)


class Contexts:
    """Base of all sources; one without anything to learn only defines `assign`."""

    num_contexts: int

    def __init_subclass__(cls) -> None:
        if cls.assign is not Contexts.assign:  # a class that others share cannot be restored itself
            KINDS[cls.__name__] = cls

    def fit(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Self:
        return self

    def assign(self, images: np.ndarray, labels: ArrayLike | None = None, domains: ArrayLike | None = None) -> Tensor:
        raise NotImplementedError

    def given_label(self) -> Tensor | None:
        """p(context | label), float64 (K, T), where the context is made from the label; None where it is not."""
        return None

    def state(self) -> State:
        raise NotImplementedError

    @classmethod
    def restore(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        return cls(**header)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file, atomically and without pickle."""
        header, arrays = self.state()
        write_npz(path, {"kind": "contexts", "class": type(self).__name__, "state": header}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        contexts = load_contexts(path)
        if not isinstance(contexts, cls):
            raise ValueError(f"{os.fspath(path)} holds {type(contexts).__name__}, expected {cls.__name__}")
        return contexts


def kind(name: str) -> type[Contexts]:
    """The class of that name. Raises ValueError with the names there are."""
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"unknown contexts {name!r}, expected one of {sorted(KINDS)}")
    return KINDS[name]


def load_contexts(path: str | os.PathLike[str]) -> Contexts:
    """Read what `save` of any of these classes wrote. Raises ValueError that names a file which is damaged."""
    with refused_by_name(path, "contexts"):
        header, arrays = read_npz(path, "contexts")
        return kind(header["class"]).restore(header["state"], arrays)
