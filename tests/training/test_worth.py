"""What contexts are worth: every reading against what it says it is, and gates by numbers worked by hand."""

import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cnlib.contexts import LABEL_GROUPS
from cnlib.contexts.kmeans import Clusters
from cnlib.experiments import context_ablation, means_or_scales
from cnlib.norm.gate import imbalance
from cnlib.training import Worth, loop, train, worth
from cnlib.training.loop import fetch
from cnlib.training.readings import first_layer
from cnlib.training.starts import first_inputs
from cnlib.training.worth import gate_readings, soft_gates

CPU = torch.device("cpu")
SHORT = {"width": 0.125, "epochs": 4, "train_size": 640, "lr": 5e-3}


def trainer(method, **changes):
    config = context_ablation.config(method, 0, "smoke", **changes)
    return Worth(config, fetch(config.dataset).subset(config.train_size, config.test_size), CPU)


@pytest.fixture(scope="module")
def runs():
    names = ("bn", "cn-channels-label-2-0.5", "cn-channels-label-10-1", "cn-channels-random-10")
    return {name: train(context_ablation.config(name, 0, "smoke", **SHORT), progress=False) for name in names}


def labels():
    data = fetch("digits+inverse-digits").subset(640, 100)
    return torch.from_numpy(data.test_labels)


def test_bayes_rule_by_hand():
    one = trainer("bn")
    one.model_read = one.model.eval()
    plain = one.logits_on(one.tests["test"].split)
    found = one.told_afterwards()
    rates = (0, 0.25, 0.5, 0.75, 1)
    assert list(found) == [*(f"test_bayes_{t}_{rate:g}" for t in (2, 5, 10) for rate in rates), "test_bayes_domain"]
    made = one.made_from_labels(5)
    for rate, floor in ((0.0, 1e-12), (0.25, 0.05), (1.0, 0.2)):
        ids, table = made[rate][0], torch.tensor(LABEL_GROUPS[5])
        # (1 - rho) [c = g(y)] + rho / T
        given = torch.where(table == ids[:, None], 1 - rate + rate / 5, floor).clamp_min(floor)
        torch.testing.assert_close(found[f"test_bayes_5_{rate:g}"], plain + given.log())
    right = torch.tensor(LABEL_GROUPS[5])[one.tests["test"].split.labels]
    assert torch.equal(made[0.0][0], right)
    kept = {rate: (ids == right).double().mean().item() for rate, (ids, _) in made.items()}
    assert all(abs(kept[rate] - (1 - rate + rate / 5)) < 0.15 for rate in kept)


def test_bn_is_told_afterwards(runs):
    run, truth = runs["bn"], labels()
    plain = run.predictions("test_reestimated")
    for count in (2, 5, 10):
        # a context that tells nothing changes nothing; one that tells the class leaves no other
        assert np.array_equal(run.predictions(f"test_bayes_{count}_1_reestimated"), plain)
        told = run.predictions(f"test_bayes_{count}_0_reestimated")
        groups = np.array(LABEL_GROUPS[count])
        assert (groups[told] == groups[truth.numpy()]).all()
    assert run.final["test_bayes_10_0_reestimated_accuracy"] == 1
    losses = [run.final[f"test_bayes_10_{rate:g}_reestimated_loss"] for rate in worth.RATES]
    assert losses == sorted(losses) and losses[-1] == pytest.approx(run.final["test_reestimated_loss"], rel=1e-5)
    assert "context_bits" not in run.final and not any("gate" in name for name in run.epochs)


def test_a_network_is_told_other_contexts(runs):
    run = runs["cn-channels-label-2-0.5"]
    own = run.predictions("test_reestimated")
    assert np.array_equal(run.predictions("test_corrupted_0.5_reestimated"), own)
    assert run.final["test_corrupted_0.5_reestimated_loss"] == pytest.approx(run.final["test_reestimated_loss"])
    assert len(run.final["test_constant_accuracy"]) == 2
    # of every image the right context is one of the constants: both together are right at least where it is
    right = run.final["test_corrupted_0_reestimated_accuracy"]
    assert sum(run.final["test_constant_accuracy"]) >= right - 1e-9
    for reading in ("test_shuffled", "test_corrupted_0"):
        found = (run.predictions(f"{reading}_reestimated") == labels().numpy()).mean()
        assert run.final[f"{reading}_reestimated_accuracy"] == pytest.approx(found)
    assert "test_corrupted_0_reestimated_loss" not in runs["cn-channels-random-10"].final
    assert "test_shuffled_reestimated_loss" in runs["cn-channels-random-10"].final


