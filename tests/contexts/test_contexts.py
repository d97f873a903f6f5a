"""Each source of contexts: fitted on train, applied unchanged to other images, restored from a file without pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cnlib.contexts import (
    CIFAR100_FINE_TO_COARSE,
    Contexts,
    DomainContexts,
    GMMContexts,
    RandomContexts,
    ShuffledContexts,
    SuperclassContexts,
    load_contexts,
)
from cnlib.mixture.kmeans import Samples, principal_axes


def pictures(n: int = 120, seed: int = 0) -> np.ndarray:
    """Red, green and blue noise images, most of them red: (n, 6, 5, 3) uint8."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, size=(n, 6, 5, 3))
    images[np.arange(n), :, :, kinds(n)] += 150
    return images.astype(np.uint8)


def kinds(n: int = 120) -> np.ndarray:
    return np.array([0, 1, 0, 2, 0, 1])[np.arange(n) % 6]


SOURCES: dict[str, Callable[[], Contexts]] = {
    "gmm": lambda: GMMContexts(3).fit(pictures()),
    "gmm full pca": lambda: GMMContexts(3, "full", pca=2).fit(pictures()),
    "gmm tied color": lambda: GMMContexts(2, "tied", features="color").fit(pictures()),
    "gmm color pca": lambda: GMMContexts(2, "spherical", features="color", pca=3, seed=4).fit(pictures()),
    "superclass": SuperclassContexts,
    "domain": lambda: DomainContexts(["day", "night", "dusk"]),
    "random": lambda: RandomContexts(4, [0.1, 0.2, 0.3, 0.4], seed=-3),
    "shuffled gmm": lambda: ShuffledContexts(GMMContexts(3, pca=2).fit(pictures()), seed=5),
    "shuffled twice": lambda: ShuffledContexts(ShuffledContexts(SuperclassContexts(), seed=1), seed=2),
}
LABELS = {"superclass": np.arange(120) % 100, "shuffled twice": np.arange(120) % 100, "domain": np.arange(120) % 3}


@pytest.mark.parametrize("name", SOURCES)
def test_ids_and_save_and_load(name: str, tmp_path: Path) -> None:
    source, images, labels = SOURCES[name](), pictures(seed=9), LABELS.get(name)
    assert source.fit(pictures(), labels) is source
    ids = source.assign(images, labels)
    assert ids.dtype == torch.int64 and ids.shape == (120,)
    assert int(ids.min()) >= 0 and int(ids.max()) < source.num_contexts
    source.save(tmp_path / "contexts")
    assert os.listdir(tmp_path) == ["contexts"]
    for restored in (load_contexts(tmp_path / "contexts"), type(source).load(tmp_path / "contexts")):
        assert type(restored) is type(source) and restored.num_contexts == source.num_contexts
        assert torch.equal(restored.assign(images, labels), ids)
        if isinstance(source, GMMContexts) and isinstance(restored, GMMContexts):
            assert torch.equal(restored.responsibilities(images), source.responsibilities(images))
    with np.load(tmp_path / "contexts", allow_pickle=False) as file:
        assert all(file[key].dtype.kind in "fU" for key in file.files)


def test_load_refuses_another_class(tmp_path: Path) -> None:
    RandomContexts(2).save(tmp_path / "random.npz")
    with pytest.raises(ValueError, match="holds RandomContexts, expected GMMContexts"):
        GMMContexts.load(tmp_path / "random.npz")
    header = json.dumps({"kind": "contexts", "class": "Path", "state": {}})
    np.savez(tmp_path / "other.npz", header=np.array(header))
    with pytest.raises(ValueError, match="unknown contexts 'Path'"):
        load_contexts(tmp_path / "other.npz")


