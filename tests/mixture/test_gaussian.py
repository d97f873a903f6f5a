"""The mixture against scikit-learn's from the same start, its invariants, and the cases where EM breaks."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference

from cnlib.mixture.em import CollapsedError
from cnlib.mixture.gaussian import COVARIANCES, GaussianMixture

each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def blobs(n: int = 600, d: int = 4, k: int = 3, spread: float = 3.0, seed: int = 0) -> np.ndarray:
    """Overlapping clusters with correlated features of different scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.3, 2, size=(k, d))[np.arange(n) % k]
    return (x + spread * rng.normal(size=(k, d))[np.arange(n) % k]) @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))


def start_from(x: np.ndarray, k: int, covariance: str) -> dict[str, Any]:
    """A rough start in scikit-learn's shapes."""
    rng, d = np.random.default_rng(1), x.shape[1]
    means = x[rng.choice(len(x), k, replace=False)]
    inverse = 1 / x.var(0)
    precisions = {
        "full": np.stack([np.diag(inverse) * (i + 1) for i in range(k)]),
        "tied": np.diag(inverse) + 0.05 * inverse.min(),
        "diag": inverse * np.arange(1, k + 1)[:, None],
        "spherical": inverse.mean() * np.arange(1, k + 1),
    }
    weights = np.arange(1, k + 1) / (k * (k + 1) / 2)
    assert precisions["full"].shape == (k, d, d)
    return {"weights_init": weights, "means_init": means, "precisions_init": precisions[covariance]}


def sort_rows(x: torch.Tensor) -> np.ndarray:
    return x.numpy()[np.lexsort(x.numpy().T)]


def quiet(model: Any, x: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x)


@each_covariance
@pytest.mark.parametrize(("tol", "reg_covar"), [(1e-3, 1e-6), (1e-7, 1e-6), (1e-3, 0.1)])
def test_reaches_scikit_learn_from_the_same_start(covariance: str, tol: float, reg_covar: float) -> None:
    x = blobs()
    common = {"tol": tol, "max_iter": 300, "reg_covar": reg_covar, **start_from(x, 3, covariance)}
    theirs = Reference(3, covariance_type=covariance, **common).fit(x)
    ours = GaussianMixture(3, covariance, **common).fit(x)
    assert ours.converged_ and ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, atol=1e-9)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, abs=1e-9)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name).numpy(), getattr(theirs, name), rtol=1e-6, atol=1e-9)
    assert ours.log_likelihood(x).shape == ()
    assert float(ours.log_likelihood(x)) == pytest.approx(theirs.score(x), abs=1e-9)
    np.testing.assert_allclose(ours.score_samples(x).numpy(), theirs.score_samples(x), atol=1e-8)
    np.testing.assert_allclose(ours.responsibilities(x).numpy(), theirs.predict_proba(x), atol=1e-8)
    np.testing.assert_array_equal(ours.predict(x).numpy(), theirs.predict(x))
    assert ours.bic(x) == pytest.approx(theirs.bic(x)) and ours.aic(x) == pytest.approx(theirs.aic(x))


@each_covariance
def test_stops_where_scikit_learn_stops_when_iterations_run_out(covariance: str) -> None:
    x = blobs()
    common = {"tol": 0.0, "max_iter": 7, **start_from(x, 3, covariance)}
    with pytest.warns(RuntimeWarning, match="max_iter=7"):
        ours = GaussianMixture(3, covariance, **common).fit(x)
    theirs = quiet(Reference(3, covariance_type=covariance, **common), x)
    assert ours.n_iter_ == 7 and not ours.converged_
    np.testing.assert_allclose(ours.means_.numpy(), theirs.means_, rtol=1e-7)


@each_covariance
@given(
    n=st.integers(8, 60),
    d=st.integers(1, 4),
    k=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    init=st.sampled_from(["k-means++", "random", "k-means"]),
    seed=st.integers(0, 10_000),
)
def test_log_likelihood_never_decreases(
    covariance: str, n: int, d: int, k: int, scale: float, init: str, seed: int
) -> None:
    x = blobs(n, d, k, seed=seed) * scale
    model = GaussianMixture(k, covariance, reg_covar=0.0, tol=0.0, max_iter=25, init=init, seed=seed)
    try:
        quiet(model, x)
    except CollapsedError:
        # without regularization the likelihood is unbounded: no maximum to climb to
        assume(False)
    bounds = np.array([*model.lower_bounds_, float(model.log_likelihood(x))])
    assert np.isfinite(bounds).all()
    assert (np.diff(bounds) >= -1e-9 * (1 + np.abs(bounds).max())).all()
    assert float(model.weights_.sum()) == pytest.approx(1)
    np.testing.assert_allclose(model.responsibilities(x).sum(1).numpy(), 1, atol=1e-12)


