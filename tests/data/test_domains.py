"""Domains of a data set: their checks, their proportions in a subset, and the way through a folder."""

import hashlib
import json

import numpy as np
import pytest

import cnlib.data
from cnlib.data import ImageData

RNG = np.random.default_rng(0)


def with_domains(n=24, m=12, **change):
    """Tall images of 3 classes, of two domains in turn."""
    arrays = {
        "train_images": RNG.integers(0, 256, (n, 7, 4, 3), dtype=np.uint8),
        "train_labels": np.arange(n) % 3,
        "test_images": RNG.integers(0, 256, (m, 7, 4, 3), dtype=np.uint8),
        "test_labels": np.arange(m) % 3,
        "train_domains": np.arange(n) // 3 % 2,
        "test_domains": np.arange(m) // 3 % 2,
    }
    return {"classes": tuple("abc"), "domains": ("day", "night"), **arrays, **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_domains": None}, "x: train_domains without test_domains, expected both or neither"),
        ({"train_domains": None}, "x: test_domains without train_domains, expected both or neither"),
        ({"domains": ()}, "x: domains without their names, expected both or neither"),
        ({"train_domains": None, "test_domains": None}, "x: names of domains without train_domains and test_domains"),
        ({"domains": ("day", "day")}, "expected different names"),
        ({"train_domains": np.zeros(23, np.int64)}, "24 train images and 23 domains, expected equal numbers"),
        ({"test_domains": np.full(12, 2)}, "test domains run from 2 to 2, expected 0 to 1"),
        ({"test_domains": np.full(12, -1)}, "test domains run from -1"),
        ({"train_domains": np.zeros(24, np.int32)}, r"train domains are int32 \(24,\), expected int64"),
        ({"train_domains": np.zeros((24, 1), np.int64)}, r"train domains are int64 \(24, 1\), expected int64"),
    ],
)
def test_domains_are_checked(change, message):
    ImageData("x", **with_domains())
    with pytest.raises(ValueError, match=message):
        ImageData("x", **with_domains(**change))


def test_checksum_covers_domains_only_where_there_are_any():
    given = with_domains()
    without = given | {"train_domains": None, "test_domains": None, "domains": ()}
    # the sum as it was before there were domains: recorded runs name it
    digest = hashlib.sha256()
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        digest.update(f"{key} {given[key].shape} {given[key].dtype.str}\n".encode() + given[key].tobytes())
    assert ImageData("x", **without).checksum == digest.hexdigest()[:16]
    sums = {ImageData("x", **without).checksum, ImageData("x", **given).checksum}
    for key in ("train_domains", "test_domains"):
        changed = given[key].copy()
        changed[4] = 1 - changed[4]
        sums.add(ImageData("x", **(given | {key: changed})).checksum)
    assert len(sums) == 4
    assert cnlib.data.load("digits").checksum == "10bb509519496e9e"


