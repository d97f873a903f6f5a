"""Image data sets as uint8 arrays: `load` looks in `$CNLIB_DATA`, then downloads, checks, converts and keeps.

One folder a data set, ``$CNLIB_DATA/<name>/{train,test}_{images,labels}.npy`` (default: the user's cache folder), with
``{train,test}_domains.npy`` where images come from several places; a folder somebody else has put there loads under its
own name. ``digits``, what is made of them (``cnlib.data.digits``) and ``photo-places`` need neither folder nor network;
``daynight`` cannot be downloaded and is read from ``$CNLIB_DATA/daynight_amos``. ``cifar100+mnist`` is both sets as
one, with two domains.
"""

from cnlib.data.blend import load_blend
from cnlib.data.images import ImageData
from cnlib.data.sources import EMBEDDED, SOURCES
from cnlib.data.store import check_writable, folder_of, read_folder, root, verify_folder, write_folder

__all__ = ["EMBEDDED", "SOURCES", "ImageData", "folder_of", "load", "names", "root", "verify", "write_folder"]


def load(name: str) -> ImageData:
    """The data set `name`: one in ``cnlib.data.EMBEDDED`` (``digits``, ``photo-places``), one in
    ``cnlib.data.SOURCES``, a folder under ``$CNLIB_DATA``, or several of them joined with "+", which are blended in
    memory (``cnlib.data.blend``).

    Images are uint8 (N, H, W, C), memory-mapped where they come from disk; labels are int64 (N,).
    A blend brings images to one shape, shares labels where the class names are equal (a folder without classes.json has
    the numbers as names) and says in its domains which set an image comes from.
    Raises ValueError for an unknown name or a damaged folder, ImportError where the tool that would fetch it is
    missing, ConnectionError when it is neither on disk nor to be had from the network, another OSError where it cannot
    be written: that is found out before the download.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]()
    folder = folder_of(name)
    source = SOURCES.get(name)
    if not folder.is_dir():
        if "+" in name:
            return load_blend(name, root(), load)
        if source is None:
            known = ", ".join(names())
            raise ValueError(
                f"no data set {name!r}: expected one of {known}, several joined with +, or a folder {folder} with "
                "train_images.npy, train_labels.npy, test_images.npy, test_labels.npy"
            )
        check_writable(folder, name)
        arrays, classes = source.fetch(name, folder)
        try:
            write_folder(folder, arrays, source.classes or classes, source.domains)
        except OSError as error:
            raise OSError(
                f"{name} could not be written to {folder} ({error}): make room, or set CNLIB_DATA to another folder"
            ) from error
    if source is None:
        return read_folder(folder, name)
    return read_folder(folder, name, source.classes, source.shape, source.count)


def names() -> list[str]:
    """What ``load`` takes here: the embedded sets, what can be downloaded, and every folder under ``$CNLIB_DATA``."""
    found = [p.parent.name for p in root().glob("*/train_images.npy") if not p.parent.name.startswith(".")]
    return sorted({*EMBEDDED, *SOURCES, *found})


def verify(name: str) -> dict[str, str]:
    """Compare the files of data set `name` with the checksums written when they were converted.

    Returns {file: sha256}, for a blend {part/file: sha256} of all parts, and nothing for an embedded set, which has no
    files. Raises ValueError naming the files that differ or the line that is no checksum, FileNotFoundError without a
    folder or a checksum file.
    """
    if name in EMBEDDED:
        return {}
    folder = folder_of(name)
    if "+" in name and not folder.is_dir():
        return {f"{part}/{file}": digest for part in name.split("+") for file, digest in verify(part).items()}
    return verify_folder(folder, name)
