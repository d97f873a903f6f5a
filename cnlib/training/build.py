"""From a configuration to a model, its contexts and its optimizer: tables, so that a new choice is a new row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib import contexts
from cnlib.data import ImageData
from cnlib.models import MODELS
from cnlib.norm import convert
from cnlib.norm.registry import NORMS, create
from cnlib.training import distributed
from cnlib.training.config import KINDS, Config
from cnlib.training.schedule import SCHEDULES

Parameters = Any  # what torch.optim takes


def _mixture(config: Config, at: str | None) -> contexts.GMMContexts:
    return contexts.GMMContexts(config.num_contexts, seed=config.seed, device=at)


def _grouped_labels(config: Config, at: str | None) -> contexts.SuperclassContexts:
    if config.num_contexts not in contexts.LABEL_GROUPS:
        known = ", ".join(map(str, contexts.LABEL_GROUPS))
        raise ValueError(f"num_contexts={config.num_contexts}: expected one of {known} for contexts='label'")
    return contexts.SuperclassContexts(contexts.LABEL_GROUPS[config.num_contexts])


def _of_a_network(config: Config, at: str | None) -> contexts.Contexts:
    raise ValueError("contexts='features' are found by a network that a task trains for it: set task='worth'")


CONTEXTS: dict[str, Callable[[Config, str | None], contexts.Contexts | None]] = {
    "none": lambda c, at: None,
    "gmm": _mixture,
    "random": lambda c, at: contexts.RandomContexts(c.num_contexts, seed=c.seed),
    "shuffled": lambda c, at: contexts.ShuffledContexts(_mixture(c, at), seed=c.seed),
    "superclass": lambda c, at: contexts.SuperclassContexts(),
    "parity": lambda c, at: contexts.SuperclassContexts(contexts.PARITY),
    "label": _grouped_labels,
    "color": lambda c, at: contexts.KMeansContexts(c.num_contexts, seed=c.seed, device=at),
    "features": _of_a_network,
    "domain": lambda c, at: contexts.DomainContexts(tuple(map(str, range(c.num_contexts)))),
    "one": lambda c, at: contexts.RandomContexts(1),
}


def _unscaled_decay(parameters: Parameters, config: Config) -> torch.optim.Optimizer:
    """TensorFlow Addons' AdamW, which the authors' programs use: it subtracts decay * w a step, whatever the rate.

    torch subtracts rate * weight_decay * w; so that is decay / rate, and follows the rate (`schedule.set_rate`).
    """
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay / config.lr)
    for group in optimizer.param_groups:
        group["decay"] = config.weight_decay if group["weight_decay"] else 0.0
    return optimizer


class PrimedRMSprop(torch.optim.RMSprop):
    """RMSprop whose mean of squared gradients starts at those of the first step, so that this is no longer than others.

    torch starts it at 0: the first step is then 1 / sqrt(1 - alpha) times as long, ten times at alpha 0.99.
    """

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None and not self.state[w]:
                    g = w.grad.detach().add(w.detach(), alpha=group["weight_decay"])
                    start = {"square_avg": g.square(), "momentum_buffer": torch.zeros_like(g)}
                    self.state[w] = {"step": torch.zeros((), device=w.device), **start}
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[[Parameters, Config], torch.optim.Optimizer]] = {
    "rmsprop": lambda p, c: torch.optim.RMSprop(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    # alpha as in Keras, whose users write 0.9 for it or for the momentum
    "rmsprop-keras": lambda p, c: torch.optim.RMSprop(
        p, lr=c.lr, alpha=0.9, weight_decay=c.weight_decay, momentum=c.momentum
    ),
    "rmsprop-primed": lambda p, c: PrimedRMSprop(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "sgd": lambda p, c: torch.optim.SGD(p, lr=c.lr, weight_decay=c.weight_decay, momentum=c.momentum),
    "adam": lambda p, c: torch.optim.Adam(p, lr=c.lr, weight_decay=c.weight_decay),
    "adamw": lambda p, c: torch.optim.AdamW(p, lr=c.lr, weight_decay=c.weight_decay),
    "adamw-tfa": _unscaled_decay,
}
PRECISIONS = ("fp32", "bf16", "fp64")
MODEL_FIELDS = ("width", "num_contexts")  # fields of the configuration that a model may take
# what a layer of the registry may take besides its channels, and the field that says it
NORM_OPTIONS = {
    "num_components": "num_contexts",
    "num_modes": "num_contexts",
    "num_contexts": "num_contexts",
    "encoder": "encoder",
    "start": "start",
}


def check(config: Config, tasks: Mapping[str, Any] = {}) -> None:
    """Raise ValueError where a name in the configuration is in none of the tables, or an option is not as it should be.

    tasks: the Trainer classes by name; without them task and options are not looked at.
    """
    tables: dict[str, Collection[str]] = {
        "model": MODELS,
        "norm": NORMS,
        "contexts": CONTEXTS,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "precision": PRECISIONS,
        **({"task": tasks} if tasks else {}),
    }
    for field, table in tables.items():
        if (value := getattr(config, field)) not in table:
            raise ValueError(f"{field}={value!r}: expected one of {', '.join(table)}")
    if tasks:
        check_options(config, tasks[config.task].OPTIONS)


def check_options(config: Config, of_task: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that neither model nor task takes, and for one of another kind than its default.

    of_task: {name: default} of the task's own options.
    """
    parameters = inspect.signature(MODELS[config.model]).parameters
    fixed = ("num_classes", "in_channels", "image_size", *MODEL_FIELDS)
    known = {name: parameter.default for name, parameter in parameters.items() if name not in fixed}
    options = dict(config.options)
    if unknown := options.keys() - known.keys() - of_task.keys():
        raise ValueError(
            f"options: no {', '.join(sorted(unknown))}; {config.model} takes {', '.join(sorted(known)) or 'none'}, "
            f"{config.task} takes {', '.join(sorted(of_task)) or 'none'}"
        )
    defaults = {**known, **of_task}
    for name, value in options.items():
        expected, fits = KINDS.get(type(defaults[name]).__name__, ("", lambda _: True))
        if not fits(value):
            raise ValueError(f"options: {name}={value!r}: expected {expected}, as in {name}={defaults[name]!r}")
        if type(value) is int and type(defaults[name]) is int and value < 0 <= defaults[name]:  # a number of things
            raise ValueError(f"options: {name}={value}: expected 0 or more")


