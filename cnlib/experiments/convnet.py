"""BN, MN and CN on the CIFAR ConvNet: Tables 1 and 2 of the French paper, V and VI of the ICDM paper.

    python -m cnlib.experiments.convnet --profile reduced --out DIR

The norm under test replaces the third batch norm, as in the French paper. Two controls tell what a context is worth:
`cn-random` draws contexts at random, `cn-one` has a single one, so that CN is a plain learned affine map.
"""

from __future__ import annotations

from typing import Any

from cnlib.experiments.sweep import command
from cnlib.training import Config

K = 3
METHODS: dict[str, dict[str, Any]] = {
    "bn": {"norm": "bn"},
    "mn": {"norm": "mn", "contexts": "gmm", "num_contexts": K},
    "mn-em": {"norm": "mn", "num_contexts": K},
    "cn": {"norm": "cn", "contexts": "gmm", "num_contexts": K, "inference": "both"},
    "cn-random": {"norm": "cn", "contexts": "random", "num_contexts": K},
    "cn-one": {"norm": "cn", "contexts": "one", "num_contexts": 1},
}
PUBLISHED: dict[str, Any] = {"optimizer": "rmsprop", "momentum": 0.9, "batch_size": 256, "placement": ("conv3",)}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"dataset": "digits", "width": 0.0625, "epochs": 2, "batch_size": 64, "train_size": 200, "test_size": 100},
    "book": {"dataset": "digits", "width": 0.25, "epochs": 5, "batch_size": 64},
    # flips stand in for the images left out; the papers name no augmentation for this network
    "reduced": {"dataset": "cifar10", "width": 0.25, "epochs": 12, "train_size": 8000, "test_size": 2000, "flip": True},
    "paper": {"dataset": "cifar10", "width": 1.0, "epochs": 100},
}
SEEDS = {"smoke": 2, "book": 3, "reduced": 5, "paper": 3}


def config(method: str, seed: int = 0, profile: str = "book", **changes: Any) -> Config:
    """The configuration of one cell; `changes` are fields of Config, e.g. lr=5e-3 or epochs=3."""
    if method not in METHODS or profile not in PROFILES:
        raise ValueError(f"{method!r}, {profile!r}: methods are {', '.join(METHODS)}, profiles {', '.join(PROFILES)}")
    return Config(**PUBLISHED | PROFILES[profile] | METHODS[method] | {"profile": profile, "seed": seed} | changes)


def configs(profile: str = "book", seeds: int | None = None, **changes: Any) -> dict[str, Config]:
    """{name of the record: configuration} for every method and seed; all methods of a seed before the next seed."""
    chosen = range(SEEDS.get(profile, 1) if seeds is None else seeds)
    return {f"{method}-s{seed}": config(method, seed, profile, **changes) for seed in chosen for method in METHODS}


if __name__ == "__main__":
    command(configs, PROFILES, "Train BN, MN and CN on the CIFAR ConvNet; start again to go on where it stopped.")
