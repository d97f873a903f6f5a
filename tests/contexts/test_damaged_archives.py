"""Archives of mixtures and contexts that are damaged: refused by file name, every bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnlib.contexts import (
    Contexts,
    DomainContexts,
    GMMContexts,
    KMeansContexts,
    RandomContexts,
    ShuffledContexts,
    SuperclassContexts,
    load_contexts,
)
from cnlib.mixture import GaussianMixture

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(30, 2, 2, 3), dtype=np.uint8)
X = RNG.normal(size=(30, 2))
NAN = float("nan")

SAVED: dict[str, Callable[[], Any]] = {
    "mixture": lambda: GaussianMixture(2, "diag", max_iter=500).fit(X),
    "full": lambda: GaussianMixture(2, "full", max_iter=500).fit(X),
    "gmm": lambda: GMMContexts(2, pca=2, max_iter=500).fit(IMAGES),
    "color": lambda: GMMContexts(2, features="color", max_iter=500).fit(IMAGES),
    "k-means": lambda: KMeansContexts(2).fit(IMAGES),
    "random": lambda: RandomContexts(2, seed=1),
    "domain": lambda: DomainContexts(["a", "b"]),
    "superclass": lambda: SuperclassContexts([0, 1, 1]),
    "shuffled": lambda: ShuffledContexts(RandomContexts(2)),
}
DROP = object()


def load(path: Path, name: str) -> Any:
    return GaussianMixture.load(path) if name in ("mixture", "full") else load_contexts(path)


def write(path: Path, name: str, field: str, value: Any) -> None:
    """The archive with one field replaced, by its path in the header or among the arrays; DROP takes it away."""
    SAVED[name]().save(path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    header = json.loads(str(arrays.pop("header")))
    *parents, last = field.split("/")
    where = header if parents or last in header else arrays
    for parent in parents:
        where = where[parent]
    if value is DROP:
        del where[last]
    else:
        where[last] = value(where[last]) if callable(value) else value
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


def changed(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


NUMBERS = [DROP, None, "1", -1, 1.5, True, [], {}, NAN]
DAMAGES: dict[tuple[str, str], list[Any]] = {
    ("mixture", "kind"): [DROP, "contexts", None, 1, ["GaussianMixture"], {}],
    ("mixture", "num_components"): [*NUMBERS, 0, 3, 10**30],
    ("mixture", "covariance"): [DROP, "full", "spherical", "fit", None, 1, []],
    ("mixture", "n_init"): [*NUMBERS, 0],
    ("mixture", "max_iter"): NUMBERS,
    ("mixture", "tol"): [DROP, None, "1", -1, True, [], {}, NAN, float("inf")],
    ("mixture", "reg_covar"): [DROP, None, "1", -1, True, [], {}, NAN],
    ("mixture", "init"): [DROP, "fit", None, []],
    ("mixture", "seed"): [DROP, None, "1", 1.5, True, [], {}, 10**30],
    ("mixture", "chunk_size"): [DROP, "1", -1, 0, 1.5, True, [], {}],
    ("mixture", "converged_"): [DROP, None, 1, "yes", False, []],
    ("mixture", "n_iter_"): [*NUMBERS, 0, 2.0],
    ("mixture", "lower_bound_"): [DROP, None, "1", NAN, 0.0, True, []],
    ("mixture", "lower_bounds_"): [DROP, None, "ab", [], {}, 3, [NAN], ["a", "b"], [True, True], lambda b: b[:-1]],
    ("mixture", "weights_"): [
        DROP, lambda w: w * 2, lambda w: w - 1, lambda w: w[:1], lambda w: w[None], lambda w: w.astype(np.float32),
        lambda w: w * NAN, lambda w: w.astype(str), lambda w: w.astype(complex), np.ones(2, bool), changed(0, -0.5),
    ],
    ("mixture", "means_"): [DROP, lambda m: m[:, :1], lambda m: m[0], lambda m: m[:, :0], lambda m: m * np.inf,
        lambda m: m > 0],
    ("mixture", "covariances_"): [DROP, lambda c: -c, lambda c: c * 0, lambda c: c[0], changed((0, 0), NAN),
        lambda c: c.sum()],
    ("full", "covariances_"): [lambda c: -c, lambda c: c * 0, changed((0, 0, 1), 9.0), lambda c: c[:, 0]],
    ("gmm", "kind"): [DROP, "GaussianMixture", None, []],
    ("gmm", "class"): [DROP, "Path", "Contexts", "RandomContexts", "GaussianMixture", None, 3, [], {}],
    ("gmm", "state"): [DROP, None, [], {}, 3, "x"],
    ("gmm", "state/features"): [DROP, "color", "assign", None, 3],
    ("gmm", "state/pca"): [*[n for n in NUMBERS if n is not None], 0, 1, 3],
    ("gmm", "state/tol"): [DROP, None, "1", -1, True, [], NAN, 0.5],
    ("gmm", "state/image_shape"): [DROP, None, 3, [], [2, 2], [2, 2, 0], [2, 2, -3], [2, 2, 1.0], ["2", 2, 3], [3,
        3, 3], [True, 4, 3]],
    ("gmm", "state/gmm"): [DROP, None, [], {}, "x"],
    ("gmm", "state/gmm/num_components"): [*NUMBERS, 3],
    ("gmm", "state/gmm/seed"): [DROP, None, "1", 1.5],
    ("gmm", "mean"): [DROP, lambda m: m[:-1], lambda m: m * NAN, lambda m: m.astype(np.float32)],
    ("gmm", "axes"): [DROP, lambda a: a.T, lambda a: a * 2, lambda a: a * NAN, lambda a: a[:, ::-1] * 0,
        lambda a: a[:, [0, 0]]],
    ("color", "means_"): [DROP, lambda m: m[:, :2]],
    ("color", "state/image_shape"): [[2, 2, 4], None],
    ("k-means", "means"): [DROP, lambda m: m[:1], lambda m: m[0], lambda m: m[:, :0], lambda m: m[:, :3],
        lambda m: m * NAN, lambda m: m.astype(np.float32)],
    ("k-means", "state/num_contexts"): [*NUMBERS, 0, 3],
    ("k-means", "state/seed"): [None, "1", 1.5, True, []],
    ("random", "state/num_contexts"): [*NUMBERS, 0, 3],
    ("random", "state/probabilities"): [[1], [0.5, 0.6], [-1, 2], ["0.5", "0.5"], "ab", 3, {}, [NAN, 1], [None, 1]],
    ("random", "state/seed"): [None, "1", 1.5, True, [], 10**30],
    ("random", "state/assign"): [1],
    ("domain", "state/names"): [DROP, None, "ab", [], ["a", "a"], [1, 2], {}, 3],
    ("superclass", "state/fine_to_coarse"): [None, [], "ab", [-1, 0], [0.5], [True], {}, 3, [10**30], [[0, 1]]],
    ("shuffled", "state/seed"): [DROP, None, -1, 1.5, True],
    ("shuffled", "state/class"): [DROP, "Path", None, [], "SuperclassContexts"],
    ("shuffled", "state/base"): [DROP, None, {}, []],
}  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value"), [
    pytest.param(name, field, value, id=f"{name}.{field}-{i}")
    for (name, field), values in DAMAGES.items() for i, value in enumerate(values)
])  # fmt: skip
def test_damaged_fields_are_refused_by_file_name(name: str, field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    if field == "state/assign":
        SAVED[name]().save(path)
        with np.load(path) as file:
            header = json.loads(str(file["header"]))
        header["state"]["assign"] = 1
        np.savez(path, header=np.array(json.dumps(header)))
    else:
        write(path, name, field, value)
    with pytest.raises(ValueError, match=r"saved\.npz"):
        load(path, name)


@pytest.mark.parametrize("name", SAVED)
def test_names_in_a_file_replace_no_method(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    SAVED[name]().save(path)
    with np.load(path) as file:
        arrays = dict(file.items())
    np.savez(path, **arrays, predict=np.ones(3), assign=np.ones(3), save=np.ones(3))
    loaded = load(path, name)
    assert "predict" not in vars(loaded) and "assign" not in vars(loaded) and "save" not in vars(loaded)


HEADERS = [
    "[]",
    "null",
    "3",
    '"x"',
    "{",
    "",
    "{}",
    '{"kind": "GaussianMixture"}',
    '{"kind": "contexts"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h[:12] or "empty")
@pytest.mark.parametrize("read", [GaussianMixture.load, load_contexts, GMMContexts.load])
def test_headers_that_are_none(read: Callable, header: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "saved.npz", header=np.array(header))
    with pytest.raises(ValueError, match=r"saved\.npz"):
        read(tmp_path / "saved.npz")


@pytest.mark.parametrize("header", [np.array(3.0), np.array([]), np.array(["{}", "{}"]), np.array(b"\xff")])
def test_headers_of_another_type(header: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "saved.npz", header=header)
    for read in (GaussianMixture.load, load_contexts):
        with pytest.raises(ValueError, match=r"saved\.npz"):
            read(tmp_path / "saved.npz")


def plain(source: Any) -> str:
    """Everything that is saved of it."""
    header, arrays = source.state()
    return json.dumps([header, {name: array.tolist() for name, array in arrays.items()}])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "gmm", "random"])
def test_each_flipped_bit_is_found_or_harmless(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    source = SAVED[name]()
    source.save(path)
    whole, expected = path.read_bytes(), plain(source)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = load(path, name)
        except ValueError as error:
            assert "saved.npz" in str(error)
        else:
            assert plain(loaded) == expected, position


@pytest.mark.parametrize("name", ["mixture", "gmm"])
def test_a_file_cut_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    SAVED[name]().save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 29):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"saved\.npz"):
            load(path, name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.npz", name)


def test_a_load_of_another_class_names_the_file(tmp_path: Path) -> None:
    SAVED["random"]().save(tmp_path / "saved.npz")
    assert isinstance(Contexts.load(tmp_path / "saved.npz"), RandomContexts)
    for read in (GMMContexts.load, GaussianMixture.load):
        with pytest.raises(ValueError, match=r"saved\.npz holds .*expected"):
            read(tmp_path / "saved.npz")