@each_covariance
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means"])
def test_chunks_equal_one_chunk(covariance: str, init: str) -> None:
    x = blobs(211)
    fits = [quiet(GaussianMixture(3, covariance, init=init, max_iter=20, chunk_size=c), x) for c in (1000, 50, 23)]
    for chunked in fits[1:]:
        assert chunked.n_iter_ == fits[0].n_iter_
        torch.testing.assert_close(chunked.means_, fits[0].means_, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(chunked.covariances_, fits[0].covariances_, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(chunked.responsibilities(x), fits[0].responsibilities(x), rtol=1e-7, atol=1e-7)


@each_covariance
def test_threads_equal_one_thread(covariance: str) -> None:
    x = blobs(40_000, d=8)
    before = torch.get_num_threads()
    fits = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        fits.append(quiet(GaussianMixture(3, covariance, init="k-means", max_iter=3, n_init=2), x))
        assert torch.get_num_threads() == threads
    again = quiet(GaussianMixture(3, covariance, init="k-means", max_iter=3, n_init=2), x)
    torch.set_num_threads(before)
    torch.testing.assert_close(fits[1].means_, fits[0].means_, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fits[1].covariances_, fits[0].covariances_, rtol=1e-9, atol=1e-9)
    assert torch.equal(again.means_, fits[1].means_)


@each_covariance
def test_offset_in_float32_and_clusters_far_apart(covariance: str) -> None:
    """Mean 1e4, std 1, clusters 30 std apart: E[x^2] - E[x]^2 in float32 would leave nothing of the variance."""
    rng = np.random.default_rng(0)
    labels = np.arange(20_000) % 2
    x = (rng.normal(size=(20_000, 3)) + 30.0 * labels[:, None] + 1e4).astype(np.float32)
    model = GaussianMixture(2, covariance).fit(x)
    within = np.stack([np.cov(x[labels == i].astype(np.float64).T, bias=True) for i in model.predict(x[:2]).argsort()])
    diagonal = {
        "full": lambda c: c.diagonal(dim1=1, dim2=2).numpy() - within.diagonal(axis1=1, axis2=2),
        "tied": lambda c: c.diagonal().numpy() - within.mean(0).diagonal(),
        "diag": lambda c: c.numpy() - within.diagonal(axis1=1, axis2=2),
        "spherical": lambda c: c.numpy() - within.diagonal(axis1=1, axis2=2).mean(1),
    }
    np.testing.assert_allclose(diagonal[covariance](model.covariances_), 0, atol=2e-6)
    assert model.score_samples(x).dtype == model.responsibilities(x).dtype == torch.float32


@each_covariance
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_float64_clusters_a_thousand_std_apart(covariance: str, offset: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3000, 2))
    labels = np.arange(3000) % 3
    noise -= np.stack([noise[labels == i].mean(0) for i in range(3)])[labels]
    x = noise + 1e3 * labels[:, None] + offset
    model = GaussianMixture(3, covariance, reg_covar=0.0, init="k-means").fit(x)
    variances = np.stack([noise[labels == i].var(0) for i in range(3)])
    expected = {
        "full": variances,
        "tied": variances.mean(0),
        "diag": variances,
        "spherical": variances.mean(1),
    }[covariance]
    order = model.means_[:, 0].argsort()
    found = model.covariances_ if covariance == "tied" else model.covariances_[order]
    if covariance in ("full", "tied"):
        found = found.diagonal(dim1=-2, dim2=-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.bool_])
def test_types_of_data(dtype: type) -> None:
    x = (np.abs(blobs(300)) * 10 % 200).astype(dtype)
    reference = GaussianMixture(2, "diag", max_iter=5, tol=0.0)
    quiet(reference, x.astype(np.float64))
    for data in (x, torch.from_numpy(x), np.asfortranarray(x), x[::-1][::-1]):
        model = quiet(GaussianMixture(2, "diag", max_iter=5, tol=0.0), data)
        torch.testing.assert_close(model.means_, reference.means_)
        assert model.means_.dtype == torch.float64
        expected = torch.float64 if dtype is np.float64 else torch.float32
        assert model.responsibilities(data).dtype == model.score_samples(data).dtype == expected
        assert model.predict(data).dtype == torch.int64


def test_read_only_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", (np.abs(blobs(100)) * 10).astype(np.uint8))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaussianMixture(2, "diag", reg_covar=1.0).fit(x)