def test_constants_are_told_to_all_images(monkeypatch):
    one = trainer("cn-channels-label-10")
    labels = one.tests["test"].split.labels
    # a network that takes the context for the class is right about the images of that class
    monkeypatch.setattr(one, "logits_on", lambda split: F.one_hot(split.alongside["ids"], 10).float())
    assert one.under_constants() == pytest.approx([(labels == r).double().mean().item() for r in range(10)])
    assert torch.equal(one.told_otherwise()["test_corrupted_0"].argmax(1), labels)
    shuffled = one.told_otherwise()["test_shuffled"].argmax(1)
    assert torch.equal(shuffled.sort().values, labels.sort().values) and (shuffled != labels).any()


def test_bits_are_those_of_contexts_and_classes():
    of = {name: trainer(name) for name in ("cn-label-2", "cn-label-10", "cn-label-10-1", "cn-one")}
    bits = {name: one.bits(one.train) for name, one in of.items()}
    # 0.4 and 0.6 of the classes
    assert bits["cn-label-2"] == pytest.approx(-(0.4 * math.log2(0.4) + 0.6 * math.log2(0.6)), abs=0.02)
    assert bits["cn-label-10"] == pytest.approx(math.log2(10), abs=0.02)
    assert bits["cn-one"] == 0
    # the estimate's own, where there is nothing: (T - 1)(K - 1) / (2 N ln 2)
    assert bits["cn-label-10-1"] == pytest.approx(81 / (2 * 200 * math.log(2)), rel=0.5)


def test_obedience_is_to_the_group_that_was_told_also_where_nothing_tells_it():
    one = trainer("cn-channels-label-10-1")
    assert one.superclass.tolist() == list(range(10))
    batch = next(one.tests["test"].split.ordered(50))
    found = one.measure(F.one_hot(batch.ids, 10).float(), batch)
    assert found["obedience"] == 1
    assert found["superclass_accuracy"] == pytest.approx((batch.ids == batch.labels).double().mean().item())


def test_readings_of_gates_by_hand():
    sharp = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]).double()
    found = gate_readings(sharp, np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]))
    assert found["gate_number"] == pytest.approx(2) and found["gate_entropy"] == 0
    assert found["gate_class_bits"] == pytest.approx(0) and found["gate_domain_bits"] == pytest.approx(1)
    assert found["gate_agreement"] == 1
    even = torch.full((4, 3), 1 / 3).double()
    found = gate_readings(even, np.array([0, 1, 0, 1]), np.array([0, 0, 0, 1]))
    assert found["gate_number"] == pytest.approx(3) and found["gate_entropy"] == pytest.approx(math.log(3))
    # all in the first gate, which can be that of one domain
    assert found["gate_agreement"] == 0.75 and found["gate_domain_bits"] == 0
    assert "gate_agreement" not in gate_readings(even, np.array([0, 1, 0, 1]))
    assert "gate_agreement" not in gate_readings(even[:, :1], np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]))


def test_gates_are_read_on_all_test_images_after_each_epoch():
    one = trainer("mode-4", epochs=1)
    found = one.run_epoch()
    layer, x = first_layer(one.model, one.config), []
    with layer.register_forward_pre_hook(lambda _, inputs: x.append(inputs[0])), torch.no_grad():
        for batch in one.tests["test"].split.ordered(33):
            one.model.eval()(batch.x)
        gates = layer.gates(torch.cat(x))
    mean = gates.mean(0)
    assert found["gate_number"] == pytest.approx(math.exp(-float((mean * mean.log()).sum())), rel=1e-5)
    assert found["gate_entropy"] == pytest.approx(float(-(gates * gates.log()).sum(1).mean()), rel=1e-5)
    assert 0.5 <= found["gate_agreement"] <= 1