def uneven(blended):
    """Domains of very different sizes, classes of different shares in each; drawn, or one domain after the other."""
    pairs = {(0, 0): 300, (0, 1): 100, (1, 0): 60, (1, 1): 20, (1, 2): 80, (2, 2): 40}
    drawn = RNG.permutation(np.repeat(list(pairs), list(pairs.values()), axis=0))
    drawn = drawn[drawn[:, 0].argsort(kind="stable")] if blended else drawn
    images = np.arange(len(drawn), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    domains, labels = np.ascontiguousarray(drawn.T, dtype=np.int64)
    return ImageData("x", images, labels, images, labels, tuple("abc"), domains, domains, tuple("pqr")), pairs


@pytest.mark.parametrize("blended", [False, True])
def test_a_subset_keeps_the_proportions_of_domains_and_of_classes_in_each(blended):
    data, pairs = uneven(blended)
    for size in (30, 60, 151, 599, 600):
        part = data.subset(size, size)
        found = np.stack([part.train_domains, part.train_labels])
        for domain in range(3):
            whole = (data.train_domains == domain).mean() * size
            assert abs((found[0] == domain).sum() - whole) <= 1
        for pair, count in pairs.items():
            assert abs((pair == found.T).all(1).sum() - count / 600 * size) <= 1.5
        # images, labels and domains are those of the same places, in the order of the whole
        where = part.train_images.reshape(-1, 2).copy().view(np.uint16).ravel()
        assert (np.diff(where.astype(int)) > 0).all()
        assert (data.train_labels[where] == part.train_labels).all()
        assert (data.train_domains[where] == part.train_domains).all()
        assert (part.test_domains == part.train_domains).all() and part.domains == data.domains


def test_a_subset_smaller_than_one_image_a_pair_has_every_domain():
    labels = np.concatenate([np.arange(500) % 100, 100 + np.arange(500) % 2])
    domains, images = np.repeat([0, 1], 500), np.zeros((1000, 1, 1, 1), np.uint8)
    data = ImageData("x", images, labels, images, labels, tuple(map(str, range(102))), domains, domains, ("a", "b"))
    small, large = data.subset(20), data.subset(40)
    assert np.bincount(small.train_domains).tolist() == [10, 10]
    assert np.bincount(small.train_labels[10:] - 100).tolist() == [5, 5]
    assert len(np.unique(small.train_labels[:10])) == 10
    assert set(small.train_labels) <= set(large.train_labels)


def test_without_domains_a_subset_is_what_it_was():
    digits = cnlib.data.load("digits")
    part = digits.subset(300, 100)
    assert part.checksum == "aa7438c5feb1c589"
    assert part.train_domains is None and part.domains == ()
    # one domain changes nothing either
    one = {f"{split}_domains": np.zeros_like(getattr(digits, f"{split}_labels")) for split in ("train", "test")}
    arrays = {key: getattr(digits, key) for key in vars(part) if key.endswith(("images", "labels"))}
    single = ImageData("x", classes=digits.classes, domains=("one",), **arrays, **one).subset(300, 100)
    np.testing.assert_array_equal(single.train_images, part.train_images)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    given = with_domains()
    names = {key: given.pop(key) for key in ("classes", "domains")}
    cnlib.data.write_folder(tmp_path / "mine", given, **names)
    return tmp_path / "mine", ImageData("mine", **given, **names)


def test_domains_go_through_a_folder(folder):
    path, given = folder
    read = cnlib.data.load("mine")
    assert read.domains == ("day", "night") and read.classes == tuple("abc") and read.checksum == given.checksum
    np.testing.assert_array_equal(read.test_domains, given.test_domains)
    assert read.train_domains.dtype == np.int64 and read.train_images.shape == (24, 7, 4, 3)
    (path / "domains.json").unlink()
    assert cnlib.data.load("mine").domains == ("0", "1")


def test_domains_are_verified(folder):
    path, _ = folder
    assert {"train_domains.npy", "test_domains.npy", "domains.json"} < set(cnlib.data.verify("mine"))
    (path / "domains.json").write_text('["night", "day"]', encoding="utf-8")
    np.save(path / "test_domains.npy", np.zeros(12, np.int64))
    with pytest.raises(ValueError, match=r"test_domains\.npy, domains\.json changed"):
        cnlib.data.verify("mine")
    sums = (path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    (path / "SHA256SUMS").write_text("\n".join(line for line in sums if "train_domains" not in line), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no checksum of train_domains\.npy"):
        cnlib.data.verify("mine")


def test_a_folder_with_half_of_its_domains_or_without_a_list_of_names(folder):
    path, _ = folder
    for text, message in (("{", "is no JSON"), ('{"a": 1}', "expected a list of names"), ("[1, 2]", "list of names")):
        (path / "domains.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"domains.json .*{message}"):
            cnlib.data.load("mine")
    (path / "domains.json").write_text(json.dumps(["day", "night"]), encoding="utf-8")
    np.save(path / "train_domains.npy", np.zeros(24))
    with pytest.raises(ValueError, match=r"train_domains\.npy holds float64, expected integers"):
        cnlib.data.load("mine")
    (path / "train_domains.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks train_domains\.npy"):
        cnlib.data.load("mine")