@each_covariance
@pytest.mark.parametrize("init", ["k-means++", "k-means"])
def test_finds_separated_clusters(covariance: str, init: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [100, 200, 300]))
    x = rng.normal(size=(600, 2)) + np.array([[0, 0], [20, 0], [0, 20]])[labels]
    model = GaussianMixture(3, covariance, init=init).fit(x)
    np.testing.assert_allclose(np.sort(model.weights_.numpy()), [1 / 6, 1 / 3, 1 / 2], atol=1e-9)
    pairs = set(zip(labels.tolist(), model.predict(x).tolist(), strict=True))
    assert len(pairs) == 3
    assert model.bic(x) < min(GaussianMixture(k, covariance).fit(x).bic(x) for k in (1, 2))


def test_restarts_keep_the_best() -> None:
    x = blobs(400, d=2, k=6, spread=4.0)
    singles = quiet(GaussianMixture(6, "spherical", seed=3), x)
    several = quiet(GaussianMixture(6, "spherical", seed=3, n_init=8), x)
    # the first of the eight is the single start
    assert several.lower_bound_ > singles.lower_bound_ + 1e-3
    again = quiet(GaussianMixture(6, "spherical", seed=3, n_init=8), x)
    assert again.lower_bounds_ == several.lower_bounds_ and torch.equal(again.means_, several.means_)


@each_covariance
def test_part_of_a_start(covariance: str) -> None:
    x = blobs()
    given_start = start_from(x, 3, covariance)
    for name, value in given_start.items():
        model = GaussianMixture(3, covariance, max_iter=0, reg_covar=0.0, **{name: value}).fit(x)
        found = getattr(model, name.replace("_init", "_").replace("precisions", "covariances")).numpy()
        if name == "precisions_init":
            value = np.linalg.inv(value) if covariance in ("full", "tied") else 1 / value
        np.testing.assert_allclose(found, value, rtol=1e-9)
        assert model.n_iter_ == 0 and model.lower_bounds_ == []


@each_covariance
def test_a_component_without_mass_keeps_its_place(covariance: str) -> None:
    x = blobs(200, d=2)
    start = start_from(x, 3, covariance)
    start["means_init"][2] = 1e6
    model = GaussianMixture(3, covariance, tol=1e-8, max_iter=500, **start)
    with pytest.warns(RuntimeWarning, match=r"component\(s\) \[2\] hold no samples"):
        model.fit(x)
    np.testing.assert_allclose(model.means_[2].numpy(), 1e6, rtol=1e-12)
    assert 0 < float(model.weights_[2]) < 1e-12
    assert (np.diff(model.lower_bounds_) > -1e-9).all()
    if covariance != "tied":
        two = {name: value[:2] for name, value in start.items()}
        two["weights_init"] = two["weights_init"] / two["weights_init"].sum()
        rest = GaussianMixture(2, covariance, tol=1e-8, max_iter=500, **two).fit(x)
        torch.testing.assert_close(model.means_[:2], rest.means_, rtol=1e-5, atol=1e-5)


@each_covariance
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means"])
@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3)),
        np.ones((50, 3)),
        np.repeat([[0.0, 1.0], [5.0, 5.0]], 10, axis=0),
        np.column_stack([np.random.default_rng(0).normal(size=50), np.full(50, 1e5)]),
        np.random.default_rng(0).normal(size=(2, 5)),
    ],
    ids=["one sample", "one point", "two points", "constant feature", "fewer samples than features"],
)
@pytest.mark.parametrize("k", [1, 4])
def test_degenerate_data(covariance: str, init: str, x: np.ndarray, k: int) -> None:
    model = GaussianMixture(k, covariance, init=init)
    if len(x) < k:
        with pytest.raises(ValueError, match=f"x holds {len(x)} samples, expected at least num_components={k}"):
            model.fit(x)
        return
    quiet(model, x)
    for value in (model.weights_, model.means_, model.covariances_, model.responsibilities(x), model.score_samples(x)):
        assert bool(value.isfinite().all())
    np.testing.assert_allclose((model.weights_ @ model.means_).numpy(), x.mean(0), rtol=1e-7, atol=1e-7)
    assert np.isfinite(model.bic(x))


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_features_constant_within_far_clusters(covariance: str) -> None:
    """Rounding of E[x^2] - E[x]^2 is larger than reg_covar here, and may be negative."""
    labels = np.arange(99) % 3
    x = np.stack([[1e6 / 3, -1e6 / 7], [1e6 / 11, 1e6], [-1e6, 1e5 / 3]])[labels]
    model = quiet(GaussianMixture(3, covariance), x)
    assert float(model.covariances_.min()) >= 1e-6
    assert len(model.predict(x).unique()) == 3


