"""What a run is: one frozen record of every choice that can change its numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

Options = Mapping[str, Any] | tuple[tuple[str, Any], ...]
Name = str  # one that may stand in a file's name


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
    "Name": (
        "a name of letters, digits and any of . _ + -",
        lambda v: isinstance(v, str) and re.fullmatch(r"(\w[\w.+-]*)?", v, re.ASCII) is not None,
    ),
    "bool": ("True or False", lambda v: isinstance(v, bool)),
    "int": ("an int", lambda v: type(v) is int),
    "int | None": ("an int or None", lambda v: v is None or type(v) is int),
    "float": ("a finite number", _finite),
    "tuple[str, ...]": ("a tuple of different slots, at least one", _are_slots),
    "Options": ("a mapping of names to text, finite numbers, True, False or None", _are_options),
}
ABOVE_ZERO = ("num_contexts", "epochs", "batch_size", "train_size", "test_size", "width", "lr")
ZERO_OR_MORE = (
    *("corruption", "label_noise", "weight_decay", "momentum", "warmup", "validation", "patience", "average", "seed"),
    *("crop", "rotate", "zoom"),
)
# numeric fields, what an error says was expected, and whether a value is that
BOUNDS: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (ABOVE_ZERO, "a number above 0", lambda v: v > 0),
    (ZERO_OR_MORE, "0 or more", lambda v: v >= 0),
    (("average", "zoom"), "less than 1", lambda v: v < 1),
    (("corruption", "label_noise"), "1 or less", lambda v: v <= 1),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run. Equal configurations on one machine's CPU give equal numbers, bit for bit.

    Numbers are checked here, names where they are used (`cnlib.training.build.check`): a record can be read whatever is
    imported.

    method       how records, tables and figures call it: "bn", "mn-em", "cn", "cn-channels", ...; "" takes `usual_name`
    norm         the layer at the places named by `placement` (see `cnlib.norm.registry`); elsewhere the model's own
    placement    slots of the model (its SLOTS), or names or patterns of its norm layers
    contexts     where ids and responsibilities come from: "gmm" a mixture fitted on the training images, "random",
                 "shuffled" and "one" are controls, "superclass" is CIFAR-100's, "parity" that of digits, "domain" the
                 data set's; "none": not given (norm "mn" then runs EM on the activations of each batch)
    corruption   probability that an image, in training or at test, gets any context in place of its own
    encoder, start  of context norm, see `cnlib.ContextNorm`
    optimizer, lr, momentum, weight_decay: torch.optim's meaning; weight decay acts on every parameter
    schedule     of the rate over the steps after `warmup`, the number of steps in which it rises from 0
    train_size, test_size: stratified subset, the same for every seed; None takes all
    validation   training images held out, the last ones; patience: epochs without a better result on them after which
                 a run stops and takes its best weights; 0 never stops
    label_noise  share of the training images that have a wrong label, any other of the classes; test images have theirs
    flip, crop   augmentation: horizontal flips; shifts by up to `crop` pixels over a black border
    rotate, zoom  rotation by up to so many degrees; either axis by a factor of up to 1 +- zoom
    average      decay of the moving average of the weights that is tested in their place; 0: none
    seed         of weights, order of the images, augmentation and contexts
    task         the Trainer that trains and tests it; model: see `cnlib.models`
    options      what only this model or task has, e.g. {"patch": 4}; kept as sorted pairs: read dict(config.options)
    """

    dataset: Name = "digits"
    profile: Name = "book"
    method: Name = ""
    model: str = "convnet"
    width: float = 1.0
    norm: str = "bn"
    placement: tuple[str, ...] = ("conv3",)
    contexts: str = "none"
    num_contexts: int = 3
    corruption: float = 0.0
    encoder: str = "table"
    start: str = "identity"
    optimizer: str = "rmsprop"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    epochs: int = 10
    batch_size: int = 256
    train_size: int | None = None
    test_size: int | None = None
    validation: int = 0
    patience: int = 0
    label_noise: float = 0.0
    flip: bool = False
    crop: int = 0
    rotate: float = 0.0
    zoom: float = 0.0
    average: float = 0.0
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    task: str = "classify"
    options: Options = ()

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if isinstance(value := getattr(self, name), np.generic):  # a number from np.arange, np.logspace, ...
                object.__setattr__(self, name, value.item())
        with suppress(TypeError, ValueError):  # what is no mapping is refused below
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in dict(self.options).items()}
            object.__setattr__(self, "options", plain)
        for field in fields(self):
            value, (expected, fits) = getattr(self, field.name), KINDS[str(field.type)]
            if not fits(value):
                raise ValueError(f"{field.name}={value!r}: expected {expected}")
            if field.type == "float":
                object.__setattr__(self, field.name, float(value))
        object.__setattr__(self, "placement", tuple(self.placement))
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))
        object.__setattr__(self, "method", self.method or usual_name(self.norm, self.contexts, self.placement))
        expected, fits = KINDS["Name"]  # of what it is made of, too
        if not fits(self.method):
            raise ValueError(f"method={self.method!r}, from norm and contexts: expected {expected}")
        if taken := dict(self.options).keys() & self.__dataclass_fields__.keys():
            raise ValueError(f"options: {', '.join(sorted(taken))} is a field of the configuration itself: set that")
        for names, expected, fits in BOUNDS:
            for name in names:
                if (value := getattr(self, name)) is not None and not fits(value):
                    raise ValueError(f"{name}={value:g}: expected {expected}")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed}: expected less than 2**63")
        if self.patience and not self.validation:
            raise ValueError(f"patience={self.patience} without validation images: set validation, e.g. to 5000")
        if self.contexts == "one" and self.num_contexts != 1:
            raise ValueError(f"contexts='one' with num_contexts={self.num_contexts}: expected 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Config:
        """A field an older record lacks takes its default; one it has and we do not know is an error."""
        given = dict(given)
        given.setdefault("method", given.pop("called", ""))  # its name until version 0.1
        if given.pop("inference", "cn") == "cn+":  # a way of testing, which was a field until then
            raise ValueError("inference='cn+': only CN+ was tested in this run of an older version; train it again")
        if unknown := set(given) - {field.name for field in fields(cls)}:
            raise ValueError(f"unknown fields in a run's configuration: {', '.join(sorted(unknown))}")
        return cls(**given)

    def difference(self, other: Config) -> str:
        """The fields in which two configurations differ, to read: "lr: 0.001, not 0.005"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return "; ".join(f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key])


def usual_name(norm: str, contexts: str = "none", placement: tuple[str, ...] = ()) -> str:
    """What a method is called where nothing else is said: its layer, where that sits, and where contexts come from."""
    places: dict[tuple[str, ...], str] = {("input",): "-channels", ("patches",): "-patches"}
    where = places.get(placement, "") if norm == "cn" else ""
    usual = "none" if norm not in ("mn", "cn") else "gmm"
    source = "" if contexts == usual else {"none": "-em"}.get(contexts, f"-{contexts}")
    return f"{norm}{where}{source}"
