"""cnlib.data: the folder layout, its checks, and what is said when a data set cannot be had."""

import builtins
import io
import sys
import zipfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import cnlib.data
from cnlib.data import ImageData, sources, store

RNG = np.random.default_rng(0)


def arrays(n=20, m=10, shape=(4, 4, 3), classes=5):
    return {
        "train_images": RNG.integers(0, 256, (n, *shape), dtype=np.uint8),
        "train_labels": np.arange(n) % classes,
        "test_images": RNG.integers(0, 256, (m, *shape), dtype=np.uint8),
        "test_labels": np.arange(m) % classes,
    }


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    return tmp_path


def test_digits_need_no_network_and_split_is_stratified():
    data = cnlib.data.load("digits")
    assert data.train_images.shape[1:] == (8, 8, 1) and data.train_images.dtype == np.uint8
    assert len(data.train_labels) + len(data.test_labels) == 1797
    assert data.train_images.max() == 255 and data.classes == tuple("0123456789")
    share = np.bincount(data.test_labels) / np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert np.all(np.abs(share - 0.2) < 0.01)
    whole = np.concatenate([data.train_images, data.test_images]).astype(float)
    # the known mean grey level of the set
    assert np.isclose(whole.mean() * 16 / 255, 4.884, atol=0.01)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    sources.digits.cache_clear()
    with pytest.raises(ImportError, match="install scikit-learn"):
        cnlib.data.load("digits")


def test_a_written_folder_loads_verifies_and_is_memory_mapped(home):
    given = arrays()
    cnlib.data.write_folder(home / "mine", given, list("abcde"))
    data = cnlib.data.load("mine")
    assert isinstance(data.train_images, np.memmap) and data.classes == tuple("abcde")
    for key, array in given.items():
        np.testing.assert_array_equal(getattr(data, key), array)
    assert data.test_labels.dtype == np.int64
    assert set(cnlib.data.verify("mine")) == {f"{key}.npy" for key in given}
    assert "mine" in cnlib.data.names()
    # no temporary folder stays
    assert [p.name for p in home.iterdir()] == ["mine"]


def test_nothing_is_overwritten_and_nothing_silently_not_written(home):
    given = arrays()
    for _ in range(2):  # equal data sets are one: two processes may fetch it at once
        cnlib.data.write_folder(home / "mine", given, list("abcde"))
    before = {path.name: path.read_bytes() for path in (home / "mine").iterdir()}
    with pytest.raises(FileExistsError, match="mine is there already and holds something else: remove it"):
        cnlib.data.write_folder(home / "mine", given | {"test_images": 255 - given["test_images"]}, list("abcde"))
    (home / "other").mkdir()
    (home / "other" / "notes.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(FileExistsError, match="other is there already"):
        cnlib.data.write_folder(home / "other", given, list("abcde"))
    assert {path.name: path.read_bytes() for path in (home / "mine").iterdir()} == before
    assert sorted(path.name for path in home.iterdir()) == ["mine", "other"]


def test_checksum_sees_every_array():
    given = arrays()
    first = ImageData("x", classes=tuple("abcde"), **given).checksum
    assert len(first) == 16 and first == ImageData("y", classes=tuple("abcde"), **given).checksum
    for key in given:
        changed = {k: a.copy() for k, a in given.items()}
        changed[key].flat[3] = (changed[key].flat[3] + 1) % 5
        assert ImageData("x", classes=tuple("abcde"), **changed).checksum != first


def test_verify_names_the_file_that_changed(home):
    cnlib.data.write_folder(home / "mine", arrays(), list("abcde"))
    path = home / "mine" / "test_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="test_images.npy changed"):
        cnlib.data.verify("mine")
    (home / "mine" / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="nothing to compare"):
        cnlib.data.verify("mine")


@pytest.mark.parametrize("mark", [" ", "*"])
def test_verify_reads_what_sha256sum_writes(home, mark):
    cnlib.data.write_folder(home / "mine", arrays(), list("abcde"))
    sums = home / "mine" / "SHA256SUMS"
    whole = sums.read_text(encoding="utf-8").replace("  ", f" {mark}")
    sums.write_text(whole, encoding="utf-8")
    assert len(cnlib.data.verify("mine")) == 4
    sums.write_text(whole + "sum of everything\n", encoding="utf-8")
    with pytest.raises(ValueError, match="SHA256SUMS: 'sum of everything' is not a line of sha256sum"):
        cnlib.data.verify("mine")
    sums.write_text("".join(whole.splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="SHA256SUMS has no checksum of train_images.npy"):
        cnlib.data.verify("mine")


def test_verify_without_a_folder_and_outside_the_data(home):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: fetch nowhere first"):
        cnlib.data.verify("nowhere")
    for name in ("../..", "..", "/etc"):
        with pytest.raises(ValueError, match="expected a plain folder name"):
            cnlib.data.verify(name)


def test_the_place_of_the_data_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path / "file"))
    for use in (cnlib.data.root, lambda: cnlib.data.load("cifar10"), lambda: cnlib.data.verify("cifar10")):
        with pytest.raises(ValueError, match="CNLIB_DATA is .*file, a file: expected a folder"):
            use()


