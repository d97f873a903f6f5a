"""What a run is: one frozen record of every choice that can change its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES = {
    "model": ("convnet",),
    "norm": ("bn", "ln", "in", "gn", "mn", "cn", "none"),
    "contexts": ("none", "gmm", "random", "shuffled", "one", "superclass"),
    "encoder": ("table", "linear", "embedder"),
    "inference": ("cn", "cn+", "both"),
    "optimizer": ("rmsprop", "sgd", "adamw"),
    "precision": ("fp32", "bf16", "fp64"),
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "placement", tuple(self.placement))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("num_contexts", "epochs", "batch_size", "width", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        for name in ("weight_decay", "momentum", "crop", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.norm == "cn" and self.contexts == "none":
            raise ValueError("norm 'cn' needs contexts: gmm, random, shuffled, superclass, or one for the control")
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
        return f"{self.norm}{kind}{plus}" if self.norm in ("mn", "cn") else self.norm

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