def check_two_domains(config: Config, data: ImageData, expected: str) -> None:
    """Raise ValueError for what a task that takes a batch of each of two domains cannot do. expected: what they are."""
    if len(data.domains) != 2:
        raise ValueError(f"{data.name} has domains {', '.join(data.domains) or 'none'}: expected {expected}")
    if distributed.size() > 1 or config.validation:
        raise ValueError(f"{config.task} trains in one process and without validation images: expected neither")


def build_model(config: Config, data: ImageData, of_task: Mapping[str, Any] = {}) -> nn.Module:
    """The configuration's model for this data; weights come from torch's global generator.

    The model draws its weights before its layers are swapped, so that equal seeds start equal whatever the norm.
    of_task: {name: default} of the task's own options; the model gets the rest. Raises ValueError for options as
    `check_options` does, and for a place that it does not have.
    """
    check(config)
    check_options(config, of_task)
    _, height, width, channels = data.train_images.shape
    factory = MODELS[config.model]
    options = {key: value for key, value in dict(config.options).items() if key not in of_task}
    fields = {name: getattr(config, name) for name in MODEL_FIELDS if name in inspect.signature(factory).parameters}
    model = factory(len(data.classes), channels, (height, width), **fields, **options)
    of_norm = NORMS[config.norm].options
    chosen = {name: getattr(config, field) for name, field in NORM_OPTIONS.items() if name in of_norm}
    return convert(model, {layer: lambda c: create(config.norm, c, **chosen) for layer in places(model, config)})


def places(model: nn.Module, config: Config) -> list[str]:
    """The names or patterns of the layers that a configuration's placement means in this model, first things first."""
    slots: Mapping[str, str] = getattr(model, "SLOTS", {})
    layers = [slots.get(place, place) for place in config.placement]
    names = [name for name, _ in model.named_modules()]
    if unknown := [layer for layer in layers if not any(fnmatchcase(name, layer) for name in names)]:
        known = f"its slots are {', '.join(slots)}" if slots else "name layers as model.named_modules() does"
        raise ValueError(f"{config.model} has no norm slot {', '.join(unknown)}: {known}")
    return layers


def build_contexts(
    config: Config, data: ImageData, device: torch.device | str = "cpu", soft: bool = False
) -> dict[str, Tensor]:
    """{"train_ids": (N,), "test_ids": ...}, and with `soft` {"train_responsibilities": (N, K), ...} too; or {}.
    Where contexts are made from labels, {"given_label": p(c | y), (K, T)} besides.

    Fitted on the training images only, and applied to the test images as fitted. Superclass contexts are computed from
    the labels, those of the test images too: that is what the papers do, and it leaks (see the class).
    """
    at = str(device) if torch.device(device).type == "cuda" else None  # float64 sums: not on mps
    source = CONTEXTS[config.contexts](config, at)
    if source is None:
        return {}
    if config.corruption:
        source = contexts.CorruptedContexts(source, config.corruption, seed=config.seed)
    source.fit(data.train_images, data.train_labels, data.train_domains)
    if source.num_contexts != config.num_contexts:
        raise ValueError(f"num_contexts={config.num_contexts}: {config.contexts!r} has {source.num_contexts}")
    if config.contexts == "domain" and data.domains and len(data.domains) != config.num_contexts:
        # a context without images would stay as it started, and CN+ would take it for one of the mixture
        raise ValueError(f"num_contexts={config.num_contexts}: {data.name} has domains {', '.join(data.domains)}")
    known = source.given_label()
    if known is not None and len(known) != len(data.classes):
        raise ValueError(
            f"contexts={config.contexts!r} are made from {len(known)} classes, and {data.name} has "
            f"{len(data.classes)}: choose other contexts or another data set"
        )
    given = {} if known is None else {"given_label": known}
    for part in ("train", "test"):
        images, labels, domains = (getattr(data, f"{part}_{what}") for what in ("images", "labels", "domains"))
        ids = given[f"{part}_ids"] = source.assign(images, labels, domains).cpu()
        if soft and isinstance(source, contexts.GMMContexts):
            given[f"{part}_responsibilities"] = source.responsibilities(images).float().cpu()
        elif soft:
            given[f"{part}_responsibilities"] = F.one_hot(ids, config.num_contexts).float()
    return given
