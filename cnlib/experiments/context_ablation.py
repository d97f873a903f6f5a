"""What is a context worth? CN with contexts of every quality, from none to the label, and contexts a network finds.

    cnlib sweep quality --profile reduced

The network, optimizer and sizes are those of `convnet`; CN sits on the image (`cn-channels-...`) or in the third layer
(`cn-...`). A method's name ends with where its contexts come from, how many there are, and the rate at which they are
wrong: `cn-channels-label-10-0.25`. The task, `cnlib.training.Worth`, reads wrong contexts, and BN by Bayes' rule.

quality     from the label (groups of classes), from the image (clusters of colors, a mixture on pixels, clusters of a
            network's features), and at random
learned     mode normalization and gated CN, beside contexts that are given; on MNIST with SVHN there are two domains;
            `-kmeans` starts their gates from clusters
other-data  Tiny ImageNet at 32 by 32, and MNIST with SVHN, whose contexts are the sets
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cnlib.data import EMBEDDED, ImageData, load, root
from cnlib.data.blend import load_blend
from cnlib.experiments.convnet import IMAGE, THIRD
from cnlib.experiments.convnet import PUBLISHED as CONVNET
from cnlib.sweeps.experiment import Claim, Experiment, Fields, Grid
from cnlib.training.worth import RATES

PLACES = {"cn-channels": IMAGE, "cn": THIRD}
CLASSES = {"cifar10": (2, 5, 10), "cifar100": (20,)}  # how many groups of classes
COUNTS = (2, 3, 5, 10, 20)  # contexts of other sources


def given(place: str, source: str, count: int, rate: float = 0.0) -> str:
    """The name of a method that is given contexts."""
    return f"{place}-{source}-{count}" + (f"-{rate:g}" if rate else "")


def gated(norm: str, count: int, place: str = "conv3", **options: Any) -> Fields:
    return {"norm": norm, "num_contexts": count, "placement": (place,), "options": options}


BALANCE = 0.01
METHODS: dict[str, Fields] = {
    "bn": {"norm": "bn"},
    **{
        given(place, "label", count, rate): {**fields, "contexts": "label", "num_contexts": count, "corruption": rate}
        for place, fields in PLACES.items()
        for counts in CLASSES.values()
        for count in counts
        for rate in RATES
    },
    **{
        given(place, name, count): {**fields, "contexts": source, "num_contexts": count}
        for place, fields in PLACES.items()
        for name, source in (("color", "color"), ("pixels", "gmm"), ("features", "features"), ("random", "random"))
        for count in (COUNTS if name != "features" else (4, 10))
    },
    **{f"{place}-one": {**fields, "contexts": "one", "num_contexts": 1} for place, fields in PLACES.items()},
    **{f"{place}-domain": {**fields, "contexts": "domain", "num_contexts": 2} for place, fields in PLACES.items()},
    **{f"mode-{count}": gated("mode", count) for count in (2, 4)},
    "gated-4": gated("gated", 4, balance=BALANCE),
    "gated-4-hard": gated("gated", 4, balance=BALANCE, hard=True),
    "mode-4-kmeans": gated("mode", 4, kmeans=True),
    "gated-4-kmeans": gated("gated", 4, balance=BALANCE, kmeans=True),
    "mode-channels-4": gated("mode", 4, "input"),
    "gated-channels-4": gated("gated", 4, "input", balance=BALANCE),
}
PUBLISHED: Fields = {**CONVNET, "task": "worth", "flip": True}


def _half(name: str) -> ImageData:
    """As many images of either set as SVHN has here, so that neither domain is the usual one."""
    return load(name).subset(7000, 3000)


def even_digits() -> ImageData:
    """MNIST and SVHN as `load` blends them, in equal parts."""
    return replace(load_blend("mnist+svhn_test10k", root(), _half), name=EVEN)


EVEN = "mnist-svhn-even"
EMBEDDED[EVEN] = even_digits
DIGITS: Fields = {"dataset": "digits+inverse-digits", "flip": False, "batch_size": 64}
PROFILES: dict[str, Fields] = {
    "smoke": {**DIGITS, "width": 0.0625, "epochs": 2, "train_size": 200, "test_size": 100},
    "book": {**DIGITS, "width": 0.25, "epochs": 5},
    "reduced": {"width": 0.25, "epochs": 10, "train_size": 10240, "test_size": 2000},
    "narrow": {"width": 0.25, "epochs": 100},
    "paper": {"width": 1.0, "epochs": 100},
}
C10: Fields = {"dataset": "cifar10"}
C100: Fields = {"dataset": "cifar100"}
DOMAINS: Fields = {"dataset": EVEN, "flip": False}
TINY: Fields = {"dataset": "tiny_imagenet32"}
NOT_DIGITS = ("reduced", "narrow", "paper")


def labels(place: str, counts: tuple[int, ...], rates: tuple[float, ...] = RATES) -> tuple[str, ...]:
    return tuple(given(place, "label", count, rate) for count in counts for rate in rates)


def images(place: str, *sources: tuple[str, int]) -> tuple[str, ...]:
    return tuple(given(place, source, count) for source, count in sources)


IMAGE_DERIVED = (("color", 2), ("color", 10), ("color", 20), ("pixels", 10), ("features", 10))
RANDOM = (("random", 2), ("random", 10), ("random", 20))
QUALITY = (
    Grid(("bn", *labels("cn-channels", (10, 2))), (C10,)),
    Grid((*images("cn-channels", *IMAGE_DERIVED), "cn-channels-one", *images("cn-channels", *RANDOM)), (C10,)),
    Grid((*labels("cn", (10,), RATES[::2]), "cn-one", *images("cn", ("color", 10), ("random", 10))), (C10,)),
    Grid(("bn", *labels("cn-channels", (20,)), *labels("cn", (20,), (0.0,))), (C100,), NOT_DIGITS),
    Grid(images("cn-channels", ("color", 20), ("random", 20)), (C100,), NOT_DIGITS),
    Grid(labels("cn-channels", (5,), (0.0, 0.5)), (C10,)),
)
FOUND = ("mode-2", "mode-4", "gated-4", "gated-4-hard")
LEARNED = ("bn", *FOUND, "cn-features-4", "cn-label-2")
STARTED = ("mode-4-kmeans", "gated-4-kmeans")
# declared before the first recorded run
LAST = "test_reestimated"
PRIMARY = {
    "contexts from the image minus BN": Claim(
        {source: (given("cn-channels", source, 10), "bn") for source in ("color", "pixels", "features")}, where=C10
    ),
    **{
        f"{count} contexts from the label, {rate:.0%} corrupted, minus Bayes' rule": Claim(
            {"image": (given("cn-channels", "label", count, rate), "bn")},
            (LAST, f"test_bayes_{count}_{rate:g}_reestimated"),
            {"dataset": dataset},
        )
        for dataset, count in (("cifar10", 10), ("cifar10", 2), ("cifar100", 20))
        for rate in RATES
    },
    "contexts from the image minus random ones": Claim(
        {source: (given("cn-channels", source, 10), "cn-channels-random-10") for source in ("color", "pixels")},
        where=C10,
    ),
    "twenty random contexts minus one": Claim({"image": ("cn-channels-random-20", "cn-channels-one")}, where=C10),
    "told another image's context minus BN": Claim(
        {f"{count} from the label": (given("cn-channels", "label", count), "bn") for count in (2, 10)},
        ("test_shuffled_reestimated", LAST),
        C10,
    ),
    "contexts that are found minus BN, one data set": Claim({name: (name, "bn") for name in FOUND}, where=C10),
    "contexts that are found minus BN, two": Claim(
        {name: (name, "bn") for name in FOUND}, where={"dataset": DOMAINS["dataset"]}
    ),
    "contexts that are found minus two from the label": Claim(
        {name: (name, "cn-label-2") for name in FOUND}, where=C10
    ),
}
EXPERIMENT = Experiment(
    name="context_ablation",
    about="what contexts of any quality are worth, from the label, the image, at random, or found by the network",
    methods=METHODS,
    published=PUBLISHED,
    profiles=PROFILES,
    sweeps={
        "quality": QUALITY,
        "learned": (
            Grid(LEARNED, (C10,)),
            Grid((*LEARNED, "cn-domain"), (DOMAINS,)),
            Grid(("mode-channels-4", "gated-channels-4", "cn-channels-features-4"), (C10, DOMAINS)),
            Grid(STARTED, (C10, DOMAINS)),
        ),
        "other-data": (
            Grid(("bn", *images("cn-channels", ("color", 10), ("random", 10))), (TINY,), NOT_DIGITS),
            Grid(("bn", "cn-channels-domain", "cn-channels-one"), (DOMAINS,)),
        ),
    },
    primary=PRIMARY,
)
config = EXPERIMENT.config
