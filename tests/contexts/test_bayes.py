"""Contexts made from labels: how often they are wrong, and what Bayes' rule gives without training."""

import math

import numpy as np
import pytest
import torch

from cnlib.contexts import (
    LABEL_GROUPS,
    CorruptedContexts,
    RandomContexts,
    ShuffledContexts,
    SuperclassContexts,
    bayes,
)
from cnlib.contexts.quality import contingency, mutual_information
from cnlib.data import load
from cnlib.training import Config
from cnlib.training.build import build_contexts

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, size=(4000, 2, 2, 3), dtype=np.uint8)
LABELS = np.arange(4000) % 100
TRUE = SuperclassContexts()


def ids_at(rate, seed=0, chosen=slice(None)):
    return CorruptedContexts(TRUE, rate, seed).assign(IMAGES[chosen], LABELS[chosen])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.75, 1.0])
def test_a_share_of_the_contexts_is_wrong_and_all_contexts_are_equally_likely_there(rate):
    true, ids = TRUE.assign(IMAGES, LABELS), ids_at(rate)
    assert float((ids != true).double().mean()) == pytest.approx(rate * 19 / 20, abs=0.03)
    if rate == 1:
        np.testing.assert_allclose(ids.bincount(minlength=20) / 4000, 0.05, atol=0.015)
    assert ids.dtype == torch.int64 and int(ids.max()) < 20 and (rate > 0 or torch.equal(ids, true))


def test_what_is_wrong_stays_with_the_image_and_the_seed_and_at_higher_rates():
    order = rng.permutation(4000)
    ids = ids_at(0.5)
    assert torch.equal(ids_at(0.5, chosen=order), ids[torch.from_numpy(order)])
    assert torch.equal(ids_at(0.5, chosen=slice(7, 8)), ids[7:8])
    assert not torch.equal(ids_at(0.5, seed=1), ids)
    wrong = ids != TRUE.assign(IMAGES, LABELS)
    assert torch.equal(ids_at(0.75)[wrong], ids[wrong])
    # fixed for ever, as those of RandomContexts are, and another draw than theirs
    assert ids_at(1.0)[:10].tolist() == FIXED
    same = (ids_at(1.0) == RandomContexts(20).assign(IMAGES)).double().mean()
    assert float(same) == pytest.approx(0.05, abs=0.02)


FIXED = [19, 2, 9, 15, 7, 14, 8, 1, 7, 12]


def test_the_probability_of_each_context_given_the_label():
    source = CorruptedContexts(TRUE, 0.4)
    table = source.given_label()
    assert table.shape == (100, 20) and torch.allclose(table.sum(1), torch.ones(100).double())
    counts = np.zeros((100, 20))
    for seed in range(40):
        np.add.at(counts, (LABELS, ids_at(0.4, seed).numpy()), 1)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), table, atol=0.06)
    assert table[0, 4] == pytest.approx(0.6 + 0.4 / 20) and table[0, 5] == pytest.approx(0.02)
    assert RandomContexts(3).given_label() is None and ShuffledContexts(TRUE).given_label() is None
    assert CorruptedContexts(RandomContexts(3), 0.5).given_label() is None


def test_a_rate_is_a_probability():
    for rate in (-0.1, 1.1, float("nan"), "half", None, True):
        with pytest.raises(ValueError, match="rate must be a number from 0 to 1"):
            CorruptedContexts(TRUE, rate)
    with pytest.raises(TypeError, match="base must be contexts"):
        CorruptedContexts(0.5, 0.5)


def test_a_configuration_can_ask_for_them():
    data = load("digits").subset(300, 100)
    right, wrong = (
        build_contexts(Config(norm="cn", contexts="parity", num_contexts=2, corruption=rate), data) for rate in (0, 0.5)
    )
    assert torch.equal(right["test_ids"], torch.from_numpy(data.test_labels % 2))
    assert 0.1 < float((wrong["train_ids"] != right["train_ids"]).double().mean()) < 0.4
    torch.testing.assert_close(wrong["given_label"], 0.5 * right["given_label"] + 0.25)
    assert torch.equal(right["given_label"].argmax(1), torch.arange(10) % 2)
    assert "given_label" not in build_contexts(Config(contexts="random"), data)
    with pytest.raises(ValueError, match="corruption=1.5: expected 1 or less"):
        Config(corruption=1.5)


