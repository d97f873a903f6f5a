"""What a Gaussian mixture finds in images, and whether its components can serve as contexts: the records of chapter 8.

    python -m studies.images --out DIR --dataset cifar10

One file a data set: statistics of the images, never the images.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from torch import nn

from cnlib import contexts, data
from cnlib.arguments import MOST_THREADS, explained, folder
from cnlib.contexts import GMMContexts
from cnlib.contexts.quality import (
    audit,
    between_share,
    contingency,
    image_statistics,
    matched,
    mutual_information,
    patch_means,
    shares,
    spectrum,
)
from cnlib.data import ImageData
from cnlib.mixture.gaussian import GaussianMixture
from cnlib.storage import write_npz
from cnlib.training import Config, train
from cnlib.training.batches import Split, moments
from cnlib.training.build import build_model
from cnlib.training.records import provenance, write_lines
from studies import rounded

Row = dict[str, Any]
# arguments of GMMContexts; the first is its default and that of chapter 9
CELLS: dict[str, dict[str, Any]] = {
    "pixels, diag": {},
    "pixels, spherical": {"covariance": "spherical"},
    "PCA 32, full": {"pca": 32, "covariance": "full"},
    "PCA 32, diag": {"pca": 32},
    "PCA 32, tied": {"pca": 32, "covariance": "tied"},
    "PCA 32, spherical": {"pca": 32, "covariance": "spherical"},
    "color, full": {"features": "color", "covariance": "full"},
    "color, diag": {"features": "color"},
    "color, tied": {"features": "color", "covariance": "tied"},
}
# the network of chapter 9 at a quarter of its width, batch norm in every slot
NETWORK: dict[str, Any] = {"norm": "bn", "width": 0.25, "flip": True}
PORTRAITS = ("pixels, diag", "PCA 32, full", "color, full")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """portrait: training images of the portraits (None: all); fit: of every other fit; test: test images assigned;
    cells: those fitted with K = 3, two of them with every K in `counts` too; orders: training images of the BIC curves;
    audits: whether mistakes are made and audited; net: training images and epochs of the network."""

    portrait: int | None
    fit: int
    test: int
    seeds: int
    cells: tuple[str, ...] = tuple(CELLS)
    counts: tuple[int, ...]
    orders: tuple[int, ...]
    order_counts: tuple[int, ...]
    wide: int
    wide_counts: tuple[int, ...]
    audits: bool = True
    net: tuple[int, int]
    net_seeds: int


PROFILES = {
    "smoke": Sizes(
        portrait=400, fit=200, test=100, seeds=2, counts=(2, 3), orders=(100, 200), order_counts=(1, 2, 3),
        wide=100, wide_counts=(1, 2), net=(200, 1), net_seeds=1,
    ),
    "reduced": Sizes(
        portrait=None, fit=5000, test=5000, seeds=5, counts=(2, 3, 4, 5, 6, 8), orders=(1000, 10_000, 50_000),
        order_counts=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32), wide=2000, wide_counts=(1, 3, 10, 20, 30, 60, 100),
        net=(8000, 4), net_seeds=3,
    ),
}  # fmt: skip
# the portraits in full and a few of the other fits, for a second data set
PROFILES["short"] = replace(
    PROFILES["reduced"], cells=PORTRAITS, counts=(), orders=(), wide_counts=(), audits=False, net_seeds=2
)


def portraits(source: ImageData, size: int | None, arrays: dict[str, np.ndarray]) -> Iterator[Row]:
    """Three components, fitted on the training images and applied to the test images, described; pictures of means and
    deviations go to `arrays`."""
    part, classes = source.subset(size), len(source.classes)
    measured = {split: image_statistics(getattr(part, f"{split}_images")) for split in ("train", "test")}
    for cell in PORTRAITS:
        mixture = GMMContexts(3, **CELLS[cell]).fit(part.train_images)
        ids = {split: mixture.assign(getattr(part, f"{split}_images")).numpy() for split in ("train", "test")}
        groups = [part.train_images[ids["train"] == r] for r in range(3)]
        row: Row = {"cell": cell, "iterations": mixture.gmm.n_iter_, "weights": mixture.gmm.weights_.tolist()}
        for split, found in ids.items():
            row[f"{split}_shares"] = shares(found, 3)
            row[f"{split}_classes"] = contingency(found, getattr(part, f"{split}_labels"), 3, classes).tolist()
            row[f"{split}_explained"] = {n: float(between_share(v, found)[0]) for n, v in measured[split].items()}
        for name, values in measured["train"].items():
            row[name] = [np.quantile(values[ids["train"] == r], np.linspace(0.05, 0.95, 19)).tolist() for r in range(3)]
        row["channels"] = [group.mean((0, 1, 2)).tolist() for group in groups]
        row["spectrum"] = [spectrum(group[:4000]).tolist() for group in groups]
        arrays[f"{cell}: mean"] = np.stack([group.mean(0).round().astype(np.uint8) for group in groups])
        arrays[f"{cell}: deviation"] = np.stack([group.mean(3).std(0).round().astype(np.uint8) for group in groups])
        yield row


def fits(source: ImageData, sizes: Sizes) -> Iterator[Row]:
    """Every cell at K = 3 and two of them at other K: `seeds` starts on one part of the training images, and one fit on
    another part without a common image. ARI of the test images' assignments, pairs of seeds and between the parts."""
    from sklearn.metrics import adjusted_rand_score

    both = source.subset(2 * sizes.fit, sizes.test)
    first, second, test = both.train_images[::2], both.train_images[1::2], both.test_images
    measured = image_statistics(test)
    cells = [(cell, 3) for cell in sizes.cells]
    cells += [(cell, k) for cell in PORTRAITS[:2] for k in sizes.counts if k != 3]
    for cell, k in cells:
        runs = [GMMContexts(k, seed=seed, **CELLS[cell]).fit(first) for seed in range(sizes.seeds)]
        apart = GMMContexts(k, **CELLS[cell]).fit(second)
        ids = [run.assign(test).numpy() for run in runs]
        other = apart.assign(test).numpy()
        yield {
            "cell": cell,
            "k": k,
            "ari_seeds": [adjusted_rand_score(ids[i], ids[j]) for i in range(len(ids)) for j in range(i)],
            "ari_parts": adjusted_rand_score(ids[0], other),
            "same_id_parts": float((ids[0] == other).mean()),
            "matched_parts": matched(ids[0], other, k)[0],
            "likelihood": [run.gmm.lower_bound_ for run in runs],
            "iterations": [run.gmm.n_iter_ for run in runs],
            "sharpness": float(runs[0].responsibilities(test).max(1).values.mean()),
            "shares": shares(runs[0].assign(first).numpy(), k),
            "test_shares": shares(ids[0], k),
            "other_shares": shares(apart.assign(second).numpy(), k),
            "explained": {name: float(between_share(values, ids[0])[0]) for name, values in measured.items()},
            "class_bits": mutual_information(contingency(ids[0], both.test_labels, k, len(source.classes))),
        }


