"""Switchable and Exemplar Normalization: does it help to learn the mixture of IN, LN and BN, and where?

    cnlib sweep batch-size --profile reduced

The ConvNet with all four of its norm layers replaced. Controls have the same mixture, which is not learned: `sn-fixed`
has SN's moments in equal parts, `mean3` EN's outputs, and `sn-found` SN's moments in the parts that SN ends with.
Nothing here is printed in a paper about this network.

batch-size   the normalizers and the controls at 256, 32, 8 and 2 images a batch; the rate goes down with the size
label-noise  BN, SN, EN and `mean3` where 40 % of the training labels are wrong
found        the mixture that SN finds, from the first step: is it the learning, or what is found?
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnlib.contexts.quality import between_share
from cnlib.data import ImageData
from cnlib.models.convnet import WIDTHS
from cnlib.norm import ExemplarNorm, SwitchableNorm
from cnlib.sweeps.experiment import Claim, Experiment, Fields, Grid
from cnlib.training import TASKS, Trainer
from cnlib.training.build import places
from cnlib.training.readings import read_inputs

KEPT = 500  # test images of which EN's ratios are recorded


class Ratios(Trainer):
    """Classification by a network whose layers under test may mix normalizers. Weight decay leaves their ratios alone.

    fixed: the ratios stay as they start, equal. found: they are, from the first step, what the same network of the same
    seed ends with that learns them; it is trained for it.

    Recorded besides the usual, a number for each of "in", "ln" and "bn", after each epoch and of each layer: of SN
    "ratio_mean_norm1" and "ratio_var_norm1", its weights; of EN over the test images "ratio_norm1", their mean,
    "ratio_std_norm1", their standard deviation, and "ratio_between_norm1", the share of their variance that lies
    between classes. At the end, of EN, "ratios_norm1": those of the first 500 test images, and "ratio_labels".
    """

    OPTIONS = {"fixed": False, "found": False}

    def build(self, data: ImageData) -> nn.Module:
        model = super().build(data)
        if self.options["fixed"] or self.options["found"]:
            for parameter in ratio_parameters(model):
                parameter.requires_grad_(False)
        return model

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        self.data = data

    def find_ratios(self) -> None:
        """Train the network that learns its ratios, and take them over."""
        options = {key: value for key, value in dict(self.config.options).items() if key not in self.OPTIONS}
        with torch.random.fork_rng(devices=[]):  # the network that learns draws as in a run of its own
            learned = Ratios(replace(self.config, method="", options=options), self.data, self.device)
            while not learned.done:
                learned.run_epoch()
        with torch.no_grad():
            for mine, theirs in zip(ratio_parameters(self.model), ratio_parameters(learned.model), strict=True):
                mine.copy_(theirs)

    def parameters(self) -> Iterable[Any]:
        ratios = list(ratio_parameters(self.model))
        apart = {id(parameter) for parameter in ratios}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in apart]
        return [{"params": others}, {"params": ratios, "weight_decay": 0.0}] if ratios else others

    def run_epoch(self) -> dict[str, Any]:
        if self.options["found"] and not self.epoch:  # a run that goes on has them with its weights
            self.find_ratios()
        found = super().run_epoch()
        for name, layer in self.mixing(SwitchableNorm).items():
            for of, ratios in zip(("mean", "var"), layer.ratios(), strict=True):
                found[f"ratio_{of}_{name}"] = ratios.tolist()
        labels = self.tests["test"].split.labels.cpu().numpy()
        for name, ratios in self.exemplar_ratios().items():
            found[f"ratio_{name}"] = ratios.mean(0).tolist()
            found[f"ratio_std_{name}"] = ratios.std(0, correction=0).tolist()
            found[f"ratio_between_{name}"] = between_share(ratios.numpy(), labels).tolist()
        return found

    def conclude(self) -> dict[str, Any]:
        found = super().conclude()
        kept = {f"ratios_{name}": ratios[:KEPT] for name, ratios in self.exemplar_ratios().items()}
        if kept and not self.options["fixed"]:
            found |= {name: [[round(r, 3) for r in row] for row in ratios.tolist()] for name, ratios in kept.items()}
            found["ratio_labels"] = self.tests["test"].split.labels[:KEPT].tolist()
        return found

    def mixing(self, kind: type[nn.Module]) -> dict[str, Any]:
        """The layers under test of a kind, by name."""
        layers = {name: self.tested.get_submodule(name) for name in places(self.tested, self.config)}
        return {name: layer for name, layer in layers.items() if isinstance(layer, kind)}

    def exemplar_ratios(self) -> dict[str, Tensor]:
        """EN's ratios of the test images, (N, 3) each layer, on the CPU in float64."""
        if not (layers := self.mixing(ExemplarNorm)):
            return {}
        found = read_inputs(self, self.tests["test"].split, layers, lambda layer, x: layer.ratios(x))
        return {name: ratios.cpu().double() for name, ratios in found.items()}