@pytest.mark.parametrize("options", [{}, {"covariance": "full", "pca": 3}, {"features": "color"}])
def test_gmm_finds_the_groups_and_orders_them_by_weight(options: dict) -> None:
    for seed in (0, 1, 2):
        source = GMMContexts(3, seed=seed, **options).fit(pictures())
        np.testing.assert_allclose(source.gmm.weights_.numpy(), [1 / 2, 1 / 3, 1 / 6], atol=1e-6)
        test = pictures(60, seed=3)
        np.testing.assert_array_equal(source.assign(test).numpy(), kinds(60))
        responsibilities = source.responsibilities(test)
        assert responsibilities.dtype == torch.float32 and responsibilities.shape == (60, 3)
        torch.testing.assert_close(responsibilities.sum(1), torch.ones(60))
        assert torch.equal(responsibilities.argmax(1), source.assign(test))


def test_gmm_is_fitted_on_train_and_only_applied_to_test() -> None:
    source = GMMContexts(3).fit(pictures())
    test = pictures(60, seed=3)
    whole, parts = source.assign(test), torch.cat([source.assign(test[:7]), source.assign(test[7:])])
    assert torch.equal(whole, parts)
    only_blue = test[kinds(60) == 2]
    assert source.assign(only_blue).tolist() == [2] * len(only_blue)


def test_gmm_reads_memory_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pictures())
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    for source in (GMMContexts(2), GMMContexts(2, features="color"), GMMContexts(2, pca=2), RandomContexts(3)):
        assert torch.equal(source.fit(images).assign(images), source.assign(pictures()))


def test_principal_axes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 30)) * np.geomspace(10, 0.1, 30) @ np.linalg.qr(rng.normal(size=(30, 30)))[0] + 100
    mean, axes = principal_axes(Samples(x, None, 64), 4)
    reference = PCA(4, svd_solver="full").fit(x)
    np.testing.assert_allclose(mean.numpy(), reference.mean_)
    signs = np.sign((reference.components_ * axes.numpy().T).sum(1, keepdims=True))
    np.testing.assert_allclose(axes.numpy().T, signs * reference.components_, atol=1e-6)


def test_superclasses_are_those_of_the_data_set() -> None:
    source = SuperclassContexts()
    assert source.num_contexts == 20
    assert np.bincount(CIFAR100_FINE_TO_COARSE).tolist() == [5] * 20
    # aquarium_fish and trout are fish; bicycle and train vehicles_1; tank and tractor vehicles_2; oak and willow trees.
    assert source.assign(None, [1, 91, 8, 90, 85, 89, 52, 96]).tolist() == [1, 1, 18, 18, 19, 19, 17, 17]
    assert "leakage" in (SuperclassContexts.__doc__ or "").lower()


def test_superclasses_agree_with_the_cached_data() -> None:
    path = Path(os.environ.get("CNLIB_DATA", "")) / "cifar100" / "fine_to_coarse.npy"
    if not path.is_file():
        pytest.skip("needs $CNLIB_DATA/cifar100/fine_to_coarse.npy")
    np.testing.assert_array_equal(np.load(path), CIFAR100_FINE_TO_COARSE)


def test_domains_by_index_and_by_name() -> None:
    source = DomainContexts(["mnist", "svhn"])
    expected = [1, 0, 1]
    for labels in (["svhn", "mnist", "svhn"], np.array(["svhn", "mnist", "svhn"]), [1, 0, 1], torch.tensor([1, 0, 1])):
        assert source.assign(pictures(3), labels).tolist() == expected
    with pytest.raises(ValueError, match=r"unknown domain\(s\) \['usps'\]"):
        source.assign(pictures(2), ["mnist", "usps"])
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="different domains"):
            DomainContexts(names)


def test_random_stays_with_the_image() -> None:
    images, order = pictures(), np.random.default_rng(0).permutation(120)
    source = RandomContexts(5, seed=1)
    ids = source.assign(images)
    assert torch.equal(source.assign(images[order]), ids[torch.from_numpy(order)])
    assert torch.equal(source.assign(np.asfortranarray(images)), ids)
    assert source.assign(images[3:4]).tolist() == [int(ids[3])]
    assert not torch.equal(RandomContexts(5, seed=2).assign(images), ids)
    # Fixed for ever: a saved experiment must find the same contexts on another machine.
    assert ids[:12].tolist() == [3, 4, 1, 3, 2, 3, 4, 2, 4, 2, 0, 2]


