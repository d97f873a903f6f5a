"""What mixtures and contexts are given: a table of arguments and bad values, and numbers of every kind."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnlib.contexts import DomainContexts, GMMContexts, RandomContexts, ShuffledContexts, SuperclassContexts
from cnlib.contexts import quality as q
from cnlib.mixture import GaussianMixture
from cnlib.mixture.samples import Samples, principal_axes

X = np.random.default_rng(0).normal(size=(20, 4))
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 4, 4, 3), dtype=np.uint8)
IDS = np.arange(6) % 2
NAN, INF = float("nan"), float("inf")
SENTENCE = r"must|expected|given|holds|needed|cannot be read|masked|allow"

NO_INTEGER = [True, np.True_, torch.tensor(True), 1.5, NAN, "2", None, [2], 2**80, -(2**80), np.array([1, 2])]
NO_COUNT = [*NO_INTEGER, 0, -1, np.int64(-3)]
NO_SIZE = [*NO_INTEGER, -1]
NO_SIZE_OR_NONE = [bad for bad in NO_COUNT if bad is not None]
NO_AMOUNT = [True, np.False_, -1.0, NAN, INF, -INF, np.float32(NAN), "1e-3", None, [0.1], 1j, 10**400]
NO_TEXT = ["", "Full", None, 1, ["full"], b"full", np.array(["full", "full"])]
NO_FLAG = [0, 1, None, "yes", [True]]
NO_DEVICE = ["gpu9", 1.5, [], "cuda:x", True]
NO_START = [NAN, "abc", [[1, 2], [3]], np.full((2, 4), NAN), np.ones((2, 4)) * 1j, np.ones((2, 4), bool), [None]]
NO_SAMPLES = [
    None, "x", [[1, 2], [3]], X[:0], X[:, :0], X[0], X[None], X * 1j, X.astype(object), np.array([["a"]]), [1.0],
    np.where(X > 1, NAN, X), np.where(X > 1, INF, X), np.ma.masked_array(X, X > 0), torch.tensor(X).to_sparse(),
    X.astype("datetime64[s]"), torch.tensor(X) * 1j, np.zeros((20, 4), [("a", float)]), X.astype(np.longdouble),
]  # fmt: skip
NO_IMAGES = [
    None,
    "x",
    IMAGES[:0],
    IMAGES[0],
    IMAGES[:, :0],
    IMAGES * 1j,
    IMAGES.astype(object),
    IMAGES * NAN,
    IMAGES.astype("U3"),
]
NO_IDS = [
    None,
    "x",
    [[0, 1]],
    IDS - 1,
    IDS + 9,
    IDS.astype(float),
    IDS.astype(bool),
    [0.5] * 6,
    ["c"] * 6,
    [[1], [2, 3]],
    [2**70] * 6,
]

ROWS: list[tuple[str, Callable[[Any], Any], list[Any]]] = [
    *[
        (f"GaussianMixture.{name}", lambda bad, name=name: GaussianMixture(**{"num_components": 2, name: bad}),
            values)
        for name, values in {
            "num_components": NO_COUNT, "n_init": NO_COUNT, "max_iter": NO_SIZE, "seed": NO_INTEGER,
            "chunk_size": NO_SIZE_OR_NONE, "tol": NO_AMOUNT, "reg_covar": NO_AMOUNT, "covariance": NO_TEXT,
            "init": NO_TEXT, "device": NO_DEVICE, "warm_start": NO_FLAG, "weights_init": [*NO_START, [1, 2]],
            "means_init": NO_START, "precisions_init": NO_START,
        }.items()
    ],
    *[
        (f"GMMContexts.{name}", lambda bad, name=name: GMMContexts(**{name: bad}), values)
        for name, values in {
            "num_contexts": NO_COUNT, "covariance": NO_TEXT, "features": NO_TEXT, "pca": NO_SIZE_OR_NONE,
            "seed": NO_INTEGER, "n_init": NO_COUNT, "max_iter": NO_SIZE, "tol": NO_AMOUNT, "reg_covar": NO_AMOUNT,
            "device": NO_DEVICE,
        }.items()
    ],
    ("fit.x", lambda bad: GaussianMixture(2, "diag").fit(bad), NO_SAMPLES),
    ("predict.x", GaussianMixture(2, "diag", max_iter=100).fit(X).predict, [*NO_SAMPLES, X[:, :3]]),
    ("sample.num_samples", GaussianMixture(2, "diag").fit(X).sample, NO_COUNT),
    ("sample.seed", lambda bad: GaussianMixture(2, "diag").fit(X).sample(2, bad),
        [b for b in NO_INTEGER if b is not None]),
    ("principal_axes.count", lambda bad: principal_axes(Samples(X, None, None), bad), [*NO_COUNT, 5]),
    ("RandomContexts.num_contexts", RandomContexts, NO_COUNT),
    ("RandomContexts.seed", lambda bad: RandomContexts(2, seed=bad), NO_INTEGER),
    ("RandomContexts.probabilities", lambda bad: RandomContexts(2, bad), [
        [1], [0.6, 0.6], [-1, 2], [NAN, 1], [INF, 0], ["0.5", "0.5"], [True, False], [0.5, [1]], [0.5, 0.5j], 1,
            "ab", [[0.5, 0.5]],
    ]),
    ("ShuffledContexts.base", ShuffledContexts, [None, RandomContexts, 3, "random"]),
    ("ShuffledContexts.seed", lambda bad: ShuffledContexts(RandomContexts(2), bad), [*NO_INTEGER, -1]),
    ("DomainContexts.names", DomainContexts, [None, 3, "ab", [], ["a", "a"], [1, 2], [b"a"], [["a"]], [None]]),
    ("DomainContexts.domains", lambda bad: DomainContexts(["a", "b"]).assign(IMAGES, domains=bad), [*NO_IDS,
        IDS[:3]]),
    ("SuperclassContexts.table", SuperclassContexts, [
        None, 3, "ab", [], [[0, 1]], [-5] * 4, [0.7, 1.9], [0.0, 1.0], [True, False], [NAN], ["a"], [10**30], [[1],
            [2, 3]],
        np.array([2**63], np.uint64), [2**40], 1j,
    ]),
    ("SuperclassContexts.labels", lambda bad: SuperclassContexts([0, 1]).assign(IMAGES, bad), [*NO_IDS, IDS[:3]]),
    *[(f"{name}.images", call, NO_IMAGES) for name, call in {
        "fit": GMMContexts(2).fit, "random": RandomContexts(2).assign, "image_statistics": q.image_statistics,
        "spectrum": q.spectrum, "patch_means": q.patch_means,
    }.items()],
    *[(f"{name}.ids", call, [*NO_IDS, []]) for name, call in {
        "shares": lambda bad: q.shares(bad, 2), "matched": lambda bad: q.matched(bad, IDS, 2),
        "contingency": lambda bad: q.contingency(bad, IDS, 2, 2), "matched.others": lambda bad: q.matched(IDS, bad,
            2),
    }.items()],
    ("shares.k", lambda bad: q.shares(IDS, bad), NO_COUNT),
    ("between_share.ids", lambda bad: q.between_share(X[:6], bad), [None, "x", [[0]], IDS[:3], IDS / 2,
        IDS.astype(bool)]),
    ("between_share.values", lambda bad: q.between_share(bad, IDS), [None, "x", 1.0, [], X, X[:6] * 1j, X[:6] * NAN,
        [["a"]] * 6]),
    ("mutual_information", q.mutual_information, [None, [1, 2], [[0, 0]], [[-1, 2]], [[NAN, 1]], [[INF, 1]],
        [["a"]], [[1j]]]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "bad"), [
    pytest.param(call, bad, id=f"{name}={type(bad).__name__} {str(bad)[:20]}") for name, call, values in ROWS
        for bad in values
])  # fmt: skip
def test_bad_values_are_refused_with_a_sentence(call: Callable, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=SENTENCE) as caught:
        call(bad)
    assert "cnlib" in str(caught.traceback[-1].path), "raised by our check, not by what it would break"


@pytest.mark.parametrize("of", [np.float64, np.float32, np.float16, np.int64, np.uint8, int])
def test_numbers_of_numpy_are_stored_as_pythons(of: type) -> None:
    mixture = GaussianMixture(np.int8(2), tol=of(1), reg_covar=of(2), seed=np.uint64(3), warm_start=np.True_)
    kept = mixture.num_components, mixture.tol, mixture.reg_covar, mixture.seed, mixture.warm_start
    assert kept == (2, 1.0, 2.0, 3, True) and [type(v) for v in kept] == [int, float, float, int, bool]
    contexts = GMMContexts(np.int8(2), tol=of(1), reg_covar=of(2), seed=np.uint8(3), pca=np.int16(1))
    assert [type(v) for v in (contexts.tol, contexts.pca, *contexts.options.values())] == [
        float, int, str, int, int, int, float,
    ]  # fmt: skip
    names = DomainContexts(np.array(["a", "b"])).names
    assert names == ["a", "b"] and type(names[0]) is str
    assert RandomContexts(2, np.array([0.25, 0.75], np.float32)).probabilities == [0.25, 0.75]


def test_five_components_of_three_samples() -> None:
    with pytest.raises(ValueError, match="x holds 3 samples, expected at least num_components=5"):
        GaussianMixture(5).fit(X[:3])
    with pytest.raises(ValueError, match="x holds 2 samples, expected at least num_components=3"):
        GMMContexts(3).fit(IMAGES[:2])


def test_samples_of_another_byte_order() -> None:
    mixture = GaussianMixture(2, "diag").fit(X)
    assert torch.equal(mixture.predict(X.astype(">f8")), mixture.predict(X))


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_precisions_must_be_symmetric(covariance: str) -> None:
    precision = np.eye(4)
    precision[0, 1] = 0.5
    given = precision if covariance == "tied" else np.stack([np.eye(4), precision])
    with pytest.raises(ValueError, match="precisions_init must be symmetric"):
        GaussianMixture(2, covariance, precisions_init=given).fit(X)


def test_warm_start_goes_on() -> None:
    whole = GaussianMixture(2, "diag", tol=0, max_iter=6)
    part = GaussianMixture(2, "diag", tol=0, max_iter=3, warm_start=True)
    with pytest.warns(RuntimeWarning, match="did not reach"):
        whole.fit(X), part.fit(X)
        first = part.lower_bounds_
        part.fit(X)
    assert first + part.lower_bounds_ == pytest.approx(whole.lower_bounds_)
    torch.testing.assert_close(part.means_, whole.means_)
    with pytest.raises(ValueError, match=r"x must be \(N, 4\) as in fit"):
        part.fit(X[:, :3])


@pytest.mark.parametrize("max_iter", [1, 2, 50])
def test_warm_starts_converge_in_the_end(max_iter: int, tmp_path: Path) -> None:
    model = GaussianMixture(2, "diag", max_iter=max_iter, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while not model.fit(X).converged_:
            assert model.n_iter_ == max_iter
    model.save(tmp_path / "saved.npz")
    assert GaussianMixture.load(tmp_path / "saved.npz").converged_


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_random_from_data_starts_at_samples(covariance: str) -> None:
    x = np.concatenate([X + 20, X, X - 20])
    fits = [GaussianMixture(3, covariance, init="random_from_data", n_init=8, seed=s).fit(x) for s in (0, 0, 1)]
    assert torch.equal(fits[0].means_, fits[1].means_)
    for fit in fits:
        assert fit.predict(x).bincount().tolist() == [20, 20, 20]