def orders(source: ImageData, sizes: Sizes) -> Iterator[Row]:
    """BIC and held-out likelihood over K: full covariances in 8 principal components, diagonal ones on raw pixels."""
    test = source.subset(None, sizes.test).test_images
    pixels = test.reshape(len(test), -1)
    for n in sizes.orders:
        images = source.subset(n).train_images
        base = GMMContexts(1, "full", pca=8).fit(images)
        x, held_out = base.features_of(images), base.features_of(test)
        for k in sizes.order_counts:
            yield order("PCA 8, full", x, held_out, k, "full", 1e-4 * x.shape[1])
    x = source.subset(sizes.wide).train_images.reshape(sizes.wide, -1)
    for k in sizes.wide_counts:
        yield order("pixels, diag", x, pixels, k, "diag", 1e-5 * x.shape[1])


def order(cell: str, x: np.ndarray, held_out: np.ndarray, k: int, covariance: str, tol: float) -> Row:
    fit = GaussianMixture(k, covariance, reg_covar=1.0, tol=tol, max_iter=300, init="k-means").fit(x)
    likelihood, outside = float(fit.log_likelihood(x)), float(fit.log_likelihood(held_out))
    sizes = {"n": len(x), "dim": x.shape[1], "parameters": fit.num_parameters()}
    return {"cell": cell, "k": k, **sizes, "likelihood": likelihood, "held_out": outside, "bic": fit.bic(x)}


def faults(source: ImageData, sizes: Sizes) -> Iterator[Row]:
    """The right way and four mistakes: shares, agreement, and how well pixels predict the ids (see `audit`)."""
    part, draw = source.subset(2 * sizes.fit, sizes.test), np.random.default_rng(0)
    mixture = GMMContexts(3).fit(part.train_images)
    train_ids, test_ids = (mixture.assign(images).numpy() for images in (part.train_images, part.test_images))
    apart = GMMContexts(3, seed=1).fit(part.test_images).assign(part.test_images).numpy()
    cases = {
        "fit on train, assign test": (train_ids, test_ids),
        "components renamed at test": (train_ids, np.array([1, 2, 0])[test_ids]),
        "fitted apart": (train_ids, apart),
        "train rows in another order": (draw.permutation(train_ids), test_ids),
        "both in another order": (draw.permutation(train_ids), draw.permutation(test_ids)),
    }
    x, x_test = patch_means(part.train_images), patch_means(part.test_images)
    for case, (own, other) in cases.items():
        row: Row = {"case": case, "train_shares": shares(own, 3), "test_shares": shares(other, 3)}
        row["same_id"], row["matched"] = float((test_ids == other).mean()), matched(test_ids, other, 3)[0]
        row["train"] = audit(x[::2], own[::2], x[1::2], own[1::2])
        row["test"] = audit(x_test[::2], other[::2], x_test[1::2], other[1::2])
        row["across"] = audit(x[::2], own[::2], x_test, other)
        yield row