def test_the_balance_of_gates_is_part_of_the_loss():
    one = trainer("gated-4")
    batch, seen = next(one.batches()), []
    layer = first_layer(one.model, one.config)
    one.update = seen.append
    torch.nn.init.normal_(layer.gate.weight, generator=torch.Generator().manual_seed(0))
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        found = one.step(batch)
    x, loss = seen
    gates = layer.gate.logits(x.flatten(2), "autograd").softmax(1)
    assert found["imbalance"] > 1e-3
    torch.testing.assert_close(found["imbalance"], imbalance(gates))
    torch.testing.assert_close(loss, F.cross_entropy(found["logits"], batch.labels) + 0.01 * imbalance(gates))
    torch.testing.assert_close(found["loss"], F.cross_entropy(found["logits"], batch.labels))
    loss.backward()
    assert layer.gate.weight.grad.abs().max() > 0
    assert not layer._forward_pre_hooks  # nothing stays behind


def test_one_context_a_sample_gets_colder():
    one = trainer("gated-4-hard", epochs=2)
    layer, total = first_layer(one.model, one.config), 2 * one.epoch_steps()
    assert layer.hard and not first_layer(trainer("gated-4").model, one.config).hard
    batch = next(one.batches())
    for done, temperature in ((0, 2.0), (total // 2, 1.0), (total, 0.5)):
        one.steps_done = done
        one.step(batch)
        assert layer.temperature == pytest.approx(temperature)
    gates = layer.train().gates(torch.randn(20, layer.num_features, 2, 2))
    assert set(gates.detach().round(decimals=6).unique().tolist()) == {0.0, 1.0}
    soft = soft_gates(layer, torch.randn(20, layer.num_features, 2, 2))
    assert soft.min() > 0 and soft.max() < 1


def test_features_are_those_of_the_network_without_contexts():
    worth.FEATURES.clear()
    one = trainer("cn-channels-features-4")
    ((key, (train_features, test_features)),) = worth.FEATURES.items()
    assert key[0].norm == "none" and key[0].task == "classify" and key[0].epochs == one.config.epochs
    assert train_features.shape == (200, 16) and test_features.shape == (100, 16)
    clusters = Clusters(4, 0).fit(train_features)
    assert torch.equal(one.contexts["train_ids"], clusters.nearest(train_features))
    assert torch.equal(one.contexts["test_ids"], clusters.nearest(test_features))
    # its weights are those of the recorded network with batch norm
    bn = context_ablation.config("bn", 0, "smoke")
    run, again = train(bn, progress=False), train(key[0], progress=False)
    theirs = again.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.model.state_dict().items())
    # and nothing of training it is left: the same start, the same order of images
    trainer("cn-features-4")
    assert len(worth.FEATURES) == 1
    plain = trainer("cn-channels-one")
    torch.testing.assert_close(one.model.conv1.weight, plain.model.conv1.weight, rtol=0, atol=0)
    assert torch.equal(next(one.batches()).labels, next(plain.batches()).labels)


@pytest.mark.parametrize(
    "method, changes, message",
    [
        ("bn", {"options": {"hard": True}}, "hard is of gated context norm, not of norm 'bn'"),
        ("bn", {"options": {"balance": 0.1}}, "balance is of layers with gates, and norm 'bn' has none"),
        ("gated-4-hard", {"options": {"hot": 0}}, "hot=0, cold=0.5: expected temperatures above 0"),
        ("bn", {"options": {"kmeans": True}}, "kmeans is of layers with gates, and norm 'bn' has none"),
        ("cn-label-2", {"options": {"held": "log_var"}}, "held='log_var': the parameters of norm 'cn'"),
        ("cn-features-4", {"task": "classify"}, "features.*set task='worth'"),
        ("cn-label-2", {"num_contexts": 3}, "num_contexts=3: expected one of 2, 5, 10, 20"),
    ],
)
def test_what_cannot_be_is_refused(method, changes, message):
    with pytest.raises(ValueError, match=message):
        train(context_ablation.config(method, 0, "smoke", **changes), progress=False)


@pytest.mark.parametrize("method", ["gated-4-hard", "cn-channels-features-4"])
def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch, method):
    config = context_ablation.config(method, 0, "smoke")
    whole = train(config, progress=False)
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=itertools.count(0, 60).__next__)
    )
    assert len(train(config, tmp_path / "run.jsonl", progress=False, until=30).epochs["epoch"]) == 1
    monkeypatch.undo()
    worth.FEATURES.clear()
    again = train(config, tmp_path / "run.jsonl", progress=False)
    assert again.status == "finished" and not worth.FEATURES
    for name in ("train_loss", "test_accuracy"):
        np.testing.assert_array_equal(whole.curve(name), again.curve(name))


