"""Two networks with a view each: what one sees the other does not, and a guess is told as it was made."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import cnlib
from cnlib.contexts.bayes import combine
from cnlib.data import load
from cnlib.data.digits import digits_at_16
from cnlib.experiments import second_view
from cnlib.experiments.second_view import GUESSES, PRIMARY, halves
from cnlib.training import Worth
from cnlib.training.loop import fetch
from cnlib.training.records import read_lines, unpack


def test_the_views_share_no_pixel_and_the_networks_no_training_image():
    data = digits_at_16()
    left, right, others = halves(data, "left"), halves(data, "right"), halves(data, "right", ours=False)
    np.testing.assert_array_equal(np.concatenate([left.test_images, right.test_images], 2), data.test_images)
    both = np.concatenate([left.train_images, right.train_images], 2)
    np.testing.assert_array_equal(both, data.train_images[::2])
    np.testing.assert_array_equal(others.train_images, data.train_images[1::2, :, 8:])
    np.testing.assert_array_equal(others.test_images, right.test_images)
    assert len(left.train_labels) + len(others.train_labels) == len(data.train_labels)
    assert (left.name, right.name) == ("digits-16-left", "digits-16-right")


@pytest.mark.parametrize(("name", "unseen"), [("digits-left", slice(8)), ("digits-left-own", slice(8, None))])
def test_a_guess_depends_on_one_half_alone(monkeypatch, name, unseen):
    data, told = digits_at_16(), load(name)
    dark = {key: getattr(data, key).copy() for key in ("train_images", "test_images")}
    for images in dark.values():
        images[:, :, unseen] = 0
    monkeypatch.setattr(second_view, "load", lambda source: replace(data, **dark))
    other = second_view.left_halves.__wrapped__(name)
    for key in ("train_domains", "test_domains"):
        np.testing.assert_array_equal(getattr(other, key), getattr(told, key))
    right = (told.test_domains == told.test_labels).mean()
    assert 0.5 < right < 0.95, "worth being told, and wrong often enough"
    np.testing.assert_array_equal(told.test_images, halves(data, "left").test_images)


@pytest.mark.parametrize(("side", "name"), [("right", "cifar10-left"), ("left", "cifar10-left-own")])
def test_the_kept_guesses_are_of_the_images_that_they_are_told_with(side, name):
    (kept,) = read_lines(GUESSES / f"cifar10-{side}.jsonl")
    train, test = unpack(kept["train"]), unpack(kept["test"])
    assert (len(train), len(test)) == (25_000, 10_000) and {*train} == {*test} == {*range(10)}
    assert kept["config"]["dataset"] == f"cifar10-{side}" and kept["config"]["norm"] == "bn"
    try:
        data = load(name)
    except (ConnectionError, ImportError, OSError):
        pytest.skip("needs CIFAR-10 in $CNLIB_DATA")
    assert data.train_images.shape == (25_000, 32, 16, 3) and len(data.domains) == 10 and data.name == name
    for part in ("train", "test"):
        right = (getattr(data, f"{part}_domains") == getattr(data, f"{part}_labels")).mean()
        assert right == pytest.approx(kept["right"][part])


def test_both_guesses_were_made_in_the_same_way():
    configs = [read_lines(GUESSES / f"cifar10-{side}.jsonl")[0]["config"] for side in ("left", "right")]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"dataset"}


def test_guesses_of_other_images_are_refused(monkeypatch):
    monkeypatch.setattr(second_view, "load", lambda name: replace(digits_at_16(), name="cifar10"))
    with pytest.raises(ValueError, match="cifar10 here is .*, the kept guesses are of .*studies.guesses"):
        second_view.left_halves.__wrapped__("cifar10-left")


def test_every_declared_contrast_has_its_runs():
    runs = [*second_view.EXPERIMENT.configs("second-view", "reduced").values()]
    main = [c for c in runs if c.dataset == "cifar10-left"]
    assert len(main) == 18 and len(runs) == 27
    for claim in PRIMARY.values():
        assert claim.where == {"dataset": "cifar10-left"}
        for pair in claim.pairs.values():
            assert all(sorted(c.seed for c in main if c.method == method) == [0, 1, 2] for method in pair)


def test_methods_differ_in_the_layer_its_encoder_and_what_it_is_told_only():
    plain = second_view.config("bn", profile="reduced").to_dict()
    for name in second_view.METHODS:
        other = second_view.config(name, profile="reduced").to_dict()
        differ = {key for key in plain if plain[key] != other[key]}
        assert differ <= {"method", "norm", "placement", "contexts", "num_contexts", "encoder"}


def test_the_encoder_alone_is_changed():
    usual, linear = (second_view.config(name).to_dict() for name in ("cn-channels", "cn-channels-linear"))
    assert {key for key in usual if usual[key] != linear[key]} == {"method", "encoder"}
    assert linear["encoder"] == second_view.config("cn").encoder


def worth(method):
    config = second_view.config(method, profile="smoke")
    return Worth(config, fetch(config.dataset).subset(config.train_size, config.test_size), torch.device("cpu"))


def test_bayes_rule_with_the_domain():
    one = worth("bn")
    one.model_read = one.model.eval()
    split, train = one.tests["test"].split, one.train.alongside
    table = torch.ones(10, 10, dtype=torch.float64)  # (K, T)
    for label, domain in zip(train["labels"], train["domains"], strict=True):
        table[label, domain] += 1
    given = table / table.sum(1, keepdim=True)
    expected = one.logits_on(split) + given.log()[:, split.alongside["domains"]].t()
    torch.testing.assert_close(one.told_afterwards()["test_bayes_domain"], expected, check_dtype=False)


def test_context_norm_on_the_logits_can_be_bayes_rule():
    """(15.9): a mean of minus log p(c | y), a deviation of 1."""
    given = torch.softmax(torch.randn(10, 4, dtype=torch.float64), 1)  # p(c | y), (K, T)
    layer = cnlib.ContextNorm(10, 4).double()
    with torch.no_grad():
        layer.mean.copy_(-given.log().t())
        layer.log_var.fill_(np.log(1 - layer.eps))
    logits, ids = torch.randn(32, 10, dtype=torch.float64), torch.arange(32) % 4
    torch.testing.assert_close(layer(logits, ids), combine(logits, ids, given))


def test_domains_go_with_their_images():
    data = load("photo-places")
    ours, others = (halves(data, "left", ours=ours) for ours in (True, False))
    np.testing.assert_array_equal(ours.train_domains, data.train_domains[::2])
    np.testing.assert_array_equal(others.train_domains, data.train_domains[1::2])
    np.testing.assert_array_equal(ours.test_domains, data.test_domains)


def test_another_side_is_refused():
    with pytest.raises(ValueError, match="side is 'top', expected left or right"):
        halves(digits_at_16(), "top")


def test_guesses_that_are_not_there_or_damaged_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(second_view, "GUESSES", tmp_path)
    data = digits_at_16()
    with pytest.raises(ValueError, match="no guesses at digits-16 .* left halves.*--dataset digits-16 --side left"):
        second_view.kept_guesses(data, "left")
    path, line = tmp_path / "digits-16-left.jsonl", {"type": "header", "data": data.checksum}
    for text, message in [
        ("", "is empty or cut short"),
        (json.dumps(line)[:20], "is empty or cut short"),
        (json.dumps(line) + "\n", "lacks train, test"),
        (json.dumps({**line, "train": "zzzz", "test": "zzzz"}) + "\n", "train is not what `pack` writes"),
        (json.dumps({**line, "train": 3, "test": 3}) + "\n", "train is not what `pack` writes"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{path.name}.* {message}"):
            second_view.kept_guesses(data, "left")