def joint(n=6, k=8, t=3):
    """p(y | x) and p(c | y), any."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, k, generator=generator, dtype=torch.double)
    return logits, torch.rand(k, t, generator=generator, dtype=torch.double).softmax(1)


def test_the_combination_is_bayes_rule():
    logits, table = joint()
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    found = bayes.combine(logits, ids, table).softmax(1)
    for n, c in enumerate(ids.tolist()):
        product = logits.softmax(1)[n] * table[:, c]
        torch.testing.assert_close(found[n], product / product.sum())


def test_a_superclass_masks_and_gives_the_conditional_loss():
    """log p(y | x, s) = log p(y | x) - log p(s | x), and equal logits lose ln 5 in place of ln 100."""
    table, logits = TRUE.given_label(), torch.randn(50, 100, dtype=torch.double)
    labels = torch.arange(50)
    ids = TRUE.assign(None, labels.numpy())
    told = bayes.combine(logits, ids, table).log_softmax(1)
    plain, posterior = logits.log_softmax(1), bayes.context_posterior(logits, table)
    rows = torch.arange(50)
    torch.testing.assert_close(told[rows, labels], plain[rows, labels] - posterior[rows, ids].log())
    assert torch.equal(TRUE.given_label().argmax(1)[told.argmax(1)], ids)
    equal = bayes.combine(torch.zeros(1, 100), ids[:1], table)
    assert float(-equal.log_softmax(1)[0, labels[0]]) == pytest.approx(math.log(5))
    assert equal.isfinite().all()  # the floor


def test_contexts_without_information_change_nothing():
    logits, _ = joint()
    nothing = torch.full((8, 3), 1 / 3)
    torch.testing.assert_close(
        bayes.combine(logits, torch.tensor([0, 1, 2] * 2), nothing).softmax(1), logits.softmax(1)
    )


def test_the_predicted_context_and_the_marginal_sum_up():
    logits, table = joint()
    posterior = bayes.context_posterior(logits, table)
    torch.testing.assert_close(posterior, logits.softmax(1) @ table)
    torch.testing.assert_close(posterior.sum(1), torch.ones(6, dtype=torch.double))
    # a network that is Bayes' rule itself: summed over its own contexts it is the network without any
    each = torch.stack([bayes.combine(logits, torch.full((6,), c), table) for c in range(3)])
    torch.testing.assert_close(bayes.marginal(each, posterior).exp(), logits.softmax(1))
    certain = torch.tensor([[0.0, 1.0, 0.0]] * 6, dtype=torch.double)
    torch.testing.assert_close(bayes.marginal(each, certain), each[1].log_softmax(1))


@pytest.mark.parametrize("count", [2, 5, 10])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.75, 1.0])
def test_the_bits_of_a_context_that_is_wrong_at_a_rate(count, rate):
    """The entropy of the contexts less that of one class's contexts, and what is counted on many images."""
    groups = LABEL_GROUPS[count]
    source = CorruptedContexts(SuperclassContexts(groups), rate)

    def bits(p):
        return -sum(v * math.log2(v) for v in p if v > 0)

    every = (1 - rate) * np.bincount(groups) / 10 + rate / count
    expected = bits(every) - bits([1 - rate + rate / count] + [rate / count] * (count - 1))
    assert mutual_information(source.given_label().numpy()) == pytest.approx(expected, abs=1e-12)
    classes = np.arange(4000) % 10
    found = mutual_information(contingency(source.assign(IMAGES, classes).numpy(), classes, count, 10))
    assert found == pytest.approx(expected, abs=0.06)


def test_the_loss_falls_by_the_new_bits_and_by_more_where_the_network_is_wrong():
    logits, table = joint()
    wrong, _ = joint(n=7)
    p, q = logits.softmax(1), wrong[1:].softmax(1)
    n, k, t = len(p), *table.shape
    world = p[:, None] * table.t() / n  # p(x, c, y)
    new = sum(float(part.sum()) * mutual_information(part.numpy()) for part in world)
    x, c, y = (torch.from_numpy(i) for i in np.indices((n, t, k)).reshape(3, -1))

    def loss(answers):
        return float(-(world.reshape(-1) * answers.log_softmax(1)[torch.arange(len(y)), y]).sum()) / math.log(2)

    def fall(network):
        return loss(network.log()[x]) - loss(bayes.combine(network.log()[x], c, table))

    assert fall(p) == pytest.approx(new)
    true, predicted = (bayes.context_posterior(network.log(), table) for network in (p, q))
    own_errors = float((true * (true / predicted).log2()).sum()) / n
    assert own_errors > 0.001
    assert fall(q) == pytest.approx(new + own_errors)
