"""Is a context worth more than its label? CN told what somebody saw who looked at the other half of the picture.

    cnlib sweep second-view --profile reduced

A network sees the left half of each image. Another one, which was trained on other images and saw right halves only,
has guessed the class; its guess is the context. Such a context has new bits, is not made from the label, is often wrong
and shares with the left half more than the class: what a second camera, a reader or an older model tells. Its guesses
are kept (`cnlib/records/guesses`, made by `python -m studies.guesses`), so that every machine tells the same.

Sizes, optimizer and readings are those of `context_ablation`, but for `narrow`: 30 epochs. CN sits on the image
(`cn-channels`), in the third layer (`cn`) or on the logits (`cn-logits`), where it can do what Bayes' rule does.
Controls: `cn-channels-random` is told lots; `cn-channels-linear` has the encoder of the third layer; on
`cifar10-left-own` the guess is at the *same* half, by a network trained in the same way, and has no new bits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from cnlib.data import EMBEDDED, ImageData, load
from cnlib.experiments.context_ablation import PROFILES, PUBLISHED
from cnlib.experiments.convnet import IMAGE, THIRD
from cnlib.records import RECORDS
from cnlib.sweeps.experiment import Claim, Experiment, Fields, Grid
from cnlib.training.records import read_columns

GUESSES = RECORDS / "guesses"


def halves(data: ImageData, side: str, ours: bool = True) -> ImageData:
    """The left or right halves of the test images and of every second training image: the first, third, ..., which are
    ours, or the others. Domains, where there are any, go with their images."""
    width = data.train_images.shape[2] // 2
    sides = {"left": slice(width), "right": slice(width, None)}
    if side not in sides:
        raise ValueError(f"halves: side is {side!r}, expected left or right")
    columns, chosen = sides[side], slice(0 if ours else 1, None, 2)
    return replace(
        data,
        name=f"{data.name}-{side}",
        train_images=np.ascontiguousarray(data.train_images[chosen, :, columns]),
        train_labels=data.train_labels[chosen],
        train_domains=None if data.train_domains is None else data.train_domains[chosen],
        test_images=np.ascontiguousarray(data.test_images[:, :, columns]),
    )


def nearest_mean(data: ImageData, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Guesses (N,) at our training images and at the test images: the class whose mean half among the others' images
    is nearest."""
    ours, others = halves(data, side), halves(data, side, ours=False)
    of_class = [others.train_images[others.train_labels == c].mean(0) for c in range(len(data.classes))]
    means = np.stack(of_class).reshape(len(of_class), -1)

    def nearest(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), 1, -1).astype(np.float64)
        return np.square(flat - means).sum(2).argmin(1)

    return nearest(ours.train_images), nearest(ours.test_images)


def kept_guesses(data: ImageData, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Guesses (N,) of a network, at our training images and at the test images. Raises ValueError where there are
    none, or of other images."""
    path = GUESSES / f"{data.name}-{side}.jsonl"
    way_out = f"make them anew with python -m studies.guesses --dataset {data.name} --side {side}"
    if not path.is_file():
        raise ValueError(f"no guesses at {data.name} by a network that saw {side} halves, expected {path}: {way_out}")
    header, kept = read_columns(path, ("train", "test"))
    if header["data"] != data.checksum:
        raise ValueError(f"{data.name} here is {data.checksum}, the kept guesses are of {header['data']}: {way_out}")
    return kept["train"], kept["test"]


# our left halves: of which set, and the half at which was guessed, and how
LEFT_HALVES = {
    "digits-left": ("digits-16", "right", nearest_mean),
    "digits-left-own": ("digits-16", "left", nearest_mean),
    "cifar10-left": ("cifar10", "right", kept_guesses),
    "cifar10-left-own": ("cifar10", "left", kept_guesses),
}


@lru_cache(maxsize=len(LEFT_HALVES))
def left_halves(name: str) -> ImageData:
    """The data set of that name, with the guesses (N,) at the same images as their domains."""
    source, side, guess = LEFT_HALVES[name]
    data = load(source)
    train, test = guess(data, side)
    domains = tuple(f"guess {label}" for label in data.classes)
    return replace(halves(data, "left"), name=name, train_domains=train, test_domains=test, domains=domains)


EMBEDDED.update({name: partial(left_halves, name) for name in LEFT_HALVES})
GUESS: Fields = {"contexts": "domain", "num_contexts": 10}
SIZES: dict[str, Fields] = {
    **PROFILES,
    **{name: {**PROFILES[name], "dataset": "digits-left"} for name in ("smoke", "book")},
    # all images, and seven times the steps of "reduced"
    "narrow": {**PROFILES["narrow"], "epochs": 30},
}
LOGITS: Fields = {"norm": "cn", "placement": ("logits",)}
METHODS: dict[str, Fields] = {
    "bn": {"norm": "bn"},
    "cn-channels": {**IMAGE, **GUESS},
    "cn-logits": {**LOGITS, **GUESS},
    "cn": {**THIRD, **GUESS},
    "cn-channels-random": {**IMAGE, **GUESS, "contexts": "random"},
    "cn-channels-linear": {**IMAGE, **GUESS, "encoder": "linear"},
}
MAIN = ("bn", "cn-channels", "cn-logits", "cn", "cn-channels-random")
OWN = ("bn", "cn-channels", "cn-logits")
# declared before the first run
LAST = "test_reestimated"
OTHER: Fields = {"dataset": "cifar10-left"}
PRIMARY = {
    "told a second view on the image, minus BN": Claim({"image": ("cn-channels", "bn")}, where=OTHER),
    "told a second view on the image, minus Bayes' rule": Claim(
        {"image": ("cn-channels", "bn")}, (LAST, "test_bayes_domain_reestimated"), OTHER
    ),
    "told a second view on the logits, minus on the image": Claim(
        {"logits": ("cn-logits", "cn-channels")}, where=OTHER
    ),
}
EXPERIMENT = Experiment(
    name="second_view",
    about="CN told a guess at the class by a network that saw the other half of the picture",
    methods=METHODS,
    published={**PUBLISHED, "dataset": "cifar10-left"},
    profiles=SIZES,
    sweeps={
        "second-view": (
            Grid(MAIN, ({},)),
            Grid(OWN, ({"dataset": "cifar10-left-own"},), ("reduced",)),
            Grid(("cn-channels-linear",), ({},), ("smoke", "reduced")),
        )
    },
    primary=PRIMARY,
)
config = EXPERIMENT.config
