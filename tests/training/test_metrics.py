"""Metrics against scikit-learn, which counts one sample at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnlib.training.metrics import Meter, above_half, auc, json_number, macro_scores


def metered(logits, labels, k, batch=7):
    meter = Meter(k)
    for x, y in zip(logits.split(batch), labels.split(batch), strict=True):
        meter.update({"loss": torch.nn.functional.cross_entropy(x, y), "logits": x, "labels": y})
    return meter.compute()


@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 1000))
def test_every_metric_is_scikit_learns(k, n, seed):
    sk = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    labels = torch.randint(k, (n,), generator=generator)
    found = metered(logits, labels, k)
    predicted = logits.argmax(1)
    macro = {"average": "macro", "zero_division": 0}
    scores = sk.precision_recall_fscore_support(labels, predicted, **macro)
    expected = {
        "loss": sk.log_loss(labels, logits.double().softmax(1), labels=range(k)),
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": scores[0],
        "recall": scores[1],
        "f1": scores[2],
    }
    if k > 5:
        expected["top5"] = sk.top_k_accuracy_score(labels, logits, k=5, labels=range(k))
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert np.isclose(found[key], value, rtol=1e-5, atol=1e-6), key


def test_an_absent_class_that_is_predicted_counts_as_zero():
    confusion = torch.tensor([[2, 0, 1, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    precision, recall, f1 = macro_scores(confusion)
    assert precision == pytest.approx((1 + 1 + 0) / 3) and recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert f1 == pytest.approx((0.8 + 1 + 0) / 3)


def test_nan_logits_are_no_success():
    logits, labels = torch.full((4, 10), torch.nan), torch.arange(4)
    assert metered(logits, labels, 10)["top5"] == 0
    assert json_number(metered(logits, labels, 10)["loss"]) is None


def test_nan_scores_have_no_area_under_a_curve():
    scores, positive = torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.tensor([True, False, True, False])
    assert auc(scores, positive) == 0.5
    for place in range(4):
        assert math.isnan(auc(scores.index_fill(0, torch.tensor(place), math.nan), positive))


def test_other_numbers_are_averaged_over_the_samples():
    meter = Meter(2)
    for labels, share in ((torch.zeros(3, dtype=torch.long), 1.0), (torch.zeros(1, dtype=torch.long), 0.0)):
        logits, share = torch.tensor([[1.0, 0.0]] * len(labels)), torch.tensor(share)
        meter.update({"loss": share, "logits": logits, "labels": labels, "share": share})
    found = meter.compute()
    assert found["accuracy"] == 1 and found["share"] == found["loss"] == 0.75 and meter.count == 4


@given(st.integers(2, 8), st.integers(1, 30), st.integers(0, 1000))
def test_the_authors_precision_and_recall_count_logits_above_a_half(k, n, seed):
    sk = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)
    found = above_half(logits, labels)
    chosen, true = (logits > 0.5).flatten(), torch.nn.functional.one_hot(labels, k).flatten()
    precision, recall, _, _ = sk.precision_recall_fscore_support(true, chosen, average="binary", zero_division=0)
    assert float(found["their_recall"]) == pytest.approx(recall)
    assert float(found["logits_above"]) == pytest.approx(int(chosen.sum()) / n)
    above = float(found["logits_above"]) or 1.0
    assert float(found["their_recall"]) / above == pytest.approx(precision)


def test_a_task_without_classes_has_its_numbers_only():
    meter = Meter(0)
    meter.update({"loss": torch.tensor(2.0), "distance": torch.tensor(1.0)})
    assert meter.compute() == {"loss": 2.0, "distance": 1.0}
