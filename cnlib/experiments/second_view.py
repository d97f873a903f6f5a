"""Is a context worth more than its label? CN told what somebody saw who looked at the other half of the picture.

    cnlib sweep second-view --profile reduced

A network sees the left half of each image. Another one, which was trained on other images and saw right halves only,
has guessed the class; its guess is the context. Such a context has new bits, is not made from the label, is often wrong
and shares with the left half more than the class: what a second camera, a reader or an older model tells. Its guesses
are kept (`cnlib/records/guesses`, made by `python -m studies.guesses`), so that every machine tells the same.

Sizes, optimizer and readings are those of `context_ablation`. CN sits on the image (`cn-channels`), in the third layer
(`cn`) or on the logits (`cn-logits`), where it can do what Bayes' rule does; `cn-channels-random` is told lots.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from cnlib.data import EMBEDDED, ImageData, load
from cnlib.experiments.context_ablation import PROFILES, PUBLISHED, SEEDS
from cnlib.experiments.convnet import IMAGE, THIRD
from cnlib.experiments.learned_norms import digits_at_16
from cnlib.records import RECORDS
from cnlib.sweeps.experiment import Claim, Experiment, Fields, Grid
from cnlib.training.records import read_lines, unpack

GUESSES = RECORDS / "guesses"


def halves(data: ImageData, right: bool = False) -> ImageData:
    """The left halves of the test images and of every second training image, the first, third, ...; or the right halves
    of the same test images and of the other training images."""
    width = data.train_images.shape[2] // 2
    columns = slice(width, None) if right else slice(width)
    chosen = slice(1 if right else 0, None, 2)
    return replace(
        data,
        name=f"{data.name}-{'right' if right else 'left'}",
        train_images=np.ascontiguousarray(data.train_images[chosen, :, columns]),
        train_labels=data.train_labels[chosen],
        test_images=np.ascontiguousarray(data.test_images[:, :, columns]),
    )


def seen_by_others(data: ImageData) -> np.ndarray:
    """The right halves (N, H, W, C) of the training images of which `halves` shows the left ones."""
    return np.ascontiguousarray(data.train_images[::2, :, data.train_images.shape[2] // 2 :])


def told(data: ImageData, train: np.ndarray, test: np.ndarray) -> ImageData:
    """The left halves, with what was guessed of the right ones of the same images as their domains, (N,) each."""
    names = tuple(f"guess {name}" for name in data.classes)
    return replace(halves(data), train_domains=train, test_domains=test, domains=names)


@lru_cache(maxsize=1)
def digits_left() -> ImageData:
    """Of the embedded digits, with the class whose mean right half among the other images is nearest."""
    data = digits_at_16()
    right = halves(data, right=True)
    of_class = [right.train_images[right.train_labels == c].mean(0) for c in range(len(data.classes))]
    means = np.stack(of_class).reshape(len(of_class), -1)

    def nearest(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), 1, -1).astype(np.float64)
        return np.square(flat - means).sum(2).argmin(1)

    return told(data, nearest(seen_by_others(data)), nearest(right.test_images))


@lru_cache(maxsize=1)
def cifar10_left() -> ImageData:
    """Of CIFAR-10, with the guesses that are kept. Raises ValueError where they are of other images."""
    data = load("cifar10")
    (kept,) = read_lines(GUESSES / "cifar10.jsonl")
    if kept["data"] != data.checksum:
        raise ValueError(
            f"cifar10 here is {data.checksum}, the kept guesses are of {kept['data']}: make them anew with python -m "
            "studies.guesses"
        )
    return told(data, unpack(kept["train"]), unpack(kept["test"]))


EMBEDDED.update({"digits-left": digits_left, "cifar10-left": cifar10_left})
GUESS: Fields = {"contexts": "domain", "num_contexts": 10}
SIZES: dict[str, Fields] = {
    **PROFILES,
    **{name: {**PROFILES[name], "dataset": "digits-left"} for name in ("smoke", "book")},
    # all images, and seven times the steps of "reduced"
    "narrow": {**PROFILES["narrow"], "epochs": 30},
}
METHODS: dict[str, Fields] = {
    "bn": {"norm": "bn"},
    "cn-channels": {**IMAGE, **GUESS},
    "cn-logits": {"norm": "cn", "placement": ("logits",), **GUESS},
    "cn": {**THIRD, **GUESS},
    "cn-channels-random": {**IMAGE, **GUESS, "contexts": "random"},
}
# declared before the first run
LAST = "test_reestimated"
PRIMARY = {
    "told a second view on the image, minus BN": Claim({"image": ("cn-channels", "bn")}),
    "told a second view on the image, minus Bayes' rule": Claim(
        {"image": ("cn-channels", "bn")}, (LAST, "test_bayes_domain_reestimated")
    ),
    "told a second view on the logits, minus on the image": Claim({"logits": ("cn-logits", "cn-channels")}),
}
EXPERIMENT = Experiment(
    name="second_view",
    about="CN told a guess at the class by a network that saw the other half of the picture",
    methods=METHODS,
    published={**PUBLISHED, "dataset": "cifar10-left"},
    profiles=SIZES,
    seeds=SEEDS,
    sweeps={"second-view": (Grid(tuple(METHODS), ({},)),)},
    printed={},
    primary=PRIMARY,
)
config = EXPERIMENT.config