@pytest.mark.parametrize("method", ["mode-4", "gated-4"])
def test_gates_may_start_from_clusters_of_what_the_layer_gets(method):
    plain, started = trainer(method), trainer(f"{method}-kmeans")
    x, batch = first_inputs(started)
    torch.testing.assert_close(x, first_inputs(plain)[0])
    assert x.shape[:2] == (64, first_layer(started.model, started.config).num_features)
    gates = {one: soft_gates(first_layer(one.model, one.config), x).detach() for one in (plain, started)}
    assert 2 * gates[plain].std(0).max() < gates[started].std(0).min()
    # nothing else has moved: other weights, running statistics, the order of the images
    ours, theirs = started.model.state_dict(), plain.model.state_dict()
    moved = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    own = {"mode-4": set(), "gated-4": {"norm3.mean", "norm3.log_var"}}[method]
    assert moved == own | {"norm3.gate.weight", "norm3.gate.bias"}
    assert torch.equal(next(plain.batches()).labels, next(started.batches()).labels)


@pytest.mark.parametrize("place", ["cn-channels-guess", "cn-logits-guess"])
def test_contexts_may_differ_in_their_means_or_in_their_scales_alone(place):
    differ = {}
    for part in ("", "-means", "-scales"):
        run = train(means_or_scales.config(place + part, 0, "smoke", epochs=4), progress=False)
        mean, var = first_layer(run.model, run.config).moments()  # (T, C)
        differ[part] = [not torch.equal(value, value[:1].expand_as(value)) for value in (mean, var)]
        # what all contexts share is learned
        assert abs(mean).max() > 0 and abs(var - 1).max() > 0
    assert differ == {"": [True, True], "-means": [True, False], "-scales": [False, True]}


@pytest.mark.parametrize("method", ["mode-4", "gated-4", "gated-4-hard", "gated-4-kmeans"])
def test_gates_are_read_on_logits_too(method):
    one = trainer(method, placement=("logits",), epochs=1)
    found = one.run_epoch()
    assert 1 <= found["gate_number"] <= 4 and first_layer(one.model, one.config).num_features == one.num_classes


def test_agreement_is_read_where_all_pairings_can_be_tried():
    for count in (7, 12):  # twelve factorial are too many
        owner = np.random.default_rng(0).permutation(count)
        domains = np.arange(5 * count) % count
        gates = torch.eye(count, dtype=torch.float64)[torch.from_numpy(owner[domains])]
        found = gate_readings(gates, domains, domains)
        assert found["gate_domain_bits"] == pytest.approx(math.log2(count))
        assert found.get("gate_agreement") == (1 if count == 7 else None)


def test_what_a_layer_learned_about_logits_is_not_taken_for_colors():
    data = fetch("digits+inverse-digits").subset(120, 60)
    images = {f"{part}_images": getattr(data, f"{part}_images").repeat(3, 3) for part in ("train", "test")}
    labels = {f"{part}_labels": getattr(data, f"{part}_labels") % 3 for part in ("train", "test")}
    three = replace(data, **images, **labels, classes=("a", "b", "c"))  # as many as channels
    for placement, kept in ((("logits",), False), (("input", "logits"), True)):
        changes = {"placement": placement, "epochs": 1, "contexts": "random", "num_contexts": 4}
        config = context_ablation.config("cn-channels-random-10", 0, "smoke", **changes)
        config = replace(config, train_size=None, test_size=None)
        assert ("learned_mean" in train(config, data=three, progress=False).final) == kept