def explained_shares(source: ImageData, sizes: Sizes) -> Iterator[Row]:
    """Share of the variance at the input of the third norm layer that a context accounts for, before training and after
    it, with batch norm in every slot; on test images."""
    part = source.subset(sizes.net[0], sizes.test // 2)
    images, labels = part.test_images, part.test_labels
    ids = {cell: GMMContexts(3, **CELLS[cell]).fit(part.train_images).assign(images).numpy() for cell in PORTRAITS}
    ids["shuffled"] = np.random.default_rng(0).permutation(ids[PORTRAITS[0]])
    ids["random"] = contexts.RandomContexts(3).assign(images).numpy()
    if source.name == "cifar100":
        ids["superclass"] = contexts.SuperclassContexts().assign(images, labels).numpy()
    # no context can explain more than the image itself
    ids |= {"class": labels, "image": np.arange(len(images))}
    x = next(Split(images, labels, moments(part.train_images), torch.device("cpu")).ordered(len(images))).x
    for seed in range(sizes.net_seeds):
        sizes_of: Row = {"train_size": sizes.net[0], "test_size": len(images), "epochs": sizes.net[1]}
        config = Config(dataset=source.name, profile="reduced", seed=seed, **sizes_of, **NETWORK)
        torch.manual_seed(seed)
        models = {"start": build_model(config, part), "trained": train(config, progress=False).model}
        for state, model in models.items():
            z = before_third_norm(cast(nn.Sequential, model), x)
            shared = {name: float(between_share(z, group).mean()) for name, group in ids.items()}
            yield {"state": state, "seed": seed, "explained": shared}


@torch.no_grad()
def before_third_norm(model: nn.Sequential, x: torch.Tensor) -> np.ndarray:
    """The activations (N, C, H, W) that the third norm layer of the ConvNet is given, with batch statistics before."""
    for name, layer in model.train().named_children():
        if name == "norm3":
            break
        x = layer(x)
    return x.numpy()


def analyse(source: ImageData, profile: str) -> tuple[list[Row], dict[str, np.ndarray]]:
    """(lines, arrays) of the record: a header, then a line for each row of each part."""
    sizes, lines = PROFILES[profile], []
    seconds: dict[str, int] = {}
    arrays: dict[str, np.ndarray] = {}
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "portrait": lambda: portraits(source, sizes.portrait, arrays),
        "fit": lambda: fits(source, sizes),
        "order": lambda: orders(source, sizes),
        "fault": lambda: faults(source, sizes) if sizes.audits else (),
        "explained": lambda: explained_shares(source, sizes),
    }
    for kind, part in parts.items():
        clock = time.monotonic()
        lines += [{"type": kind, **row} for row in part()]
        seconds[kind] = round(time.monotonic() - clock)
        print(f"{source.name}, {kind}: {seconds[kind]} s", flush=True)
    header: Row = {"type": "header", "dataset": source.name, "classes": list(source.classes), "profile": profile}
    header |= {"sizes": asdict(sizes), "seconds": seconds}
    header["provenance"] = provenance(torch.device("cpu"), source.checksum)
    return rounded([header, *lines]), arrays


def main(
    out: Annotated[Path, typer.Option(parser=folder, metavar="FOLDER", help="of the record, one file a data set")],
    dataset: Annotated[str, typer.Option(help="cifar10, cifar100, or another that cnlib.data loads")] = "cifar10",
    profile: Annotated[str, typer.Option(help="sizes: " + ", ".join(PROFILES))] = "reduced",
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="of the CPU")] = 1,
) -> None:
    """Describe the mixtures of a data set's images, and record what chapter 8 draws."""
    if profile not in PROFILES:
        raise typer.BadParameter(f"{profile!r}: expected one of {', '.join(PROFILES)}", param_hint="--profile")
    with explained():
        source = data.load(dataset)
        out.mkdir(parents=True, exist_ok=True)  # not after hours
    torch.set_num_threads(threads)
    # recorded: iterations
    warnings.filterwarnings("ignore", message="EM did not reach")
    lines, arrays = analyse(source, profile)
    write_lines(out / f"{dataset}.jsonl", lines)
    write_npz(out / f"{dataset}.npz", {"kind": "mixtures", "data": lines[0]["provenance"]["data"]}, arrays)


if __name__ == "__main__":
    typer.run(main)