def test_truncated_and_incomplete_folders(home):
    cnlib.data.write_folder(home / "mine", arrays(), list("abcde"))
    path = home / "mine" / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="train_images.npy is damaged"):
        cnlib.data.load("mine")
    path.unlink()
    with pytest.raises(ValueError, match="lacks train_images.npy"):
        cnlib.data.load("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((20, 4, 4, 3), np.float32)}, "expected uint8"),
        ({"train_images": np.zeros((20, 4, 4), np.uint8)}, r"expected uint8 \(N, H, W, C\)"),
        (
            {"train_images": np.zeros((19, 4, 4, 3), np.uint8)},
            "19 train images and 20 train labels|19 train images and 20",
        ),
        ({"test_images": np.zeros((10, 4, 5, 3), np.uint8)}, "expected one shape"),
        ({"test_labels": np.full(10, 5)}, "labels run from 5 to 5, expected 0 to 4"),
        ({"test_labels": np.full(10, -1)}, "labels run from -1"),
        ({"test_labels": np.zeros((10, 1), np.int64)}, "expected int64"),
        ({"train_images": np.zeros((0, 4, 4, 3), np.uint8), "train_labels": np.zeros(0, np.int64)}, "at least 1"),
    ],
)
def test_bad_arrays_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cnlib.data.write_folder(tmp_path / "bad", arrays() | change, list("abcde"))
    assert not any(tmp_path.iterdir())


def test_known_name_with_another_shape_is_refused(home):
    cnlib.data.write_folder(home / "cifar10", arrays(shape=(28, 28, 1)), list("abcde"))
    with pytest.raises(ValueError, match=r"expected \(32, 32, 3\) for cifar10"):
        cnlib.data.load("cifar10")


@pytest.mark.parametrize("name", ["no-such-set", "../etc", "", ".hidden"])
def test_unknown_names(home, name):
    with pytest.raises(ValueError, match="data set"):
        cnlib.data.load(name)


def fake_torchvision(monkeypatch, dataset):
    module = ModuleType("torchvision")
    module.datasets = SimpleNamespace(CIFAR10=dataset, SVHN=dataset)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_download_converts_and_keeps(home, monkeypatch):
    calls = []

    def cifar(scratch, train, download):
        calls.append(train)
        n = 30 if train else 20
        return SimpleNamespace(
            data=np.full((n, 32, 32, 3), 7, np.uint8), targets=[i % 10 for i in range(n)], classes=["?"] * 10
        )

    fake_torchvision(monkeypatch, cifar)
    data = cnlib.data.load("cifar10")
    assert data.classes[0] == "airplane" and data.train_images.shape == (30, 32, 32, 3)
    assert cnlib.data.verify("cifar10")
    cnlib.data.load("cifar10")
    # the second load came from disk
    assert calls == [True, False]


def test_svhn_is_put_channels_last(home, monkeypatch):
    images = RNG.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    fake_torchvision(
        monkeypatch, lambda scratch, split, download: SimpleNamespace(data=images, labels=np.arange(12) % 10)
    )
    data = cnlib.data.load("svhn")
    np.testing.assert_array_equal(data.test_images, images.transpose(0, 2, 3, 1))


def test_offline_names_both_ways_out(home, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    fake_torchvision(monkeypatch, unreachable)
    with pytest.raises(ConnectionError, match="no route to host.*connect.*copy.*train_images.npy"):
        cnlib.data.load("cifar10")
    assert not any(home.iterdir())


def test_without_torchvision(home, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "torchvision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="install torchvision, or put the four arrays"):
        cnlib.data.load("mnist")


def test_a_failed_write_leaves_nothing(home, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(store.np, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        cnlib.data.write_folder(home / "mine", arrays(), list("abcde"))
    assert not any(home.iterdir())


def test_tiny_imagenet_archive(tmp_path):
    image = pytest.importorskip("PIL.Image")

    def jpeg(value):
        buffer = io.BytesIO()
        # grey: converted to three channels
        image.fromarray(np.full((64, 64), value, np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    top = "tiny-imagenet-200"
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "n02\nn01\n")
        archive.writestr(f"{top}/words.txt", "n01\tcat, kitten\nn02\tdog\nn03\tother\n")
        for wnid, value in (("n01", 10), ("n02", 200)):
            archive.writestr(f"{top}/train/{wnid}/images/{wnid}_0.JPEG", jpeg(value))
        archive.writestr(f"{top}/val/val_annotations.txt", "val_0.JPEG\tn02\t0\t0\t1\t1\n")
        archive.writestr(f"{top}/val/images/val_0.JPEG", jpeg(200))
    with zipfile.ZipFile(tmp_path / "t.zip") as archive:
        found, classes = sources.read_tiny_imagenet(archive)
    assert classes == ("cat", "dog") and found["train_images"].shape == (2, 64, 64, 3)
    assert found["train_labels"].tolist() == [0, 1] and found["test_labels"].tolist() == [1]
    assert abs(int(found["test_images"][0, 0, 0, 2]) - 200) <= 2


def test_subset_is_stratified_nested_and_keeps_the_order():
    labels = np.repeat([0, 1, 2], [50, 30, 20])[RNG.permutation(100)]
    images = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = ImageData("x", images, labels, images, labels, tuple("abc"))
    small, large = (data.subset(n, 10) for n in (20, 60))
    assert np.bincount(small.train_labels).tolist() == [10, 6, 4] and len(small.test_labels) == 10
    assert set(small.train_images.ravel()) <= set(large.train_images.ravel())
    assert np.all(np.diff(small.train_images.ravel().astype(int)) > 0)
    assert data.subset() is not data and len(data.subset().train_labels) == 100
    with pytest.raises(ValueError, match="train_size=101: expected 1 to 100"):
        data.subset(101)


def test_digits_are_there_dark_on_white_under_their_classes_or_under_classes_of_their_own():
    digits, inverse, dark = map(cnlib.data.load, ("digits", "inverse-digits", "dark-digits"))
    for split in ("train_images", "test_images"):
        assert (getattr(inverse, split).astype(int) + getattr(digits, split) == 255).all()
    assert inverse.classes == digits.classes and inverse.checksum == dark.checksum != digits.checksum
    assert not {*dark.classes} & {*digits.classes}
    assert [one.name for one in (inverse, dark)] == ["inverse-digits", "dark-digits"]
