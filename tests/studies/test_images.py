"""The statistics of groupings, and the recorded analysis of chapter 8."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from cnlib import contexts, data
from cnlib.contexts import quality
from cnlib.results import mixture_record
from cnlib.results.images import MIXTURES
from studies import images as study


def draw():
    return np.random.default_rng(0)


def test_share_between_contexts_is_the_law_of_total_variance():
    values, ids = draw().normal(size=(60, 3, 4, 4)), draw().integers(3, size=60)
    values[ids == 1, 0] += 5
    within = sum((ids == r).mean() * values[ids == r].var((0, 2, 3)) for r in range(3))
    np.testing.assert_allclose(quality.between_share(values, ids), 1 - within / values.var((0, 2, 3)))
    assert quality.between_share(values, ids)[0] > 0.6 and quality.between_share(values, np.zeros(60, int)).max() == 0
    # every value its own group
    assert quality.between_share(np.arange(5.0), np.arange(5)) == 1
    # nothing to explain
    assert quality.between_share(np.ones(5), np.arange(5)) == 0
    with pytest.raises(ValueError, match="one id for each of 60"):
        quality.between_share(values, ids[:10])


def test_mutual_information_is_scikit_learns_in_bits():
    from sklearn.metrics import mutual_info_score

    a, b = draw().integers(3, size=500), draw().integers(7, size=500)
    counts = quality.contingency(a, b, 3, 7)
    assert counts.sum() == 500 and counts[2, 4] == ((a == 2) & (b == 4)).sum()
    assert quality.mutual_information(counts) == pytest.approx(mutual_info_score(a, b) / np.log(2))
    assert quality.mutual_information(np.eye(8)) == pytest.approx(3)


def test_matching_undoes_a_renaming():
    ids = draw().integers(4, size=200)
    share, renamed = quality.matched(ids, np.array([2, 0, 3, 1])[ids], 4)
    assert share == 1 and (renamed == ids).all()
    assert quality.matched(ids, draw().permutation(ids), 4)[0] < 0.5


def test_statistics_and_spectrum_of_known_images():
    rows = np.arange(32)
    # 4 cycles an image
    wave = 100 + 50 * np.cos(2 * np.pi * 4 * rows / 32)
    images = np.broadcast_to(wave[:, None, None], (32, 32, 3))[None].repeat(2, 0).copy()
    images[..., 2] -= 20
    found = quality.image_statistics(images)
    np.testing.assert_allclose(found["brightness"], 100 - 20 / 3, rtol=1e-5)
    np.testing.assert_allclose(found["contrast"], 50 / 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(found["warmth"], 20, rtol=1e-5)
    np.testing.assert_allclose(found["detail"], np.abs(np.diff(wave)).mean() / 2, rtol=1e-5)
    power = quality.spectrum(images)
    assert len(power) == 16 and power.argmax() == 3 and power[3] > 1e6 * np.delete(power, 3).max()


def test_patches_and_spectrum_of_images_that_are_not_square():
    images = draw().integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    expected = images.reshape(5, 8, 2, 8, 3, 3).mean((2, 4)).reshape(5, -1)
    np.testing.assert_allclose(quality.patch_means(images), expected, rtol=1e-6)
    # 8 does not divide 12 and 20: patches of one or two rows, two or three columns, that cover every pixel once
    odd = quality.patch_means(images[:, :12, :20]).reshape(5, 8, 8, 3)
    np.testing.assert_allclose(odd[:, 0, 0], images[:, :1, :2].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(odd[:, 7, 7], images[:, 10:12, 17:20].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(quality.patch_means(images[:, :4, :6]), images[:, :4, :6].reshape(5, -1))
    # a wave of 8 pixels is the same frequency along rows and along columns
    wave = 100 + 50 * np.cos(2 * np.pi * np.arange(48) / 8)
    for gray in (np.tile(wave[:32, None], (1, 48)), np.tile(wave, (32, 1))):
        power = quality.spectrum(gray[None, :, :, None])
        assert len(power) == 16 and power.argmax() == 3


def test_audit_tells_ids_that_come_from_the_images_from_ids_that_do_not():
    digits = data.load("digits")
    ids = contexts.GMMContexts(3).fit(digits.train_images).assign(digits.train_images).numpy()
    x = quality.patch_means(digits.train_images)
    right = quality.audit(x[::2], ids[::2], x[1::2], ids[1::2])
    shuffled = draw().permutation(ids)
    wrong = quality.audit(x[::2], shuffled[::2], x[1::2], shuffled[1::2])
    assert right["accuracy"] > right["majority"] + 0.2 and wrong["accuracy"] < wrong["majority"] + 0.05


def test_the_command_records_and_the_loader_reads(tmp_path):
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "studies.images", "--out", str(tmp_path), "--dataset", "digits"]
    done = subprocess.run([*command, "--profile", "smoke"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    record = mixture_record("digits", tmp_path)
    assert record.header["provenance"]["data"] == data.load("digits").checksum
    assert set(record.rows) == {"portrait", "fit", "order", "fault", "explained"}
    assert len(record.select("fit", k=3)) == len(study.CELLS)
    assert record.pictures["pixels, diag: mean"].shape == (3, 8, 8, 1)
    for row in record.rows["explained"]:
        shares = row["explained"]
        assert max(shares.values()) == shares["image"] and shares["shuffled"] < shares["pixels, diag"]
    with pytest.raises(ValueError, match="no 'fit' row"):
        record.select("fit", k=99)
    lines = (
        (tmp_path / "digits.jsonl").read_text(encoding="utf-8").replace(record.header["provenance"]["data"], "other")
    )
    (tmp_path / "digits.jsonl").write_text(lines.rsplit("\n", 2)[0] + "\n", encoding="utf-8")  # without its checksum
    with pytest.raises(ValueError, match="different data"):
        mixture_record("digits", tmp_path)
    wrong = subprocess.run([*command, "--profile", "huge"], capture_output=True, encoding="utf-8")
    assert wrong.returncode == 2 and "smoke, reduced" in wrong.stderr


@pytest.mark.parametrize(("dataset", "profile"), [("cifar10", "reduced"), ("cifar100", "short")])
def test_records_in_the_package_are_small_and_whole(dataset, profile):
    record = mixture_record(dataset)
    sizes = json.loads(json.dumps(asdict(study.PROFILES[profile])))
    assert record.header["profile"] == profile
    assert record.header["sizes"].items() <= sizes.items()
    assert [row["cell"] for row in record.rows["portrait"]] == list(study.PORTRAITS)
    assert [row["cell"] for row in record.select("fit", k=3)] == sizes["cells"]
    assert all(np.array(row["train_classes"]).sum() == 50_000 for row in record.rows["portrait"])
    assert sum(path.stat().st_size for path in MIXTURES.iterdir()) < 300_000


def test_records_of_another_data_set_are_named():
    with pytest.raises(ValueError, match="there are cifar10, cifar100"):
        mixture_record("mnist")
