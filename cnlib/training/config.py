"""What a run is: one frozen record of every choice that can change its numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

Options = Mapping[str, Any] | tuple[tuple[str, Any], ...]

# "model", "norm", "contexts", "optimizer" (build.py) and "task" (trainer.py) join: the very tables that runs are built
# from, so that a row which an experiment's file adds there is a choice here, once that file is imported.
CHOICES: dict[str, Collection[str]] = {
    "encoder": ("table", "linear", "embedder"),
    "inference": ("cn", "cn+", "both"),
    "precision": ("fp32", "bf16", "fp64"),
}


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _are_slots(value: Any) -> bool:
    return (
        isinstance(value, tuple | list) and all(isinstance(v, str) for v in value) and 0 < len({*value}) == len(value)
    )


def _are_options(value: Any) -> bool:
    try:
        pairs = dict(value).items()
    except (TypeError, ValueError):
        return False
    return all(isinstance(k, str) and (v is None or isinstance(v, str | bool) or _finite(v)) for k, v in pairs)


# annotation of a field: what an error says was expected, and whether a value is that
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", lambda v: isinstance(v, str)),
    "bool": ("True or False", lambda v: isinstance(v, bool)),
    "int": ("an int", lambda v: type(v) is int),
    "int | None": ("an int or None", lambda v: v is None or type(v) is int),
    "float": ("a finite number", _finite),
    "tuple[str, ...]": ("a tuple of different slots, at least one", _are_slots),
    "Options": ("a mapping of names to text, finite numbers, True, False or None", _are_options),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run. Equal configurations on one machine's CPU give equal numbers, bit for bit.

    norm         the layer in the slots named by `placement`; every other slot of the model keeps batch norm
    contexts     where ids (norm "cn") or responsibilities (norm "mn") come from: "gmm" a mixture fitted on the training
                 images, "random", "shuffled" and "one" are controls, "superclass" is CIFAR-100's; "none": not given
                 (norm "mn" then runs EM on the activations of each batch)
    inference    of context norm on the test set: "cn", "cn+" (Algorithm 3), or "both" from the same weights
    lr, weight_decay, momentum, optimizer: torch.optim's meaning; weight decay acts on every parameter
    train_size, test_size: stratified subset, the same for every seed; None takes all
    flip, crop   augmentation: horizontal flips; shifts by up to `crop` pixels over a black border
    seed         of weights, order of the images, augmentation and contexts
    task         the Trainer that trains and tests it; model: see `cnlib.models`
    options      what only this model or task has, e.g. {"patch": 4}; kept as sorted pairs: read dict(config.options)
    called       the method's name where norm and contexts do not tell it from another, e.g. "cn-patches"
    """

    dataset: str = "digits"
    profile: str = "book"
    model: str = "convnet"
    width: float = 1.0
    norm: str = "bn"
    placement: tuple[str, ...] = ("conv3",)
    contexts: str = "none"
    num_contexts: int = 3
    encoder: str = "table"
    inference: str = "cn"
    optimizer: str = "rmsprop"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 10
    batch_size: int = 256
    train_size: int | None = None
    test_size: int | None = None
    flip: bool = False
    crop: int = 0
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    task: str = "classify"
    options: Options = ()
    called: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (expected, fits) = getattr(self, field.name), KINDS[str(field.type)]
            if not fits(value):
                raise ValueError(f"{field.name}={value!r}: expected {expected}")
            if field.type == "float":
                object.__setattr__(self, field.name, float(value))
        object.__setattr__(self, "placement", tuple(self.placement))
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        if taken := dict(self.options).keys() & self.__dataclass_fields__.keys():
            raise ValueError(f"options: {', '.join(sorted(taken))} is a field of the configuration itself: set that")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("num_contexts", "epochs", "batch_size", "train_size", "test_size", "width", "lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g}: expected a number above 0")
        for name in ("weight_decay", "momentum", "crop", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name):g}: expected 0 or more")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed}: expected less than 2**63")
        if self.norm == "cn" and self.contexts == "none":
            raise ValueError(f"norm 'cn' needs contexts: {', '.join(c for c in CHOICES['contexts'] if c != 'none')}")
        if self.contexts != "none" and self.norm not in ("cn", "mn"):
            raise ValueError(f"contexts={self.contexts!r} with norm {self.norm!r}: only cn and mn use contexts")
        if self.contexts == "one" and self.num_contexts != 1:
            raise ValueError(f"contexts='one' with num_contexts={self.num_contexts}: expected 1")
        if self.inference != "cn" and self.norm != "cn":
            raise ValueError(f"inference={self.inference!r} with norm {self.norm!r}: only cn has CN+")

    @property
    def method(self) -> str:
        """How records, tables and figures call it: "bn", "mn", "mn-em", "cn", "cn-random", "cn-one", ..."""
        kind = {"gmm": "", "none": "-em"}.get(self.contexts, f"-{self.contexts}")
        plus = "+" if self.inference == "cn+" else ""
        return (self.called or (f"{self.norm}{kind}" if self.norm in ("mn", "cn") else self.norm)) + plus

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Config:
        """A field an older record lacks takes its default; one it has and we do not know is an error."""
        if unknown := set(given) - {field.name for field in fields(cls)}:
            raise ValueError(f"unknown fields in a run's configuration: {', '.join(sorted(unknown))}")
        return cls(**given)

    def difference(self, other: Config) -> str:
        """The fields in which two configurations differ, to read: "lr: 0.001, not 0.005"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return "; ".join(f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key])
