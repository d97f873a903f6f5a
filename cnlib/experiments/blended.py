"""A vision transformer on CIFAR-100 blended with MNIST: Table VIII (ICDM paper), where baselines "collapsed".

    cnlib sweep table-viii --profile reduced
    cnlib sweep collapse --profile reduced

The paper prints two numbers a method; its label space, scaling of MNIST and validation are not published. Here a blend
has 110 classes, both sets are standardized alike, by the moments of all images, an epoch draws equally from both, and
contexts are the sets. Each has a test set of its own; the published number is that of both together.

table-viii  ViT, ViT+BN and CN in both places, and controls: `fixed` is CN on the image with each set's own mean and
            variance, taken from data and not learned; `token` tells the set by one more token
collapse    what could make ViT collapse: MNIST left at 0 to 255 (`vit-raw`), digits under CIFAR's first labels
            (`vit-labels`), the last images held out, which are all MNIST's, and a stop after three epochs without gain
            (`vit-last`), no warm-up (`vit-cold`), mirrored digits (`vit-flips`); `vit-short` is their control
"""

from __future__ import annotations

from typing import Any

from cnlib.experiments.vit import FEW_EPOCHS, PRINTED, PUBLISHED, REDUCED, TINY
from cnlib.sweeps.experiment import Experiment, Fields, Grid, Printed
from cnlib.training import Run

FLOOR = 0.05  # accuracy on the first set below which a network has collapsed


def collapsed(run: Run) -> bool:
    """Whether the loss was not finite in the end, or the accuracy on the first set is below FLOOR."""
    first = run.config.dataset.split("+")[0]
    return run.status == "diverged" or not run.curve(f"test_{first}_accuracy")[-1] >= FLOOR


VIT: Fields = {"norm": "none"}


def probe(epochs: int = 2, **changed: Any) -> Fields:
    options = {name: True for name in changed.pop("options", ())}
    return {**VIT, "epochs": epochs, "options": options, **changed}


METHODS: dict[str, Fields] = {
    "vit": VIT,
    "vit-bn": {"norm": "bn"},
    "fixed": {"norm": "cn", "options": {"frozen": True, "from_data": 4096}},
    "cn-channels": {"norm": "cn"},
    "cn-patches": {"norm": "cn", "placement": ("patches",)},
    "token": {**VIT, "options": {"token": True}},
}
PROBES: dict[str, Fields] = {
    "vit-short": probe(),
    "vit-raw": probe(options=("raw",)),
    "vit-labels": probe(options=("labels",)),
    "vit-last": probe(epochs=15),
    "vit-cold": probe(warmup=0),
    "vit-flips": probe(options=("flips",)),
}
DIGITS: Fields = {"dataset": "digits+dark-digits", "flip": False, "crop": 0, "batch_size": 64}
PROFILES: dict[str, Fields] = {
    "smoke": {**FEW_EPOCHS, **DIGITS, "epochs": 2, "warmup": 4, "train_size": 320, "test_size": 100, "options": TINY},
    "book": {**FEW_EPOCHS, **DIGITS, "lr": 5e-3, "epochs": 6, "warmup": 22, "options": {**TINY, "images": 704}},
    "reduced": {
        **FEW_EPOCHS,
        "epochs": 6,
        "warmup": 320,
        "test_size": 10000,
        "options": {**REDUCED, "images": 20480},
    },
    "narrow": {"options": REDUCED},
    "paper": {},
}
ON_DIGITS = ("smoke", "book")
LAST = {
    profiles: {"validation": held_out, "patience": 3}
    for profiles, held_out in ((ON_DIGITS, 30), (("reduced", "narrow", "paper"), 11000))
}
EXPERIMENT = Experiment(
    name="blended",
    about="a vision transformer on CIFAR-100 and MNIST at once, with the set as context, and what makes it collapse",
    methods={**METHODS, **PROBES},
    published={
        **PUBLISHED,
        "dataset": "cifar100+mnist",
        "task": "blended",
        "contexts": "domain",
        "num_contexts": 2,
        "epochs": 100,
        "validation": 0,
        "patience": 0,
    },
    profiles=PROFILES,
    sweeps={
        "table-viii": (Grid(tuple(METHODS), ({},)),),
        "collapse": (
            Grid(tuple(name for name in PROBES if name != "vit-last"), ({},)),
            *(Grid(("vit-last",), (setting,), profiles) for profiles, setting in LAST.items()),
        ),
    },
    printed={
        "icdm_table_8": Printed("table-viii", PRINTED, baseline="ViT", tests={"cifar100": "test_cifar100"}),
    },
)
config = EXPERIMENT.config