def test_random_follows_the_probabilities() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(4000, 2, 2, 3), dtype=np.uint8)
    shares = np.bincount(RandomContexts(4, [0.5, 0.0, 0.3, 0.2]).assign(images), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2], atol=0.03)
    assert shares[1] == 0
    assert RandomContexts(1).assign(images).unique().tolist() == [0]
    a, b = (RandomContexts(3, seed=seed).assign(images) for seed in (0, 1))
    assert abs(float((a == b).double().mean()) - 1 / 3) < 0.03
    for num, probabilities in ((0, None), (2, [1.0]), (2, [0.6, 0.6]), (2, [-0.5, 1.5])):
        with pytest.raises(ValueError, match=r"num_contexts must be|probabilities must be"):
            RandomContexts(num, probabilities)


def test_shuffled_keeps_the_shares_and_nothing_else() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3000, 2, 2, 3), dtype=np.uint8)
    base = RandomContexts(3, [0.5, 0.3, 0.2])
    ids, shuffled = base.assign(images), ShuffledContexts(base, seed=1).assign(images)
    assert torch.equal(ids.bincount(), shuffled.bincount())
    chance = float((ids.bincount() / 3000).square().sum())
    assert abs(float((ids == shuffled).double().mean()) - chance) < 0.03
    assert torch.equal(ShuffledContexts(base, seed=1).assign(images), shuffled)
    assert not torch.equal(ShuffledContexts(base, seed=2).assign(images), shuffled)


def test_shuffled_fits_its_base() -> None:
    source = ShuffledContexts(GMMContexts(3)).fit(pictures())
    assert source.assign(pictures()).bincount().tolist() == [60, 40, 20]


@pytest.mark.parametrize(
    "images",
    [pictures().astype(np.float32), pictures()[0], pictures()[:0], torch.from_numpy(pictures()), None],
    ids=["float", "one image", "none", "tensor", "missing"],
)
def test_images_must_be_uint8_arrays(images: np.ndarray) -> None:
    for source in (GMMContexts(2).fit(pictures()), RandomContexts(2)):
        with pytest.raises(ValueError, match=r"uint8 array \(N, H, W, C\)"):
            source.assign(images)
    with pytest.raises(ValueError, match=r"uint8 array \(N, H, W, C\)"):
        GMMContexts(2).fit(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class labels of each sample needed"),
        ([0, 1], "2 given for 3 images"),
        ([0, 1, 100], r"in \[0, 100\), got 0 to 100"),
        ([-1, 0, 1], r"in \[0, 100\), got -1 to 1"),
        ([0.0, 1.0, 2.0], "one integer a sample"),
        ([[0], [1], [2]], "one integer a sample"),
    ],
)
def test_labels_are_checked(labels: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuperclassContexts().assign(pictures(3), labels)


def test_gmm_misuse() -> None:
    for method in (GMMContexts().assign, GMMContexts().responsibilities, ShuffledContexts(GMMContexts()).assign):
        with pytest.raises(RuntimeError, match="not fitted"):
            method(pictures())
    with pytest.raises(RuntimeError, match="not fitted"):
        GMMContexts().save("nowhere")
    with pytest.raises(ValueError, match=r"must be \(6, 5, 3\) as in fit"):
        GMMContexts(2).fit(pictures()).assign(pictures()[:, :4])
    with pytest.raises(ValueError, match="features must be"):
        GMMContexts(features="shape")
    with pytest.raises(ValueError, match="pca must be"):
        GMMContexts(pca=0)
    with pytest.raises(ValueError, match="pca=91 is more than"):
        GMMContexts(pca=91).fit(pictures())
