"""A data set on disk is read as it was written, or refused by the name of the file; where it lies is known or asked."""

import json
import os
import pathlib

import numpy as np
import pytest

import cnlib.data
from cnlib.data import store

RNG = np.random.default_rng(0)
ARRAYS = {
    "train_images": RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8),
    "train_labels": np.arange(20) % 5,
    "test_images": RNG.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
    "test_labels": np.arange(10) % 5,
    "train_domains": np.arange(20) % 2,
    "test_domains": np.arange(10) % 2,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    cnlib.data.write_folder(tmp_path / "mine", ARRAYS, tuple("abcde"), ("day", "night"))
    return tmp_path / "mine"


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("key", ARRAYS)
def test_one_flipped_bit_of_a_header_changes_nothing_or_is_refused(folder, key):
    path, whole = folder / f"{key}.npy", ARRAYS[key]
    content = path.read_bytes()
    for bit in range(0, 8 * (len(content) - whole.nbytes), 1 if key == "train_images" else 7):
        path.write_bytes(flipped(content, bit))
        try:
            read = store.read_array(path)
        except ValueError as error:
            assert path.name in str(error)
        else:
            np.testing.assert_array_equal(read, whole, err_msg=f"bit {bit}")


@pytest.mark.parametrize("key", [key for key in ARRAYS if not key.endswith("images")])
def test_one_flipped_bit_of_the_labels_is_refused(folder, key):
    path = folder / f"{key}.npy"
    content = path.read_bytes()
    a_0_becomes_1 = 8 * (len(content) - ARRAYS[key].nbytes)  # which is a label, too
    for bit in (a_0_becomes_1, *range(0, 8 * len(content), 101)):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(ValueError, match=rf"{key}\.npy"):
            cnlib.data.load("mine")


@pytest.mark.parametrize("key", ARRAYS)
def test_a_file_of_another_length_is_refused(folder, key):
    path = folder / f"{key}.npy"
    content = path.read_bytes()
    for other in (b"", content[:5], content[:64], content[:-1], content + b"\0", content * 2, b"PK\3\4" + content[4:]):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=rf"{key}\.npy is damaged"):
            cnlib.data.load("mine")


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("train_labels", ARRAYS["train_labels"] + 1, "run from 1 to 5, expected 0 to 4"),
        ("test_labels", ARRAYS["test_labels"] - 1, "run from -1 to 3, expected 0 to 4"),
        ("test_labels", np.full(10, 2**64 - 1, np.uint64), "run from -1"),
        ("test_domains", np.full(10, 2), "run from 2 to 2, expected 0 to 1"),
        ("train_labels", ARRAYS["train_labels"] / 1, "holds float64, expected integers"),
        ("train_labels", np.zeros((20, 1), int), r"has shape \(20, 1\), expected \(N,\)"),
        ("train_labels", np.array([None] * 20), "is damaged"),
        ("train_images", ARRAYS["train_images"][0], r"has shape \(4, 4, 3\), expected \(N, H, W, C\)"),
        ("train_images", ARRAYS["train_images"].astype(np.int8), "holds int8, expected uint8"),
        ("train_images", ARRAYS["train_images"][:19], "19 train images and 20 labels"),
        ("test_images", ARRAYS["test_images"][:, :3], "expected one shape"),
    ],
)
def test_arrays_that_do_not_belong_there(folder, key, array, said):
    (folder / "SHA256SUMS").unlink()
    np.save(folder / f"{key}.npy", array)
    with pytest.raises(ValueError, match=rf"mine/?({key}\.npy)?:? .*{said}"):
        cnlib.data.load("mine")


def test_a_huge_label_without_names_is_refused_at_once(folder):
    for name in ("SHA256SUMS", "classes.json", "domains.json"):
        (folder / name).unlink()
    np.save(folder / "test_labels.npy", np.full(10, 2**62))
    with pytest.raises(ValueError, match=r"test_labels\.npy: numbers run from"):
        cnlib.data.load("mine")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "null", "3", "[]", '{"a": 1}', '"abc"', "[1]", '["a", null]', '["\\ud800"]', "\xff"],
)
@pytest.mark.parametrize("file", ["classes.json", "domains.json"])
def test_names_that_are_no_list_of_names(folder, file, text):
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file} .*expected a list of names") as caught:
        cnlib.data.load("mine")
    assert "\n" not in str(caught.value)


def test_names_of_another_number_than_the_known_set_has(folder):
    folder.rename(folder.with_name("cifar100"))
    (folder.with_name("cifar100") / "classes.json").write_text(json.dumps(["a"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"images are \(4, 4, 3\), expected \(32, 32, 3\)"):
        cnlib.data.load("cifar100")
    with pytest.raises(ValueError, match=r"classes\.json has 1 names, expected 100"):
        store.read_folder(folder.with_name("cifar100"), "cifar100", count=100)


def without_home(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "CNLIB_DATA", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def expand(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", expand)


USES = (cnlib.data.root, cnlib.data.names, lambda: cnlib.data.load("mnist"), lambda: cnlib.data.verify("mnist"))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("given", [None, "~/data", "~nobody-of-that-name/data"])
def test_without_a_home_directory(use, given, monkeypatch):
    without_home(monkeypatch)
    if given:
        monkeypatch.setenv("CNLIB_DATA", given)
    with pytest.raises(ValueError, match="no home directory: set CNLIB_DATA to a folder"):
        use()
    assert cnlib.data.load("digits"), "needs no folder"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("given", ["x" * 300, "/" + 5000 * "y", __file__, f"{__file__}/x", f"{__file__}/x/y"])
def test_a_place_that_cannot_be(use, given, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", given)
    with pytest.raises(ValueError, match="CNLIB_DATA is .*(set CNLIB_DATA to|expected) a folder"):
        use()


@pytest.mark.parametrize("name", ["x" * 300, "é" * 120, "a\0b", "a\nb", "a/b", "a+" + "b" * 300, "..", "+", "a+"])
def test_names_that_are_no_folder(name, folder):
    with pytest.raises(ValueError, match="data set"):
        cnlib.data.load(name)
    with pytest.raises((ValueError, FileNotFoundError), match="data set|fetch"):
        cnlib.data.verify(name)


@pytest.mark.parametrize("place", ["/proc/nowhere", "/proc/nowhere/x", "/proc"])
def test_a_folder_that_cannot_be_written_is_found_before_the_download(place, monkeypatch):
    if not os.path.isdir("/proc"):
        pytest.skip("no folder that nobody can write to")
    monkeypatch.setenv("CNLIB_DATA", place)
    monkeypatch.setattr(cnlib.data, "SOURCES", dict.fromkeys(["mnist"], Asked()))
    with pytest.raises(OSError, match=r"CNLIB_DATA is .*mnist cannot be written .*set CNLIB_DATA to a folder"):
        cnlib.data.load("mnist")


class Asked:
    """A source that must not be asked."""

    def fetch(self, name, folder):
        raise AssertionError("the download was started")


def test_a_disk_that_is_full_after_the_download(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    source = cnlib.data.sources.Source(
        (4, 4, 3), 5, lambda name, folder: (dict(list(ARRAYS.items())[:4]), tuple("abcde"))
    )
    monkeypatch.setattr(cnlib.data, "SOURCES", {"mine": source})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(OSError, match=r"mine could not be written .*No space.*set CNLIB_DATA to another folder"):
        cnlib.data.load("mine")
    assert not any(tmp_path.iterdir())
