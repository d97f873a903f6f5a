"""Data sets joined by "+": one shape, shared or disjoint labels, and the part as the domain."""

import numpy as np
import pytest

import cnlib.data
from cnlib.data import EMBEDDED, ImageData
from cnlib.data.blend import enlarged


def made(name, shape, classes, n=12, seed=0):
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    images = draw.integers(0, 256, (2, n, *shape), dtype=np.uint8)
    return ImageData(name, images[0], labels, images[1, ::2].copy(), labels[::2].copy(), tuple(classes))


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Small sets that need no files, and an empty folder for those that do."""
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    sets = {
        "gray": made("gray", (6, 9, 1), ["cat", "dog"], 10, 1),
        "color": made("color", (8, 8, 3), ["cat", "dog"], 12, 2),
        "other": made("other", (4, 4, 3), ["dog", "fox", "owl"], 15, 3),
        "deep": made("deep", (8, 8, 4), ["cat", "dog"], 12, 4),
    }
    for name, data in sets.items():
        monkeypatch.setitem(EMBEDDED, name, lambda data=data: data)
    return sets


def test_shared_classes_of_a_gray_and_a_color_set(sets):
    data = cnlib.data.load("gray+color")
    assert data.name == "gray+color" and data.domains == ("gray", "color") and data.classes == ("cat", "dog")
    assert data.train_images.shape == (22, 8, 9, 3) and data.test_images.shape == (11, 8, 9, 3)
    assert data.train_domains.tolist() == [0] * 10 + [1] * 12 and data.test_domains.tolist() == [0] * 5 + [1] * 6
    for split in ("train", "test"):
        labels = [getattr(sets[name], f"{split}_labels") for name in data.domains]
        np.testing.assert_array_equal(getattr(data, f"{split}_labels"), np.concatenate(labels))
    gray = data.train_images[:10]
    assert (gray == gray[..., :1]).all() and not (data.train_images[10:] == data.train_images[10:, ..., :1]).all()
    np.testing.assert_array_equal(gray[..., 0], enlarged(sets["gray"].train_images, (8, 9))[..., 0])


def test_disjoint_classes_follow_and_colliding_names_are_told_apart(sets):
    data = cnlib.data.load("color+other")
    assert data.classes == ("cat", "color dog", "other dog", "fox", "owl")
    np.testing.assert_array_equal(data.train_labels[:12], sets["color"].train_labels)
    np.testing.assert_array_equal(data.train_labels[12:], sets["other"].train_labels + 2)
    np.testing.assert_array_equal(data.train_images[:12], sets["color"].train_images)


def test_three_parts_of_which_two_share_their_classes(sets):
    data = cnlib.data.load("gray+other+color")
    assert data.domains == ("gray", "other", "color") and np.bincount(data.train_domains).tolist() == [10, 15, 12]
    assert data.classes == ("cat", "gray dog", "other dog", "fox", "owl")
    np.testing.assert_array_equal(data.train_labels[25:], sets["color"].train_labels)
    np.testing.assert_array_equal(data.train_labels[10:25], sets["other"].train_labels + 2)
    part = data.subset(19)
    assert np.bincount(part.train_domains).tolist() == [5, 8, 6]


def test_enlarging_is_bilinear_between_pixel_centers():
    pil = pytest.importorskip("PIL.Image")
    images = made("x", (5, 4, 3), ["a"], 3).train_images
    found = enlarged(images, (10, 14))
    for image, ours in zip(images, found, strict=True):
        theirs = np.stack(
            [
                np.asarray(pil.fromarray(channel.astype(np.float32)).resize((14, 10), pil.Resampling.BILINEAR))
                for channel in image.transpose(2, 0, 1)
            ],
            axis=-1,
        )
        assert np.abs(ours - theirs).max() <= 0.5 + 1e-3
    # between 0 and 3 lie 0.75 and 2.25, rounded
    step = np.array([[0], [3]], np.uint8)[None, :, :, None]
    assert enlarged(step, (4, 1)).ravel().tolist() == [0, 1, 2, 3]
    assert enlarged(images, (5, 4)) is images


def test_many_images_are_enlarged_in_blocks(monkeypatch):
    whole = cnlib.data.load("gray+color").checksum
    monkeypatch.setattr("cnlib.data.blend.BLOCK", 3)
    cnlib.data.blend.load_blend.cache_clear()
    assert cnlib.data.load("gray+color").checksum == whole


def test_the_checksum_covers_every_part_and_a_blend_is_made_once(sets, monkeypatch):
    first = cnlib.data.load("color+other")
    assert cnlib.data.load("color+other") is first
    assert cnlib.data.load("other+color").checksum != first.checksum
    changed = made("other", (4, 4, 3), ["dog", "fox", "owl"], 15, 3)
    changed.test_images[2, 1, 1, 0] ^= 1
    monkeypatch.setitem(EMBEDDED, "other", lambda: changed)
    cnlib.data.blend.load_blend.cache_clear()
    assert cnlib.data.load("color+other").checksum != first.checksum


def test_another_folder_is_another_blend(sets, tmp_path, monkeypatch):
    sums = []
    for seed in (0, 1):
        monkeypatch.setenv("CNLIB_DATA", str(tmp_path / str(seed)))
        arrays = {k: v for k, v in vars(made("mine", (4, 4, 3), "ab", 12, seed)).items() if k.startswith(("tr", "te"))}
        arrays = {key: value for key, value in arrays.items() if value is not None}
        cnlib.data.write_folder(tmp_path / str(seed) / "mine", arrays, "ab")
        sums.append(cnlib.data.load("mine+color").checksum)
    assert sums[0] != sums[1]


def test_a_blend_goes_through_a_folder(tmp_path):
    blend = cnlib.data.load("gray+other")
    arrays = {key: value for key, value in vars(blend).items() if isinstance(value, np.ndarray)}
    cnlib.data.write_folder(tmp_path / "gray+other", arrays, blend.classes, blend.domains)
    read = cnlib.data.load("gray+other")
    assert isinstance(read.train_images, np.memmap) and read.domains == blend.domains
    assert read.checksum == blend.checksum and "gray+other" in cnlib.data.names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("color+nowhere", r"color\+nowhere: 'nowhere' of it could not be loaded: no data set 'nowhere'"),
        ("color+", "'' of it could not be loaded: data set name ''"),
        ("color+../etc", "expected a plain folder name"),
        ("color+color", "expected different data sets, each once"),
        ("gray+color+deep", "numbers of channels are gray 1, color 3, deep 4, expected one number, or 1 beside it"),
    ],
)
def test_what_cannot_be_blended(name, message):
    with pytest.raises(ValueError, match=message):
        cnlib.data.load(name)


def test_a_part_that_cannot_be_had_keeps_the_kind_of_its_error(tmp_path, monkeypatch):
    def offline():
        raise ConnectionError("no route to host")

    monkeypatch.setitem(EMBEDDED, "far", offline)
    with pytest.raises(ConnectionError, match="'far' of it could not be loaded: no route to host"):
        cnlib.data.load("color+far")
    # a subclass of ValueError whose constructor takes other arguments
    monkeypatch.setitem(EMBEDDED, "odd", lambda: b"\xff".decode("utf-8"))
    with pytest.raises(ValueError, match="'odd' of it could not be loaded: 'utf-8' codec"):
        cnlib.data.load("color+odd")


def test_verify_goes_through_the_parts(tmp_path):
    data = made("mine", (4, 4, 3), "ab")
    arrays = {key: value for key, value in vars(data).items() if isinstance(value, np.ndarray)}
    cnlib.data.write_folder(tmp_path / "mine", arrays, data.classes)
    found = cnlib.data.verify("mine+color")
    assert found.keys() == {f"mine/{key}.npy" for key in arrays}
    assert cnlib.data.verify("color") == {}
    np.save(tmp_path / "mine" / "test_labels.npy", np.ones(6, np.int64))
    with pytest.raises(ValueError, match=r"mine: test_labels\.npy changed"):
        cnlib.data.verify("color+mine")
    with pytest.raises(FileNotFoundError, match="fetch nowhere first"):
        cnlib.data.verify("color+nowhere")


def test_names_are_of_single_sets():
    assert {"digits", "gray", "cifar10"} <= set(cnlib.data.names()) and not any("+" in n for n in cnlib.data.names())
