"""An experiment in one small file, as the next ones will be: data, model, task, tables. `test_toy.py` runs it.

Light digits have labels; dark ones, fewer and larger, have none. The domain is the context, told truly or not.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import cnlib
from cnlib.data import EMBEDDED, ImageData
from cnlib.models import MODELS
from cnlib.sweeps import Experiment, Grid, Printed
from cnlib.training import TASKS, TestSet, Trainer
from cnlib.training.augment import jitter, shift


def dark():
    digits = EMBEDDED["digits"]()
    larger = [np.pad(255 - x[::2], ((0, 0), (1, 1), (2, 2), (0, 0))) for x in (digits.train_images, digits.test_images)]
    return ImageData("dark", larger[0], digits.train_labels[::2], larger[1], digits.test_labels[::2], digits.classes)


class Told(nn.Embedding):  # a learned row for each context, added to every position: a token, without any norm
    given_ids = None

    def forward(self, x):
        return x + super().forward(self.given_ids)[:, :, None, None]


class Net(nn.Sequential):
    SLOTS = {"middle": "norm"}

    def __init__(self, num_classes, in_channels, image_size, width=1.0, hidden=4, told=False):
        super().__init__()
        self.conv, self.told = nn.Conv2d(in_channels, hidden, 3, 2), Told(2, hidden) if told else nn.Identity()
        self.norm, self.relu, self.flat = cnlib.BatchNorm(hidden), nn.ReLU(), nn.Flatten()
        self.head = nn.Linear(hidden * np.prod([(size - 1) // 2 for size in image_size]), num_classes)


class Adapt(Trainer):
    """Cross-entropy on light digits; on dark ones a strong view has to agree with what a weak one is taken for."""

    OPTIONS = {"weight": 0.1}
    HEADLINE = "test_dark_confidence"

    def setup(self, data):
        super().setup(data)
        whole, self.dark_generator = self.train, torch.Generator(self.device).manual_seed(self.config.seed + 1)
        self.train, self.dark = whole.where(domain=0), whole.where(domain=1)
        dark = TestSet(self.tests["test"].split.where(domain=1))
        wrong, told = replace(dark, contexts=lambda ids: 1 - ids), replace(dark, logits=self.tell_parity)
        self.tests |= {"test_dark": dark, "test_dark_as_light": wrong, "test_parity": told}

    def tell_parity(self, logits, batch):
        return logits.masked_fill((torch.arange(self.num_classes) - batch.labels[:, None]) % 2 == 1, -1e9)

    def batches(self):
        views = [(), (shift(1, "reflect"), jitter(0.2))]
        light = self.stream(self.train, self.generator)
        return zip(light, self.stream(self.dark, self.dark_generator, views, count=self.epoch_steps()), strict=True)

    def step(self, batch):
        light, dark = batch
        logits = self.logits(self.compiled, light)
        with cnlib.frozen(self.compiled):
            taken_for = self.logits(self.compiled, dark).argmax(1)
        strong = self.logits(self.compiled, replace(dark, x=dark.views[1]))
        loss = cross_entropy(logits, light.labels) + self.options["weight"] * cross_entropy(strong, taken_for)
        self.update(loss * light.weight)
        agreement = (strong.argmax(1) == taken_for).float().mean()
        return {"loss": loss, "logits": logits, "labels": light.labels, "agreement": agreement}

    def measure(self, logits, batch):
        return super().measure(logits, batch) | {"confidence": logits.softmax(1).amax(1).mean()}


EMBEDDED["dark"], MODELS["toy"], TASKS["adapt"] = dark, Net, Adapt
TOLD = {"contexts": "domain", "num_contexts": 2}
WHAT = {"dataset": "digits+dark", "model": "toy", "task": "adapt", "placement": ("middle",), "options": {"hidden": 6}}
HOW = {"optimizer": "sgd", "lr": 0.05, "schedule": "cosine", "warmup": 3, "average": 0.9}
SMOKE = {"epochs": 3, "batch_size": 40, "train_size": 300, "test_size": 120, "options": {"weight": 0.2}}
TOKEN = {"norm": "bn", **TOLD, "options": {"told": True}}
METHODS = {"bn": {"norm": "bn"}, "cn-maps": {"norm": "cn", **TOLD}, "token": TOKEN}
TESTS = {"toy_table_1": {"light": "test", "dark": "test_dark"}, "toy_table_2": {"dark": "test_dark_as_light"}}
PRINTED = {"Net+BN": "bn", "Net+Token": "token", "Net+CN-Maps": "cn-maps"}
EXPERIMENT = Experiment(
    name="toy",
    about="light and dark digits",
    methods=METHODS,
    published={**WHAT, **HOW},
    profiles={"smoke": SMOKE, "paper": {}},
    seeds={"smoke": 2, "paper": 3},
    sweeps={"toy": (Grid(tuple(METHODS), ({},)),)},
    printed={name: Printed("toy", PRINTED, "Net+BN", tests=tests) for name, tests in TESTS.items()},
)
