"""Mixtures that are learned and those that are not differ in that alone; ratios are recorded as they are."""

import time
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cnlib import results
from cnlib.experiments import EXPERIMENTS, learned_norms
from cnlib.experiments.learned_norms import PRIMARY, Ratios, ratio_parameters
from cnlib.sweeps import sweep
from cnlib.training import TASKS, Trainer, loop, train
from cnlib.training.loop import fetch
from cnlib.training.schedule import set_rate

NORMS = EXPERIMENTS["learned_norms"]
BATCH = {"batch_size": 8, "lr": 0.05, "epochs": 1}


def trainer(method, seed=0, **changes):
    config = NORMS.config(method, seed, "smoke", **changes)
    return TASKS[config.task](config, fetch(config.dataset).subset(config.train_size, config.test_size), CPU)


CPU = torch.device("cpu")


def test_the_reduced_sweep_is_as_it_was_declared():
    configs = NORMS.configs("batch-size", "reduced").values()
    assert len(configs) == 8 * 4 * 3
    for c in configs:
        assert c.placement == ("conv1", "conv2", "conv3", "conv4") and c.width == 0.25
        assert (c.optimizer, c.momentum, c.weight_decay, c.schedule) == ("sgd", 0.9, 1e-4, "cosine")
        assert c.lr == {256: 0.05, 32: 0.00625, 8: 0.002, 2: 0.002}[c.batch_size]
        assert c.epochs == (4 if c.batch_size == 2 else 10)
        assert (c.train_size, c.test_size, c.label_noise) == (10240, 2000, 0)
    noisy = NORMS.configs("label-noise", "reduced").values()
    assert {(c.batch_size, c.label_noise) for c in noisy} == {(256, 0.4)}
    assert {c.method for c in noisy} == {"bn", "sn", "en", "mean3"} and len(noisy) == 12


def test_methods_differ_in_their_layer_and_whether_its_ratios_are_learned():
    plain = NORMS.config("bn", profile="reduced").to_dict()
    for method in NORMS.methods:
        other = NORMS.config(method, profile="reduced").to_dict()
        assert {key for key in plain if plain[key] != other[key]} <= {"method", "norm", "options"}
        how = {"sn-fixed": {"fixed": True}, "mean3": {"fixed": True}, "sn-found": {"found": True}}
        assert other["options"] == how.get(method, {})


@pytest.mark.parametrize("claim", PRIMARY)
def test_every_declared_contrast_has_its_runs(claim):
    asked = PRIMARY[claim]
    configs = [c for s in NORMS.sweeps for c in NORMS.configs(s, "reduced").values()]
    chosen = [c for c in configs if all(getattr(c, name) == value for name, value in asked.where.items())]
    for pair in asked.pairs.values():
        for method in pair:
            assert sorted(c.seed for c in chosen if c.method == method) == [0, 1, 2], (claim, method)
    assert set(asked.readings) == {"test_reestimated"}


@pytest.mark.parametrize("learned, fixed", [("sn", "sn-fixed"), ("en", "mean3")])
def test_fixed_ratios_stay_equal_and_the_others_do_not(learned, fixed):
    runs = {method: train(NORMS.config(method, 0, "smoke", **BATCH), progress=False) for method in (learned, fixed)}
    names = [f"ratio_{of}norm{i}" for i in range(1, 5) for of in (("mean_", "var_") if learned == "sn" else ("",))]
    for name in names:
        assert runs[fixed].curve(name).shape == (1, 3)
        np.testing.assert_allclose(runs[fixed].curve(name), 1 / 3, rtol=1e-6)
    assert max(abs(runs[learned].curve(name) - 1 / 3).max() for name in names) > 1e-4
    # the same layer otherwise: weights start equal, and all but the ratios have the same first gradient
    models = [trainer(method).model.train() for method in (learned, fixed)]
    ours, theirs = (model.state_dict() for model in models)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for model in models:
        F.cross_entropy(model(x), torch.arange(8)).backward()
    ours, theirs = ({name: p.grad for name, p in model.named_parameters()} for model in models)
    moved = {name for name in ours if theirs[name] is None}
    of_ratios = {id(p) for p in ratio_parameters(models[1])}
    assert moved == {name for name, p in models[1].named_parameters() if id(p) in of_ratios}
    assert any(ours[name].abs().max() > 0 for name in moved)
    for name in ours.keys() - moved:
        torch.testing.assert_close(ours[name], theirs[name])


def test_ratios_that_are_found_are_those_of_the_network_that_learns_them():
    learned, found = (
        train(NORMS.config(method, 0, "smoke", **BATCH | {"epochs": 2}), progress=False)
        for method in ("sn", "sn-found")
    )
    names = [f"ratio_{of}_norm{i}" for i in range(1, 5) for of in ("mean", "var")]
    for name in names:  # after each epoch those that the other ends with
        for epoch in (0, 1):
            np.testing.assert_allclose(found.curve(name)[epoch], learned.curve(name)[-1], rtol=1e-6)
    assert max(abs(found.curve(name) - 1 / 3).max() for name in names) > 1e-4
    # the rest starts and is drawn as with ratios that move
    ours, theirs = trainer("sn-found", **BATCH), trainer("sn", **BATCH)
    assert torch.equal(ours.model.conv1.weight, theirs.model.conv1.weight)
    assert torch.equal(next(ours.batches()).labels, next(theirs.batches()).labels)