@each_covariance
def test_one_component_is_the_sample_mean_and_covariance(covariance: str) -> None:
    x = blobs()
    model = GaussianMixture(1, covariance, reg_covar=0.0).fit(x)
    expected: np.ndarray = np.cov(x.T, bias=True)
    if covariance in ("diag", "spherical"):
        expected = np.diag(expected) if covariance == "diag" else np.diag(expected).mean()
    np.testing.assert_allclose(model.covariances_.numpy().squeeze(), expected, rtol=1e-10)
    np.testing.assert_allclose(model.means_[0].numpy(), x.mean(0), rtol=1e-10)


@each_covariance
def test_collapse_is_an_error_without_regularization(covariance: str) -> None:
    with pytest.raises(CollapsedError, match=r"Increase reg_covar"):
        GaussianMixture(2, covariance, reg_covar=0.0).fit(np.repeat([[0.0, 1.0], [5.0, 5.0]], 10, axis=0))


@each_covariance
def test_far_points_do_not_underflow(covariance: str) -> None:
    model = GaussianMixture(3, covariance).fit(blobs())
    far = np.full((2, 4), 1e8)
    assert bool(model.responsibilities(far).isfinite().all()) and bool(model.score_samples(far).isfinite().all())


@each_covariance
def test_many_features(covariance: str) -> None:
    x = torch.randn(700, 100, generator=torch.Generator().manual_seed(0)) + 1
    model = quiet(GaussianMixture(2, covariance, max_iter=3), x)
    assert bool(model.score_samples(x).isfinite().all())


@each_covariance
def test_samples_follow_the_mixture(covariance: str) -> None:
    model = GaussianMixture(3, covariance).fit(blobs())
    x, labels = model.sample(40_000, seed=1)
    assert x.shape == (40_000, 4) and labels.shape == (40_000,)
    assert torch.equal(model.sample(5, seed=1)[0], model.sample(5, seed=1)[0])
    again = GaussianMixture(
        3, covariance, weights_init=model.weights_, means_init=model.means_, precisions_init=precisions(model)
    ).fit(x)
    torch.testing.assert_close(again.means_, model.means_, atol=0.1, rtol=0.05)
    torch.testing.assert_close(again.covariances_, model.covariances_, atol=0.15, rtol=0.1)


def precisions(model: GaussianMixture) -> torch.Tensor:
    full = model.covariance in ("full", "tied")
    return torch.linalg.inv(model.covariances_) if full else model.covariances_.reciprocal()


@each_covariance
def test_save_and_load(covariance: str, tmp_path: Path) -> None:
    x, path = blobs(), tmp_path / "mixture.npz"
    model = GaussianMixture(3, covariance, seed=5, reg_covar=1e-3).fit(x)
    model.save(path)
    # overwrites
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["mixture.npz"]
    loaded = GaussianMixture.load(path)
    assert torch.equal(loaded.responsibilities(x), model.responsibilities(x))
    assert (loaded.seed, loaded.reg_covar, loaded.covariance) == (5, 1e-3, covariance)
    assert (loaded.lower_bounds_, loaded.n_iter_, loaded.converged_) == (model.lower_bounds_, model.n_iter_, True)
    # raises on pickled members
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fU" for name in file.files)
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist())


def test_load_refuses_other_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    np.savez(tmp_path / "pickled.npz", header=np.array([{"kind": "GaussianMixture"}], dtype=object))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    for name in ("other", "pickled", "text"):
        with pytest.raises(ValueError, match=r"not a GaussianMixture file"):
            GaussianMixture.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        GaussianMixture.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_failed_save_keeps_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mixture.npz"
    model = GaussianMixture(2, "diag").fit(blobs())
    model.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(call, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    x = blobs()
    model = GaussianMixture(2, "diag").fit(x)
    x[137, 2] = bad
    for call in (model.fit, model.predict, model.responsibilities, model.log_likelihood):
        with pytest.raises(ValueError, match=r"sample 137, feature 2"):
            call(x)


X = blobs(20)
EYE = np.eye(4)


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"covariance": "round"}, X, "covariance must be one of"),
        ({"init": "kmeans"}, X, "init must be one of"),
        ({"num_components": 0}, X, "num_components must be at least 1"),
        ({"n_init": 0}, X, "n_init must be at least 1"),
        ({"tol": -1.0}, X, "tol must not be negative"),
        ({"reg_covar": float("nan")}, X, "reg_covar must not be negative"),
        ({}, X[:, 0], r"x\[:, None\]"),
        ({}, X[:0], "at least one sample"),
        ({}, X[None], r"must be \(N, D\)"),
        ({"weights_init": [0.5, 0.6]}, X, "sum to 1"),
        ({"weights_init": [1.0]}, X, r"shape \(2,\)"),
        ({"means_init": EYE}, X, r"shape \(2, 4\)"),
        ({"means_init": np.full((2, 4), np.nan)}, X, "nan or inf"),
        ({"precisions_init": EYE}, X, r"shape \(2, 4, 4\)"),
        ({"precisions_init": np.stack([EYE, -EYE])}, X, r"precisions_init of component\(s\) \[1\]"),
        ({"covariance": "diag", "precisions_init": -EYE[:2]}, X, "must be positive"),
    ],
)
def test_bad_arguments(options: dict[str, Any], x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{"num_components": 2, **options}).fit(x)


