"""What a context is worth: the gain by it, the cost of a wrong one, and what Bayes' rule makes of it alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.contexts import LABEL_GROUPS, CorruptedContexts, SuperclassContexts
from cnlib.contexts.bayes import combine
from cnlib.contexts.kmeans import Clusters
from cnlib.contexts.quality import contingency, mutual_information
from cnlib.data import ImageData
from cnlib.norm.gate import effective_number, entropy, imbalance
from cnlib.norm.index_sets import samples
from cnlib.training import distributed, records
from cnlib.training.batches import Split
from cnlib.training.config import Config
from cnlib.training.readings import (
    TestSet,
    first_layer,
    has_running_moments,
    logits_on,
    prepared,
    read_inputs,
    reestimated,
)
from cnlib.training.starts import first_inputs, start_from
from cnlib.training.told import Told
from cnlib.training.trainer import TASKS, Trainer

MOST_PAIRINGS = 5040  # of domains with gates, all of which are tried: seven of each
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)  # at which contexts made from labels are wrong
# pooled features (N, D) of the training and the test images, by the network that made them and its data
FEATURES: dict[tuple[Config, str], tuple[np.ndarray, np.ndarray]] = {}


class Worth(Told):
    """Classification with contexts of any quality, given or found by the network itself.

    Contexts "features" are clusters of what the last layer gets in the same network of the same seed with none but its
    own norm layers, which is trained for it where this process has not done so yet.
    balance: weight of the loss `imbalance` of the gates of the layer under test. hard: of gated context norm, one
    context a sample, drawn at a temperature that falls from `hot` to `cold` over the run by equal factors. kmeans:
    gates start from clusters of what the layer under test gets of a first batch. held: the name of a parameter of the
    layer under test that stays as it starts, "log_var_encoder.weight" for one scale in all contexts.

    Recorded after each epoch, of a layer with gates, over the test images: "gate_number", the exponential of the
    entropy of their mean; "gate_entropy", their mean entropy in nats; "gate_class_bits", mutual information of the
    largest gate and the class; where there are domains "gate_domain_bits", and "gate_agreement", the share of images
    whose largest gate is that of their domain, with a gate of its own for each domain, chosen for the largest share
    among all pairings, if there are not too many.

    Recorded at the end, under statistics that are re-estimated on the training images with their own contexts:
    told a context, "test_shuffled_reestimated", contexts of other images, and "test_constant_accuracy", a number for
    each context told to all; and where contexts are made from labels "test_corrupted_RATE_reestimated". Not told,
    "test_bayes_T_RATE_reestimated": what Bayes' rule makes of each context that can be made from these labels
    (`LABEL_GROUPS`, `combine`); and where there are domains "test_bayes_domain_reestimated": of the domain, with
    p(domain | label) counted on the training images. Each with accuracy, loss and predictions. "context_bits" and
    "test_context_bits": mutual information of contexts and classes, the plug-in estimate, which is
    (T - 1)(K - 1) / (2 N ln 2) too high where there is none.
    """

    OPTIONS = {
        "frozen": False,
        "predict": False,
        "balance": 0.0,
        "hard": False,
        "hot": 2.0,
        "cold": 0.5,
        "kmeans": False,
        "held": "",
    }

    def build(self, data: ImageData) -> nn.Module:
        model = super().build(data)
        layer = first_layer(model, self.config)
        if self.options["hard"]:
            if not hasattr(layer, "hard"):
                raise ValueError(f"options: hard is of gated context norm, not of norm {self.config.norm!r}")
            hot, cold = self.options["hot"], self.options["cold"]
            if min(hot, cold) <= 0:
                raise ValueError(f"options: hot={hot}, cold={cold}: expected temperatures above 0")
            layer.hard = True  # type: ignore[assignment]
        for name in ("balance", "kmeans"):
            if self.options[name] and not hasattr(layer, "gate"):
                raise ValueError(f"options: {name} is of layers with gates, and norm {self.config.norm!r} has none")
        if held := self.options["held"]:
            parameters = dict(layer.named_parameters())
            if held not in parameters:
                known = ", ".join(parameters) or "none"
                raise ValueError(f"options: held={held!r}: the parameters of norm {self.config.norm!r} are {known}")
            parameters[held].requires_grad_(False)
        return model

    def find_contexts(self, data: ImageData, soft: bool) -> dict[str, Tensor]:
        if self.config.contexts != "features":
            return super().find_contexts(data, soft)
        train, test = self.features(data)
        at = str(self.device) if self.device.type == "cuda" else None  # float64: not on mps
        clusters = Clusters(self.config.num_contexts, self.config.seed, at).fit(train)
        return {"train_ids": clusters.nearest(train), "test_ids": clusters.nearest(test)}

    def features(self, data: ImageData) -> tuple[np.ndarray, np.ndarray]:
        """What the last layer of the network without contexts gets, of the training and of the test images."""
        if distributed.size() > 1:
            raise ValueError("contexts='features' are made by one process: start it without torchrun")
        none = {"contexts": "none", "num_contexts": 1, "corruption": 0.0, "encoder": "table", "start": "identity"}
        key = self.plain(task="classify", **none), data.checksum
        if key not in FEATURES:
            network = Trainer(key[0], data, self.device)
            while not network.done:
                network.run_epoch()
            network.model = reestimated(network)
            last = {"": [layer for layer in network.model.modules() if isinstance(layer, nn.Linear)][-1]}
            parts = (network.train, network.tests["test"].split)
            found = (read_inputs(network, part, last, lambda _, x: x.float().cpu())[""].numpy() for part in parts)
            FEATURES.setdefault(key, tuple(found))  # type: ignore[arg-type]
        return FEATURES[key]

    def setup(self, data: ImageData) -> None:
        super().setup(data)
        self.plus = None
        if self.options["kmeans"]:
            start_from(self, first_inputs(self)[0])
        if self.config.contexts == "label":  # also where so many are wrong that nothing tells it any more
            self.superclass = torch.tensor(LABEL_GROUPS[self.config.num_contexts], device=self.device)

    def step(self, batch: Any) -> dict[str, Tensor]:
        layer, options = first_layer(self.model, self.config), self.options
        if options["hard"]:
            done = self.steps_done / self.schedule_steps()
            layer.temperature = options["hot"] * (options["cold"] / options["hot"]) ** done
        if not options["balance"]:
            return super().step(batch)
        seen: list[Tensor] = []
        with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            logits = self.logits(self.compiled, batch)
        loss = F.cross_entropy(logits, batch.labels)
        balance = imbalance(soft_gates(layer, seen[0]))
        self.update((loss + options["balance"] * balance) * batch.weight)
        return {"loss": loss, "imbalance": balance, "logits": logits, "labels": batch.labels}

    def run_epoch(self) -> dict[str, Any]:
        found, layer = super().run_epoch(), first_layer(self.tested, self.config)
        if not hasattr(layer, "gate"):
            return found
        split = self.tests["test"].split
        gates = read_inputs(self, split, {"": layer}, soft_gates)[""].double().cpu()
        columns = {
            name: split.alongside[name].cpu().numpy() for name in ("labels", "domains") if name in split.alongside
        }
        return found | gate_readings(gates, **columns)

    def late_tests(self) -> dict[str, TestSet]:
        return {}

    def conclude(self) -> dict[str, Any]:
        found = super().conclude()
        self.model_read = reestimated(self) if has_running_moments(self.tested) else prepared(self.tested, "cn")
        of_readings = self.told_otherwise() if self.told else self.told_afterwards()
        labels = self.tests["test"].split.labels
        for name, logits in of_readings.items():
            reading = f"{name}_reestimated"
            found[f"{reading}_accuracy"] = float((logits.argmax(1) == labels).double().mean())
            found[f"{reading}_loss"] = float(F.cross_entropy(logits, labels))
            found["predictions"][reading] = records.pack(logits.argmax(1).cpu())
        if self.told:
            found["test_constant_accuracy"] = self.under_constants()
            found |= {"context_bits": self.bits(self.train), "test_context_bits": self.bits(self.tests["test"].split)}
        return found

    def told_otherwise(self) -> dict[str, Tensor]:
        """Logits on the test images under contexts that are not their own."""
        split = self.tests["test"].split
        others = {"test_shuffled": self.shuffled_ids()}
        if self.config.contexts == "label":
            for rate, (made, _) in self.made_from_labels(self.config.num_contexts).items():
                others[f"test_corrupted_{rate:g}"] = made
        return {name: self.logits_on(split.having(ids=other)) for name, other in others.items()}

    def told_afterwards(self) -> dict[str, Tensor]:
        """Logits on the test images, combined with contexts that the network has not seen."""
        split = self.tests["test"].split
        logits = self.logits_on(split)
        known = {
            f"test_bayes_{count}_{rate:g}": combine(logits, ids.to(self.device), given_label)
            for count, table in LABEL_GROUPS.items()
            if len(table) == self.num_classes
            for rate, (ids, given_label) in self.made_from_labels(count).items()
        }
        if (domains := split.alongside.get("domains")) is not None:
            known["test_bayes_domain"] = combine(logits, domains, self.domains_given_label())
        return known

    def domains_given_label(self) -> Tensor:
        """p(domain | label), (K, T), counted on the training images, each pair once more than it occurs."""
        labels, domains = (self.train.alongside[name].cpu().numpy() for name in ("labels", "domains"))
        counts = contingency(domains, labels, len(self.data.domains), self.num_classes) + 1.0
        return torch.from_numpy(counts / counts.sum(0)).t()

    def made_from_labels(self, count: int) -> dict[float, tuple[Tensor, Tensor]]:
        """{rate: (ids (N,) of the test images, p(c | y))}: what contexts from labels, so many, are at each rate."""
        found = {}
        for rate in RATES:
            source = CorruptedContexts(SuperclassContexts(LABEL_GROUPS[count]), rate, self.config.seed)
            given_label = source.given_label()
            assert given_label is not None
            found[rate] = source.assign(self.data.test_images, self.data.test_labels), given_label
        return found

    def under_constants(self) -> list[float]:
        """Accuracy on the test images, all of which are told the same, for each context."""
        split = self.tests["test"].split
        told = (torch.full_like(split.alongside["ids"], r) for r in range(self.config.num_contexts))
        right = [(self.logits_on(split.having(ids=ids)).argmax(1) == split.labels).double().mean() for ids in told]
        return torch.stack(right).tolist()

    def logits_on(self, split: Split) -> Tensor:
        """(N, K), by the network as it is read in the end."""
        return logits_on(self, self.model_read, split)

    def bits(self, split: Split) -> float:
        ids, labels = (split.alongside[name].cpu().numpy() for name in ("ids", "labels"))
        return mutual_information(contingency(ids, labels, self.config.num_contexts, self.num_classes))


def soft_gates(layer: Any, x: Tensor) -> Tensor:
    """The gates (N, K) of a layer that has some, of its input, before anything is drawn."""
    return layer.gate.logits(samples(x), layer.gradient).softmax(1)


def gate_readings(gates: Tensor, labels: np.ndarray, domains: np.ndarray | None = None) -> dict[str, float]:
    """Whether gates (N, K) differ, and what the largest tells: see `Worth`."""
    k, largest = gates.shape[1], gates.argmax(1).numpy()
    found = {
        "gate_number": float(effective_number(gates)),
        "gate_entropy": float(entropy(gates).mean()),
        "gate_class_bits": mutual_information(contingency(largest, labels, k, int(labels.max()) + 1)),
    }
    if domains is not None:
        count = int(domains.max()) + 1
        table = contingency(largest, domains, k, count)
        found["gate_domain_bits"] = mutual_information(table)
        if count <= k and math.perm(k, count) <= MOST_PAIRINGS:
            pairings = (
                sum(table[gate, d] for d, gate in enumerate(p)) for p in itertools.permutations(range(k), count)
            )
            found["gate_agreement"] = float(max(pairings) / len(gates))
    return found


TASKS["worth"] = Worth