def test_mean3_is_the_mean_of_three_outputs():
    layer, x = trainer("mean3").model.norm1, torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    batch = F.batch_norm(x, None, None, training=True)
    each = (F.instance_norm(x), F.layer_norm(x, x.shape[1:]), batch)
    torch.testing.assert_close(layer(x), sum(each) / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer, factor", [("sgd", 1 - 0.1 * 0.5), ("adamw-tfa", 0.5)])
@pytest.mark.parametrize("method", ["sn", "en"])
def test_weight_decay_leaves_the_ratios_alone(method, optimizer, factor):
    one = trainer(method, optimizer=optimizer, lr=0.1, weight_decay=0.5, momentum=0.0)
    ratios = list(ratio_parameters(one.model))
    assert len(ratios) == 4 * (2 if method == "sn" else 5)
    with torch.no_grad():
        for p in one.model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    set_rate(one.optimizer, 0.1)  # as a schedule does before each step
    one.optimizer.step()
    assert all((p == 1).all() for p in ratios)
    torch.testing.assert_close(one.model.conv1.weight, torch.full_like(one.model.conv1.weight, factor))
    assert sum(len(group["params"]) for group in one.optimizer.param_groups) == len(list(one.model.parameters()))


def test_layers_without_ratios_are_trained_as_ever():
    config = NORMS.config("gn", 0, "smoke", **BATCH)
    ours, plain = (train(replace(config, task=task), progress=False) for task in ("ratios", "classify"))
    assert ours.epochs["train_loss"] == plain.epochs["train_loss"]
    assert not any("ratio" in name for name in (*ours.epochs, *ours.final))


def test_the_readings_of_ratios_by_hand(monkeypatch):
    one = trainer("en")
    labels = one.tests["test"].split.labels
    # classes below 5 have a ratio of 0.2, the others one of 0.6; of ln half the images of either kind have 0.1 more
    first = torch.where(labels < 5, 0.2, 0.6)
    ratios = torch.stack((first, 0.9 - first, torch.full_like(first, 0.1)), 1).double()
    monkeypatch.setattr(Trainer, "run_epoch", lambda self: {})
    monkeypatch.setattr(Ratios, "exemplar_ratios", lambda self: {"norm1": ratios})
    found, share = one.run_epoch(), float((labels < 5).double().mean())
    assert found["ratio_norm1"] == pytest.approx([0.6 - 0.4 * share, 0.3 + 0.4 * share, 0.1])
    spread = 0.4 * (share * (1 - share)) ** 0.5
    assert found["ratio_std_norm1"] == pytest.approx([spread, spread, 0])
    assert found["ratio_between_norm1"] == pytest.approx([1, 1, 0])


def test_ratios_are_those_that_the_layer_takes_of_each_test_image():
    one, generator = trainer("en"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in ratio_parameters(one.model):
            p.normal_(std=0.7, generator=generator)
    ratios = one.exemplar_ratios()
    assert list(ratios) == ["norm1", "norm2", "norm3", "norm4"]
    images = torch.cat([batch.x for batch in one.tests["test"].split.ordered(7)])
    with torch.no_grad():
        expected = one.model.eval().norm1.ratios(one.model.conv1(images))
    torch.testing.assert_close(ratios["norm1"], expected.double(), rtol=1e-4, atol=1e-6)
    assert ratios["norm1"].std(0).max() > 1e-3


def test_the_end_keeps_the_ratios_of_learned_mixtures_with_their_labels():
    run = train(NORMS.config("en", 0, "smoke", **BATCH), progress=False)
    data = fetch(run.config.dataset).subset(run.config.train_size, run.config.test_size)
    assert run.final["ratio_labels"] == data.test_labels.tolist()
    for i in range(1, 5):
        kept = np.array(run.final[f"ratios_norm{i}"])
        assert kept.shape == (40, 3) and np.allclose(kept.sum(1), 1, atol=2e-3)
        np.testing.assert_allclose(kept.mean(0), run.curve(f"ratio_norm{i}")[-1], atol=1e-3)
    assert "ratio_labels" not in train(NORMS.config("mean3", 0, "smoke", **BATCH), progress=False).final


def test_wrong_labels_are_those_of_training_alone():
    clean, noisy = trainer("sn"), trainer("sn", label_noise=0.4)
    assert torch.equal(clean.tests["test"].split.labels, noisy.tests["test"].split.labels)
    wrong = (clean.train.labels != noisy.train.labels).double().mean().item()
    assert 0.25 < wrong < 0.55
    assert torch.equal(noisy.train.labels, trainer("bn", label_noise=0.4).train.labels)
    assert not torch.equal(noisy.train.labels, trainer("sn", label_noise=0.4, seed=1).train.labels)


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = NORMS.config("en", 0, "smoke", **BATCH | {"epochs": 2, "label_noise": 0.4})
    whole = train(config, progress=False)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=count(0, 60).__next__))
    assert len(train(config, tmp_path / "run.jsonl", progress=False, until=30).epochs["epoch"]) == 1
    monkeypatch.undo()
    again = train(config, tmp_path / "run.jsonl", progress=False)
    assert again.status == "finished"
    for name in ("train_loss", "ratio_norm4", "ratio_between_norm1"):
        np.testing.assert_array_equal(whole.curve(name), again.curve(name))


def test_every_sweep_runs(tmp_path):
    for name in NORMS.sweeps:
        few = dict(list(NORMS.configs(name, "smoke").items())[-1:])
        assert set(sweep(few, tmp_path, progress=False).values()) == {"finished"}
    assert results.load(tmp_path)


def test_the_digits_are_large_enough_for_instance_norm():
    assert fetch("digits-16").train_images.shape[1:] == (16, 16, 1)
    assert learned_norms.config("in", profile="smoke").dataset == "digits-16"