def ratio_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    """What the ratios of SN and EN are made from."""
    for layer in model.modules():
        if isinstance(layer, SwitchableNorm):
            yield from (layer.mean_logits, layer.var_logits)
        elif isinstance(layer, ExemplarNorm):
            yield from layer.network.parameters()


TASKS["ratios"] = Ratios
FIXED: Fields = {"options": {"fixed": True}}
METHODS: dict[str, Fields] = {
    **{norm: {"norm": norm} for norm in ("bn", "sn", "en")},
    "sn-fixed": {"norm": "sn", **FIXED},
    "sn-found": {"norm": "sn", "options": {"found": True}},
    "mean3": {"norm": "en", **FIXED},
    **{norm: {"norm": norm} for norm in ("in", "ln", "gn")},
}
SIZED = tuple(name for name in METHODS if name != "sn-found")
PUBLISHED: Fields = {
    "dataset": "cifar10",
    "task": "ratios",
    "placement": tuple(WIDTHS),
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "batch_size": 256,
    "lr": 0.05,
    "epochs": 10,
    "flip": True,
}
DIGITS: Fields = {"dataset": "digits-16", "flip": False}
PROFILES: dict[str, Fields] = {
    "smoke": {**DIGITS, "width": 0.0625, "epochs": 2, "train_size": 80, "test_size": 40},
    "book": {**DIGITS, "width": 0.25, "epochs": 5},
    "reduced": {"width": 0.25, "train_size": 10240, "test_size": 2000},
    "narrow": {"width": 0.25, "epochs": 100},
    "paper": {"width": 1.0, "epochs": 100},
}


def at(batch_size: int, **changes: Any) -> Fields:
    """The rate in proportion to the size of a batch, at least 0.002."""
    return {"batch_size": batch_size, "lr": max(0.05 * batch_size / 256, 2e-3), **changes}


SIZES = {256: at(256), 8: at(8), 2: at(2, epochs=4), 32: at(32)}
NOISE: Fields = {**SIZES[256], "label_noise": 0.4}
# declared before the first recorded run
CLEAN: Fields = {"label_noise": 0.0}
PRIMARY = {
    **{
        f"SN minus BN at {size}": Claim({"all layers": ("sn", "bn")}, where={**CLEAN, "batch_size": size})
        for size in (2, 256)
    },
    **{
        f"a learned mixture minus a fixed one at {size}": Claim(
            {"SN": ("sn", "sn-fixed"), "EN": ("en", "mean3")}, where={**CLEAN, "batch_size": size}
        )
        for size in SIZES
    },
    "EN minus SN under label noise": Claim({"all layers": ("en", "sn")}, where={"label_noise": 0.4}),
}
EXPERIMENT = Experiment(
    name="learned_norms",
    about="normalizers that learn how to mix IN, LN and BN, at four sizes of a batch and under wrong labels",
    methods=METHODS,
    published=PUBLISHED,
    profiles=PROFILES,
    sweeps={
        # the ends of the axis in full, most telling first
        "batch-size": tuple(Grid(SIZED, (setting,)) for setting in SIZES.values()),
        "label-noise": (Grid(("bn", "sn", "en", "mean3"), (NOISE,)),),
        "found": (Grid(("sn-found",), (SIZES[32],)),),
    },
    primary=PRIMARY,
)
config = EXPERIMENT.config
