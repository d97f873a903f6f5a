"""Image data sets as uint8 arrays: `load` looks in `$CNLIB_DATA`, then downloads, checks, converts and keeps.

One folder a data set, ``$CNLIB_DATA/<name>/{train,test}_{images,labels}.npy`` (default: the user's cache folder);
a folder somebody else has put there loads under its own name. ``digits`` needs neither folder nor network.
"""

from cnlib.data.sources import SOURCES, digits
from cnlib.data.store import ImageData, folder_of, read_folder, root, verify, write_folder

__all__ = ["SOURCES", "ImageData", "load", "names", "root", "verify", "write_folder"]


def load(name: str) -> ImageData:
    """The data set `name`: ``digits``, a name in ``cnlib.data.SOURCES``, or a folder under ``$CNLIB_DATA``.

    Images are uint8 (N, H, W, C), memory-mapped where they come from disk; labels are int64 (N,).
    Raises ValueError for an unknown name or a damaged folder, ImportError where the tool that would fetch it is
    missing, ConnectionError when it is neither on disk nor to be had from the network.
    """
    if name == "digits":
        return digits()
    folder = folder_of(name)
    source = SOURCES.get(name)
    if not folder.is_dir():
        if source is None:
            known = ", ".join(names())
            raise ValueError(
                f"no data set {name!r}: expected one of {known}, or a folder {folder} with "
                "train_images.npy, train_labels.npy, test_images.npy, test_labels.npy"
            )
        arrays, classes = source.fetch(name, folder)
        write_folder(folder, arrays, source.classes or classes)
    if source is None:
        return read_folder(folder, name)
    return read_folder(folder, name, source.classes, source.shape, source.count)


def names() -> list[str]:
    """What ``load`` takes here: digits, what can be downloaded, and every folder found under ``$CNLIB_DATA``."""
    found = [p.parent.name for p in root().glob("*/train_images.npy") if not p.parent.name.startswith(".")]
    return sorted({"digits", *SOURCES, *found})
