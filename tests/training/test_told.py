"""Networks that are told a context made from the label: every reading against what it says it is."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from cnlib.contexts import bayes
from cnlib.data import load
from cnlib.experiments import vit
from cnlib.training import Told, told, train
from cnlib.training.batches import Batch, join

CPU = torch.device("cpu")
SHORT = {"train_size": 640, "test_size": 200, "epochs": 3, "lr": 5e-3}


def trainer(method, **changes):
    config = vit.config(method, profile="smoke", **changes)
    return Told(config, load(config.dataset).subset(config.train_size, config.test_size), CPU)


@pytest.fixture(scope="module")
def runs():
    """Trained for a moment, enough to obey: {method: (run, a trainer with its weights, trained once for the others)}"""
    told.CONTEXT_FREE.clear()
    found = {}
    for method in ("vit", "cn-channels", "token"):
        config = vit.config(method, profile="smoke", **SHORT)
        run = train(config)
        again = trainer(method, **SHORT)
        again.model.load_state_dict(run.model.state_dict())
        found[method] = run, again
    return found


def predictions(run, name="test"):
    return torch.from_numpy(run.predictions(name))


def test_a_masked_network_is_told_afterwards(runs):
    run, again = runs["vit"]
    logits, labels = again.answers(again.model), again.tests["test"].split.labels
    parity = torch.arange(10) % 2
    masked = logits.masked_fill(parity != labels[:, None] % 2, -torch.inf)
    assert torch.equal(predictions(run, "test_masked"), masked.argmax(1))
    assert run.curve("test_masked_accuracy")[-1] == pytest.approx(float((masked.argmax(1) == labels).double().mean()))
    loss = torch.nn.functional.cross_entropy(masked, labels)
    assert run.curve("test_masked_loss")[-1] == pytest.approx(float(loss), rel=1e-4)
    assert (run.curve("test_masked_loss") < run.curve("test_loss")).all()
    assert (run.curve("test_masked_obedience") == 1).all()
    guessed = logits.argmax(1) % 2 == labels % 2
    for name in ("test_obedience", "test_superclass_accuracy"):
        assert run.curve(name)[-1] == pytest.approx(float(guessed.double().mean()))


def test_the_authors_precision_is_recorded(runs):
    run, again = runs["vit"]
    logits, labels = again.answers(again.model), again.tests["test"].split.labels
    above = logits > 0.5
    right = above[torch.arange(len(labels)), labels].sum()
    assert run.curve("test_their_precision")[-1] == pytest.approx(float(right / above.sum()), rel=1e-5)
    assert run.curve("test_their_recall")[-1] == pytest.approx(float(right / len(labels)), rel=1e-5)


@pytest.mark.parametrize("method", ["cn-channels", "token"])
def test_a_told_network_is_read_under_other_contexts(runs, method):
    (run, again), (_, plain) = runs[method], runs["vit"]
    split = again.tests["test"].split
    labels, order = split.labels, np.random.default_rng(0).permutation(len(split))
    (batch,) = split.ordered(len(split))
    every = torch.stack([answers(again, batch, torch.full_like(batch.ids, r)) for r in range(2)])
    posterior = bayes.context_posterior(plain.answers(plain.model), again.given_label)
    expected = {
        "test": answers(again, batch, labels % 2),
        "test_shuffled": answers(again, batch, labels[torch.from_numpy(order)] % 2),
        "test_predicted": answers(again, batch, posterior.argmax(1)),
        "test_marginal": bayes.marginal(every, posterior),
    }
    assert not torch.equal(posterior.argmax(1), labels % 2)
    for name, logits in expected.items():
        assert torch.equal(predictions(run, name), logits.argmax(1)), name
        if name != "test":
            right = float((logits.argmax(1) == labels).double().mean())
            assert run.final[f"{name}_accuracy"] == pytest.approx(right)
    for r in range(2):
        guesses = every[r].argmax(1)
        assert run.final["test_constant_accuracy"][r] == pytest.approx(float((guesses == labels).double().mean()))
        assert run.final["test_constant_obedience"][r] == pytest.approx(float((guesses % 2 == r).double().mean()))
    given = torch.from_numpy(order)
    obedient = predictions(run, "test_shuffled") % 2 == labels[given] % 2
    assert run.final["test_shuffled_obedience"] == pytest.approx(float(obedient.double().mean()))


@torch.no_grad()
def answers(trainer, batch, ids):
    return trainer.logits(trainer.model.eval(), replace(batch, ids=ids))


def test_the_same_network_without_contexts_is_trained_once(runs, monkeypatch):
    seen = []
    monkeypatch.setattr(told, "train", lambda config, **rest: seen.append(config) or train(config, **rest))
    keys = {again.plain_key() for _, again in runs.values()}
    assert len(keys) == 1 and keys <= set(told.CONTEXT_FREE)
    again = trainer("cn-patches", **SHORT)
    ours = again.without_contexts()
    _, plain = runs["vit"]
    torch.testing.assert_close(ours, plain.answers(plain.model))
    assert not seen
    monkeypatch.setattr(told, "CONTEXT_FREE", {})
    torch.testing.assert_close(again.without_contexts(), ours)
    assert [config.norm for config in seen] == ["none"]


def test_what_is_frozen_stays_and_all_start_alike():
    weights = {}
    for method in ("cn-channels", "cn-frozen"):
        it = trainer(method, options={"predict": False})
        layer = it.model.norm0
        before = [v.detach().clone() for v in layer.moments()]
        it.run_epoch()
        weights[method] = before, [v.detach() for v in layer.moments()], it.model.embed.weight.detach()
    for (before, after, _), frozen in zip(weights.values(), (False, True), strict=True):
        assert all(torch.equal(*pair) == frozen for pair in zip(before, after, strict=True))
        assert not torch.equal(before[0][0], before[0][1])  # contexts differ before training: the authors' start
    for pair in zip(*(w[0] for w in weights.values()), strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=0)
    assert not torch.equal(weights["cn-channels"][2], weights["cn-frozen"][2])


def test_networks_that_are_told_nothing_have_no_such_readings():
    for method in ("cn-random", "cn-one"):
        it = trainer(method)
        assert set(it.tests) == {"test"} and set(it.late_tests()) == {"test_plus"}
        assert "obedience" not in it.evaluate()


def test_images_are_enlarged_before_they_are_turned():
    options = {"pixels": 12, "patch": 3, "dim": 8, "depth": 1}
    it = trainer("vit", options=options, rotate=10.0)
    assert next(it.batches()).x.shape[2:] == (12, 12)
    assert next(it.tests["test"].split.ordered(5)).x.shape[2:] == (8, 8)
    assert set(it.run_epoch()) > {"test_accuracy"}


def test_columns_of_a_split_can_be_others():
    split = trainer("vit").tests["test"].split
    other = split.having(ids=torch.ones(len(split), dtype=torch.long))
    assert next(other.ordered(7)).ids.tolist() == [1] * 7 and 0 in split.alongside["ids"]
    with pytest.raises(ValueError, match="having: ids has 3 rows for 100 images"):
        split.having(ids=torch.zeros(3))


def test_batches_are_joined():
    first, second = (
        Batch(torch.full((n, 1, 2, 2), float(n)), torch.full((n,), n), ids=torch.arange(n), weight=w)
        for n, w in ((2, 1.0), (3, 1.5))  # this process's 2 and 3 of 4 each, where there are two
    )
    both = join([first, second])
    assert both.x.shape == (5, 1, 2, 2) and both.labels.tolist() == [2, 2, 3, 3, 3] and both.domains is None
    assert both.weight == pytest.approx(2 * 5 / 8)


@pytest.mark.parametrize("method", ["vit", "cn-frozen", "token"])
def test_it_goes_on_bit_for_bit(method):
    """Which Trainer does for every task: here with contexts, what is frozen, and dropout."""
    first = trainer(method)
    first.run_epoch()
    state = copy.deepcopy(first.state())
    again = Told(first.config, first.data, CPU, state)
    ours = first.run_epoch()
    again.restore(state)  # the random numbers too, which are the process's
    theirs = again.run_epoch()
    assert {k: v for k, v in ours.items() if "second" not in k} == {
        k: v for k, v in theirs.items() if "second" not in k
    }
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