@each_covariance
def test_fewer_samples_than_components_is_an_error_as_in_scikit_learn(covariance: str) -> None:
    x, start = blobs(3), start_from(blobs(), 4, covariance)
    for options in ({}, start):
        ours, theirs = GaussianMixture(4, covariance, **options), Reference(4, covariance_type=covariance, **options)
        for model in (ours, theirs):
            with pytest.raises(ValueError, match="3"):
                model.fit(x)
    assert quiet(GaussianMixture(3, covariance), x).means_.shape == (3, 4)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_integers_are_seeds_and_counts(kind: type, tmp_path: Path) -> None:
    names = {"num_components": 2, "n_init": 2, "max_iter": 4, "seed": 3, "chunk_size": 7}
    ours = quiet(GaussianMixture(covariance="diag", **{name: kind(value) for name, value in names.items()}), X)
    same = quiet(GaussianMixture(covariance="diag", **names), X)
    assert torch.equal(ours.means_, same.means_)
    ours.save(tmp_path / "mixture.npz")
    assert GaussianMixture.load(tmp_path / "mixture.npz").seed == 3
    for name in names:
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got 2.0"):
            GaussianMixture(**{"num_components": 2, name: 2.0})


def test_only_the_fields_of_a_mixture_are_restored() -> None:
    header, arrays = quiet(GaussianMixture(2, "diag"), X).state()
    mixture = GaussianMixture.from_state({**header, "fit": 1}, {**arrays, "predict": np.ones(3)})
    assert callable(mixture.fit) and callable(mixture.predict)
    for name in ("seed", "converged_"):
        with pytest.raises(ValueError, match=f"the saved mixture lacks {name}"):
            GaussianMixture.from_state({key: value for key, value in header.items() if key != name}, arrays)
    for name, value in (("weights_", np.ones(3)), ("means_", np.ones(4)), ("covariances_", np.ones((2, 3)))):
        with pytest.raises(ValueError, match=f"the saved {name}: expected float64"):
            GaussianMixture.from_state(header, {**arrays, name: value})
    del arrays["covariances_"]
    with pytest.raises(ValueError, match=r"covariances_: expected float64 \(2, 4\), got none"):
        GaussianMixture.from_state(header, arrays)


def test_bad_use() -> None:
    for call in (lambda: GaussianMixture(2).predict(X), lambda: GaussianMixture(2).save("nowhere")):
        with pytest.raises(RuntimeError, match=r"call fit\(x\)"):
            call()
    with pytest.raises(ValueError, match=r"\(N, 4\) as in fit"):
        GaussianMixture(2, "diag").fit(X).predict(X[:, :3])
    for x in (X.astype(complex), torch.from_numpy(X.astype(complex)), np.array([["a", "b"]])):
        with pytest.raises(TypeError, match="real numbers"):
            GaussianMixture(1).fit(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_covariance
def test_gpu_equals_cpu(covariance: str) -> None:
    x = blobs()
    start = start_from(x, 3, covariance)
    cpu = GaussianMixture(3, covariance, **start).fit(x)
    for data, device in ((torch.from_numpy(x).cuda(), None), (x, "cuda")):
        gpu = GaussianMixture(3, covariance, device=device, **start).fit(data)
        assert gpu.means_.is_cuda and gpu.n_iter_ == cpu.n_iter_
        torch.testing.assert_close(gpu.means_.cpu(), cpu.means_)
        assert gpu.responsibilities(data).device == torch.as_tensor(data).device
        torch.testing.assert_close(gpu.responsibilities(data).cpu(), cpu.responsibilities(x))
    seeded = [GaussianMixture(3, covariance, init="k-means", device=d).fit(x) for d in ("cpu", "cuda")]
    assert float(seeded[0].lower_bound_) == pytest.approx(seeded[1].lower_bound_, abs=1e-8)
