"""Day for night: a siamese transformer told the time of day, and its parameters as a swap of colors. Figures 5 and 6
(ICDM paper), which show one image each way and no number.

    cnlib sweep day-for-night --profile reduced

The paper trains on vehicles (VERI-Wild) and publishes no program, sizes or contexts in numbers. Here the places are
webcams (AMOS), 10 to train on and 5 that were held out, another split for every seed. There is no download: without the
images in `$CNLIB_DATA/daynight_amos` the profiles `smoke` and `book` run on pieces of two photographs. The task,
`cnlib.training.Pairs`, says what is measured.

day-for-night  `none` and `bn` know no time; `cn` is told it, `cn-fast` too, and its layer learns at ten times the rate;
               `fixed` is CN with day's and night's own mean and variance, taken from data; `in` standardizes each image
               by itself; `cn-random` and, at ten times the rate, `cn-fast-random` are told a context drawn for each
               image. All on the image. Every CN is also read told the other context ("test_swapped")
"""

from __future__ import annotations

from typing import Any

from cnlib.sweeps.experiment import Experiment, Fields, Grid, Measured

METHODS: dict[str, Fields] = {
    "cn": {"norm": "cn"},
    "none": {"norm": "none"},
    "fixed": {"norm": "cn", "options": {"frozen": True, "from_data": 4096}},
    "in": {"norm": "in"},
    "bn": {"norm": "bn"},
    "cn-fast": {"norm": "cn", "options": {"cn_lr": 10.0}},
    "cn-random": {"norm": "cn", "contexts": "random"},
    "cn-fast-random": {"norm": "cn", "contexts": "random", "options": {"cn_lr": 10.0}},
}
# ours: the paper says a siamese ViT and a contrastive loss, and nothing else
PUBLISHED: Fields = {
    "dataset": "daynight",
    "model": "siamese",
    "task": "pairs",
    "placement": ("input",),
    "contexts": "domain",
    "num_contexts": 2,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 100,
    "batch_size": 32,
    "crop": 4,
    "epochs": 30,
    "options": {"steps": 50, "held_out": 5, "patch": 8, "dim": 64, "depth": 4, "heads": 4, "hidden": 128},
}
TINY: dict[str, Any] = {"held_out": 10, "dim": 48, "depth": 2, "hidden": 96}
PHOTOS: Fields = {"dataset": "photo-places", "crop": 2, "warmup": 20}
PROFILES: dict[str, Fields] = {
    "smoke": {**PHOTOS, "epochs": 2, "batch_size": 8, "warmup": 2, "options": {**TINY, "steps": 4, "held_out": 4}},
    "book": {**PHOTOS, "lr": 2e-3, "batch_size": 16, "epochs": 8, "options": {**TINY, "steps": 25}},
    "reduced": {"epochs": 12, "warmup": 60, "batch_size": 16, "options": {"depth": 2}},  # 600 steps
    "narrow": {},
    "paper": {},
}
# H5a to H5c, declared before the first recorded run, over the splits
GAP = {"its own rate": "cn", "ten times the rate": "cn-fast"}
PRIMARY = {
    # H5a: half of the way to the data's swap, or more, is gone: below 0
    **{f"way left at {rate}, less a half": Measured((method, "swap_gap"), 0.5) for rate, method in GAP.items()},
    # H5b: no closer to real pictures than colors matched by moments, and by exposure: not below 0; and not bluer
    **{
        f"{way.replace('_', ' ')}: W1 of the learned swap less {name}": Measured(
            ("cn", f"{way}_learned_w1"), ("cn", f"{way}_{name}_w1")
        )
        for way in ("day_to_night", "night_to_day")
        for name in ("moments", "exposure")
    },
    "day to night: red over blue, learned less as shot": Measured(
        ("cn", "day_to_night_learned_red_blue"), ("cn", "day_to_night_none_red_blue")
    ),
    # H5c: neither learning nor being told matters, standardizing does
    **{
        f"AUC: {first} less {second}": Measured((first, "test_auc"), (second, "test_auc"))
        for first, second in (("cn", "fixed"), ("cn", "in"), ("cn", "none"), ("in", "none"))
    },
}
EXPERIMENT = Experiment(
    name="daynight",
    about="a siamese transformer told day or night, and its parameters as a swap of colors",
    methods=METHODS,
    published=PUBLISHED,
    profiles=PROFILES,
    sweeps={
        "day-for-night": (
            Grid(("cn", "none", "fixed", "in", "bn"), ({},)),
            Grid(("cn-fast", "cn-random", "cn-fast-random"), ({},)),
        ),
    },
    primary=PRIMARY,
)
config = EXPERIMENT.config
