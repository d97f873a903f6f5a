"""An experiment in one small file, as the next ones will be: model, contexts, task, tables. `test_toy.py` runs it.

Light digits have labels, dark ones (the same images inverted) have none; the domain is the context, and the tables ask
what a network of each kind makes of either, told the truth about the domain or not.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import cnlib
from cnlib.contexts import DomainContexts
from cnlib.experiments import Experiment, Grid, Printed
from cnlib.training import TASKS, Trainer
from cnlib.training.batches import moments
from cnlib.training.build import CONTEXTS, MODELS


class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, width=1.0, slots=None, hidden=4):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, hidden, 3, stride=2)
        self.head = nn.Linear(hidden * ((image_size - 1) // 2) ** 2, num_classes)
        self.norm = (slots or {}).get("middle", cnlib.BatchNorm)(hidden)

    def slot(self, name):
        return {"middle": "norm"}[name]

    def forward(self, x):
        return self.head(self.norm(self.convolution(x)).relu().flatten(1))


class Light(DomainContexts):
    """The data set's own images are of the first domain; `Adapt` gives the second to the others."""

    def assign(self, images, labels=None):
        return super().assign(images, np.zeros(len(images), dtype=np.int64))


class Adapt(Trainer):
    """Cross-entropy on light digits, and the entropy of the guesses on dark ones."""

    OPTIONS = {"weight": 0.1}

    def setup(self, data):
        super().setup(data)
        self.dark_generator = torch.Generator(self.device).manual_seed(self.config.seed + 1)
        statistics = moments(255 - data.train_images)

        def dark(images, labels, domain):
            ids = torch.full((len(labels),), domain) if self.contexts else None
            return self.split(255 - images, labels, statistics, ids=ids)

        self.dark = dark(data.train_images, data.train_labels, 1)
        for name, domain in (("test_dark", 1), ("test_dark_as_light", 0)):
            self.tests[name] = dark(data.test_images, data.test_labels, domain)

    def batches(self):
        return zip(super().batches(), self.stream(self.dark, self.dark_generator), strict=True)

    def step(self, batch):
        light, dark = batch
        self.optimizer.zero_grad(set_to_none=True)
        logits, guess = (self.logits(self.compiled, b) for b in batch)
        entropy = -(guess.softmax(1) * guess.log_softmax(1)).sum(1).mean()
        loss = F.cross_entropy(logits, light.labels) + self.options["weight"] * entropy
        (loss * light.weight).backward()
        self.optimizer.step()
        return logits, light.labels, loss


MODELS["toy"] = Net
CONTEXTS["domain"] = lambda config, at: Light(("light", "dark"))
TASKS["adapt"] = Adapt
MODELS_IN_PRINT = {"Net+BN": "bn", "Net+CN-Maps": "cn-maps"}
EXPERIMENT = Experiment(
    name="toy",
    about="light and dark digits",
    methods={
        "bn": {"norm": "bn"},
        "cn-maps": {"norm": "cn", "contexts": "domain", "num_contexts": 2, "inference": "both", "called": "cn-maps"},
    },
    published={
        "dataset": "digits",
        "model": "toy",
        "task": "adapt",
        "placement": ("middle",),
        "options": {"hidden": 6},
    },
    profiles={
        "smoke": {"epochs": 3, "batch_size": 50, "train_size": 200, "test_size": 100, "options": {"weight": 0.2}},
        "paper": {},
    },
    seeds={"smoke": 2, "paper": 3},
    sweeps={"toy": (Grid(("bn", "cn-maps"), ({"lr": 1e-3},)),)},
    printed={
        "toy_table_1": Printed("toy", MODELS_IN_PRINT, "Net+BN", tests={"light": "test", "dark": "test_dark"}),
        "toy_table_2": Printed("toy", MODELS_IN_PRINT, "Net+BN", tests={"dark": "test_dark_as_light"}),
    },
)
