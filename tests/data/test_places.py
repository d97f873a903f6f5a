"""Day and night of the same places: from a folder, from photographs, and split by place."""

import numpy as np
import pytest

import cnlib.data
from cnlib.data.daynight import AMOS, photo_places, reduced, split_by_class

RNG = np.random.default_rng(0)


def write(folder, count=40, height=96):
    folder.mkdir()
    for part, n in (("train", count), ("test", count // 2)):
        arrays = {
            "images": RNG.integers(0, 256, (n, height, 128, 3), dtype=np.uint8),
            "labels": (np.arange(n) % 2).astype(np.uint8),
            "cameras": np.arange(n) // 2 % 17,
        }
        for what, array in arrays.items():
            np.save(folder / f"{part}_{what}.npy", array)


def test_amos_is_converted_once_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    write(tmp_path / AMOS)
    data = cnlib.data.load("daynight")
    assert data.train_images.shape == (40, 48, 64, 3) and data.domains == ("day", "night")
    assert data.train_labels.tolist() == (np.arange(40) // 2 % 17).tolist() and len(data.classes) == 17
    assert data.train_domains.tolist() == (np.arange(40) % 2).tolist()
    whole = np.load(tmp_path / AMOS / "test_images.npy")
    assert data.test_images[3, 5, 7, 1] == np.rint(whole[3, 10:12, 14:16, 1].mean())
    assert "train_domains.npy" in cnlib.data.verify("daynight")
    (tmp_path / AMOS / "train_images.npy").unlink()  # no longer needed
    assert cnlib.data.load("daynight").checksum == data.checksum


def test_without_the_folder_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no official download.*lacks train_images.npy.*profile book"):
        cnlib.data.load("daynight")
    write(tmp_path / AMOS, height=64)
    with pytest.raises(ValueError, match=r"uint8 \(40, 64, 128, 3\), expected uint8 \(N, 96, 128, 3\)"):
        cnlib.data.load("daynight")
    assert not (tmp_path / "daynight").exists()


@pytest.mark.parametrize(
    "size, message", [(0, "is damaged"), (1000, "is damaged"), (None, "holds float64, expected int")]
)
def test_a_damaged_or_wrong_file_is_named(size, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    write(tmp_path / AMOS)
    path = tmp_path / AMOS / ("test_images.npy" if size is not None else "test_cameras.npy")
    if size is None:
        np.save(path, np.load(path) + 0.5)
    else:
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} {message}"):
        cnlib.data.load("daynight")
    assert not (tmp_path / "daynight").exists()


def test_photo_places_are_the_same_every_time_and_night_is_darker_and_redder():
    data = photo_places()
    photo_places.cache_clear()
    assert photo_places().checksum == data.checksum and data.train_images.shape == (384, 24, 32, 3)
    for part in ("train", "test"):
        images, labels, domains = (getattr(data, f"{part}_{what}") for what in ("images", "labels", "domains"))
        assert len(data.classes) == 32 == len(set(labels[domains == 0])) == len(set(labels[domains == 1]))
        day, night = (images[domains == d].mean((0, 1, 2)) for d in (0, 1))
        assert (night < 0.75 * day).all() and night[0] / night[2] > 1.5 * day[0] / day[2]


def test_reduced_is_a_mean_of_squares():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    assert reduced(image, 2)[0, :, :, 0].tolist() == [[2, 4], [10, 12]]  # 2.5, 4.5, ... to even


def test_no_class_is_on_both_sides_and_each_seed_holds_out_others():
    data = photo_places()
    parts = [split_by_class(data, 10, seed) for seed in range(3)]
    for part in parts:
        trained, tested = set(part.train_labels), set(part.test_labels)
        assert not trained & tested and (len(trained), len(tested)) == (22, 10)
        assert len(part.train_labels) + len(part.test_labels) == 512
        for k in tested:
            assert set(part.test_domains[part.test_labels == k]) == {0, 1}
    assert len({tuple(sorted(set(p.test_labels))) for p in parts}) == 3
    again = split_by_class(data, 10, 0)
    assert (again.test_images == parts[0].test_images).all()


def test_classes_without_both_domains_are_left_out():
    data = photo_places()
    for part in ("train", "test"):
        getattr(data, f"{part}_domains")[getattr(data, f"{part}_labels") == 4] = 0
    try:
        for seed in range(4):
            part = split_by_class(data, 10, seed)
            assert 4 not in {*part.train_labels, *part.test_labels}
    finally:
        photo_places.cache_clear()


@pytest.mark.parametrize(
    ("name", "held_out", "message"), [("digits", 2, "no domains"), ("photo-places", 31, "32 clas")]
)
def test_what_cannot_be_split_is_refused(name, held_out, message):
    with pytest.raises(ValueError, match=message):
        split_by_class(cnlib.data.load(name), held_out, 0)
