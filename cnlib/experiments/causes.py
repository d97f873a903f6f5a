"""Why does CN start slowly in the third layer, sigma far below its input? Each supposed cause, taken away by itself.

    cnlib sweep sigma --profile reduced

The network, data and sizes are those of `convnet`; chapter 9b reads the runs. Nothing here is printed in a paper.

sigma        CN, and BN beside it, under optimizers that differ in one thing: momentum, the size of the first steps, the
             size of all steps, the decay; CN whose own parameters alone take shorter steps, or none; and weights in
             front of the layer that cannot grow
width        CN in the network of the published width, with and without weight decay
start        CN from the authors' random start, and from the moments of a first batch
scale        MN and its controls, and BN whose output has MN's scale
without-ids  CN read with wrong ids, and without any
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnlib.data import ImageData
from cnlib.experiments.convnet import CIFAR, KERAS, METHODS, PROFILES, PUBLISHED, K, on
from cnlib.norm import ContextNorm, MixtureNorm
from cnlib.norm.gaussians import responsibilities
from cnlib.sweeps.experiment import Experiment, Fields, Grid
from cnlib.training import TASKS, Trainer
from cnlib.training.readings import first_layer
from cnlib.training.starts import first_inputs, start_from
from cnlib.training.trainer import grouped


class Probe(Trainer):
    """Classification with one cause changed, and readings that tell what a layer does.

    first_batch: context norm starts from the moments of a first batch. gain: a constant by which the layer's output is
    multiplied. own_rate: the rate of the layer's own parameters, as a share of the others'; 0 holds them still.
    held_length: after every step the weights of each channel in front of the layer get their first length back.
    """

    OPTIONS = {"first_batch": False, "gain": 1.0, "own_rate": 1.0, "held_length": False}

    def parameters(self) -> Iterable[Any]:
        if (share := self.options["own_rate"]) == 1:
            return super().parameters()
        return grouped(self.model, first_layer(self.model, self.config), factor=share)

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        layer, gain = first_layer(self.model, self.config), self.options["gain"]
        if self.options["first_batch"]:
            x, batch = first_inputs(self)
            start_from(self, x, batch.ids)
        if self.options["held_length"]:
            (place,) = self.config.placement
            if not isinstance(before := getattr(self.model, place, None), nn.Conv2d):
                raise ValueError(f"held_length: expected a layer behind a convolution, got one at {place!r}")
            self.before, self.lengths = before.weight, lengths(before.weight).detach()
        if gain != 1:
            layer.register_forward_hook(lambda _, inputs, output: output * gain)
        if isinstance(layer, ContextNorm):
            x = first_inputs(self)[0]
            self.first = {"first_deviation": middle(x.transpose(0, 1).flatten(1).std(1)), "first_sigma": sigma(layer)}
            truth = self.tests["test"]
            self.tests["test_average"] = replace(truth, inference="average")
            # the ids of other images: those of the next one in the batch
            self.tests["test_wrong"] = replace(truth, contexts=lambda ids: ids.roll(1))

    def update(self, loss: Tensor) -> None:
        super().update(loss)
        if self.options["held_length"]:
            with torch.no_grad():
                self.before.mul_(self.lengths / lengths(self.before))

    def conclude(self) -> dict[str, Any]:
        """The usual readings; of MN also how far its responsibilities are from 0 and 1 and the second moment of what it
        gives before its affine map, on the test images; of CN its sigma and, before the first step, the deviation of
        its input: geometric means."""
        found, layer = super().conclude(), first_layer(self.model, self.config)
        if isinstance(layer, ContextNorm):
            found |= {**self.first, "last_sigma": sigma(layer)}
        if not isinstance(layer, MixtureNorm):
            return found
        plain = copy.deepcopy(layer)
        plain.weight = plain.bias = None
        largest, second = [], []

        def see(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            x, tau = inputs[0], layer.given_responsibilities
            if tau is None:
                prior, mean, var = layer.running()
                tau = responsibilities(x, prior, mean, var + layer.eps)
            largest.append(tau.amax(1).mean())
            second.append(plain(x, tau).square().mean())

        with layer.register_forward_pre_hook(see):
            self.evaluate()
        means = [float(torch.stack(values).mean()) for values in (largest, second)]
        return found | dict(zip(("largest_responsibility", "second_moment"), means, strict=True))


def middle(values: Tensor) -> float:
    """Their geometric mean."""
    return float(values.log().mean().exp())


def sigma(layer: ContextNorm) -> float:
    """Geometric mean over contexts and channels."""
    return middle(layer.moments()[1].detach().sqrt())


def lengths(weight: Tensor) -> Tensor:
    """Of the weights (C, ...) of each output channel, (C, 1, ...)."""
    return weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))


TASKS["probe"] = Probe
THIRD_OF_100: Fields = {"dataset": "cifar100"}
STEPS = 40  # of an epoch of the reduced profile
CHANGES: dict[str, Fields] = {
    "as printed": {},
    "no momentum": {"momentum": 0.0},
    # with the momentum of 0.9 ten steps add up; so both pairs go as far in the long run
    "a tenth of the rate": {"lr": 1e-4},
    "no momentum, ten times the rate": {"momentum": 0.0, "lr": 1e-2},
    "first steps no larger": {"optimizer": "rmsprop-primed"},
    "warm-up of an epoch": {"warmup": STEPS},
    "no weight decay": {"weight_decay": 0.0},
    "AdamW": {"optimizer": "adamw"},
    "AdamW, ten times the rate": {"optimizer": "adamw", "lr": 1e-2},
    "AdamW, the authors' decay": {"optimizer": "adamw-tfa"},
    "alpha 0.9, as in Keras": {"optimizer": "rmsprop-keras"},
    "alpha 0.9, no momentum": KERAS,
}
# the optimizer as printed: CN alone slowed down, and the weights in front of it kept from growing
OWN: dict[str, Fields] = {
    "CN's own rate a tenth": {"options": {"own_rate": 0.1}},
    "CN held at the identity": {"options": {"own_rate": 0.0}},
    "lengths in conv3 held": {"options": {"held_length": True}},
}
SIGMA = tuple({**THIRD_OF_100, **change} for change in CHANGES.values())
HELD = tuple({**THIRD_OF_100, **change} for change in OWN.values())
STARTS = tuple({**THIRD_OF_100, **start} for start in ({"start": "glorot"}, {"options": {"first_batch": True}}))
EXPERIMENT = Experiment(
    name="causes",
    about="what makes CN slow in the third layer, what MN's scale does, and CN without ids",
    methods={
        **{name: METHODS[name] for name in ("bn", "mn", "mn-em", "mn-random", "cn", "cn-channels")},
        # the published width, and nothing else of the published size
        "cn-wide": {**METHODS["cn"], "width": 1.0},
        "bn-scaled": {"norm": "bn", "options": {"gain": math.sqrt(K)}},
    },
    published={**PUBLISHED, "task": "probe"},
    profiles=PROFILES,
    sweeps={
        "sigma": (Grid(("cn",), SIGMA + HELD), Grid(("bn",), (*SIGMA, HELD[-1]))),
        "width": (Grid(("cn-wide",), (THIRD_OF_100, {**THIRD_OF_100, "weight_decay": 0.0})),),
        "start": (Grid(("cn",), STARTS),),
        "scale": (Grid(("bn-scaled", "mn", "mn-em", "mn-random"), (THIRD_OF_100,)),),
        "without-ids": (Grid(("cn", "cn-channels"), on(CIFAR[::-1], ({},))),),
    },
)
config = EXPERIMENT.config
