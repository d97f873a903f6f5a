"""Where each data set comes from: one row a data set. Downloads are torchvision's, which checks their MD5 sums; what
has no download is read from a folder beside (`cnlib.data.daynight`)."""

from __future__ import annotations

import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnlib.data.daynight import CAMERAS, TIMES, amos, photo_places
from cnlib.data.digits import TEN, dark_digits, digits, digits_at_16, inverse_digits
from cnlib.data.images import ImageData

Fetched = tuple[dict[str, np.ndarray], tuple[str, ...]]
SILENCE = 30.0  # seconds


@dataclass(frozen=True)
class Source:
    """How to get a data set. `fetch(name, folder)` returns its arrays and class names; `folder` is for messages.

    domains: their names, where the images come from several places. by_hand: there is no download.
    """

    shape: tuple[int, int, int]
    count: int
    fetch: Callable[[str, Path], Fetched]
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    by_hand: bool = False


def torchvision_sets(dataset: str, splits: tuple[dict[str, Any], dict[str, Any]]) -> Callable[[str, Path], Fetched]:
    """A fetch function for the torchvision class `dataset`; `splits`: its arguments for train and for test."""

    def fetch(name: str, folder: Path) -> Fetched:
        datasets = _torchvision(name, folder).datasets
        with downloading(name, folder) as scratch:
            train, test = (getattr(datasets, dataset)(scratch, download=True, **split) for split in splits)
            arrays = {}
            for key, part in (("train", train), ("test", test)):
                images = np.asarray(part.data)
                if dataset == "SVHN":
                    images = images.transpose(0, 2, 3, 1)
                arrays[f"{key}_images"] = np.ascontiguousarray(images if images.ndim == 4 else images[..., None])
                labels = part.labels if dataset == "SVHN" else part.targets
                arrays[f"{key}_labels"] = np.asarray(labels, dtype=np.int64)
        return arrays, tuple(getattr(train, "classes", ()))

    return fetch


TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet(name: str, folder: Path) -> Fetched:
    """Tiny ImageNet from its home page. Its test labels are not public: the validation set is our test set."""
    utils = _torchvision(name, folder).datasets.utils
    with downloading(name, folder) as scratch:
        utils.download_url(TINY_IMAGENET, scratch, "tiny.zip", TINY_IMAGENET_MD5)
        with zipfile.ZipFile(Path(scratch) / "tiny.zip") as archive:
            return read_tiny_imagenet(archive)


def read_tiny_imagenet(archive: zipfile.ZipFile) -> Fetched:
    """The arrays in the zip file; labels number the sorted WordNet ids, class names are the first of their synonyms."""
    from PIL import Image

    top = "tiny-imagenet-200"
    ids = sorted(archive.read(f"{top}/wnids.txt").decode().split())
    words = dict(line.split("\t") for line in archive.read(f"{top}/words.txt").decode().splitlines())
    annotations = archive.read(f"{top}/val/val_annotations.txt").decode().splitlines()
    pictures = [n for n in archive.namelist() if n.startswith(f"{top}/train/") and n.endswith(".JPEG")]
    members = {
        "train": [(n, n.split("/")[2]) for n in sorted(pictures)],
        "test": [(f"{top}/val/images/{line.split()[0]}", line.split()[1]) for line in annotations],
    }
    arrays = {}
    for split, files in members.items():
        arrays[f"{split}_images"] = np.stack([np.asarray(Image.open(archive.open(n)).convert("RGB")) for n, _ in files])
        arrays[f"{split}_labels"] = np.array([ids.index(wnid) for _, wnid in files], dtype=np.int64)
    return arrays, tuple(words[wnid].split(",")[0] for wnid in ids)


def _torchvision(name: str, folder: Path) -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise _lacking("torchvision", name, folder) from error
    return torchvision


def _lacking(package: str, name: str, folder: Path) -> ImportError:
    return ImportError(
        f"{name} is not in {folder}, and downloading it needs {package}, which is not installed: "
        f"install {package}, or put the four arrays there (see cnlib.data)"
    )


@contextmanager
def downloading(name: str, folder: Path) -> Iterator[str]:
    """A scratch folder for a download; whatever goes wrong with that ends in the error that names both ways out.

    Within, a connection on which nothing comes for `SILENCE` seconds counts as broken.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)  # torchvision passes none on
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=folder.parent) as scratch:
            yield scratch
    except ImportError as error:  # scipy for SVHN
        raise _lacking(error.name or str(error), name, folder) from error
    except Exception as error:  # OSError, RuntimeError of a wrong sum, http.client's own, a page in place of an archive
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConnectionError(
            f"{name} is not in {folder} and could not be downloaded ({reason}). Either connect and try again, or copy "
            f"train_images.npy, train_labels.npy, test_images.npy and test_labels.npy from another machine into "
            f"{folder} (CNLIB_DATA names its parent)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


# the sets that need neither folder nor network
EMBEDDED: dict[str, Callable[[], ImageData]] = {
    "digits": digits,
    "inverse-digits": inverse_digits,
    "dark-digits": dark_digits,
    "digits-16": digits_at_16,
    "photo-places": photo_places,
}

TRAIN_FLAG = ({"train": True}, {"train": False})
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

SOURCES = {
    "cifar10": Source((32, 32, 3), 10, torchvision_sets("CIFAR10", TRAIN_FLAG), CIFAR10),
    "cifar100": Source((32, 32, 3), 100, torchvision_sets("CIFAR100", TRAIN_FLAG)),
    "mnist": Source((28, 28, 1), 10, torchvision_sets("MNIST", TRAIN_FLAG), TEN),
    "fashion-mnist": Source((28, 28, 1), 10, torchvision_sets("FashionMNIST", TRAIN_FLAG), FASHION),
    "svhn": Source((32, 32, 3), 10, torchvision_sets("SVHN", ({"split": "train"}, {"split": "test"})), TEN),
    "tiny-imagenet": Source((64, 64, 3), 200, tiny_imagenet),
    "daynight": Source((48, 64, 3), CAMERAS, amos, domains=TIMES, by_hand=True),
}
