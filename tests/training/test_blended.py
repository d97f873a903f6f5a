"""Two sets as one: equal parts, test sets apart, contexts by set, and each probe changes what it says it does."""

import numpy as np
import pytest
import torch

from cnlib.data import load
from cnlib.experiments import blended
from cnlib.training import Blended, train
from cnlib.training.records import Run

CPU = torch.device("cpu")


def trainer(method, **changes):
    config = blended.config(method, profile="smoke", **changes)
    return Blended(config, load(config.dataset).subset(config.train_size, config.test_size), CPU)


def test_an_epoch_draws_equally_from_sets_of_unequal_size():
    it = trainer("vit", options={"images": 96})
    kept = torch.cat((torch.arange(100), torch.arange(160, 320)))  # 100 of the one, 160 of the other
    it.train.images = it.train.images[kept]
    it.train.alongside = {name: column[kept] for name, column in it.train.alongside.items()}
    it.parts = [it.train.where(domain=d) for d in (0, 1)]
    batches = list(it.batches())
    assert [len(part) for part in it.parts] == [100, 160] and len(batches) == it.epoch_steps() == 2 * 96 // 64
    assert all(batch.domains.bincount().tolist() == [32, 32] for batch in batches)
    assert all(torch.equal(batch.ids, batch.domains) for batch in batches)
    assert trainer("vit").epoch_steps() == 2 * 160 // 64


def test_a_single_set_is_refused():
    with pytest.raises(ValueError, match="digits has no domains: expected several sets in one"):
        trainer("vit", dataset="digits", contexts="none")


def test_the_test_sets_are_apart_and_the_printed_number_is_their_mean():
    it = trainer("cn-channels")
    found = it.run_epoch()
    apart = [found["test_digits_accuracy"], found["test_dark-digits_accuracy"]]
    assert found["test_accuracy"] == pytest.approx(np.mean(apart)) and it.num_classes == 20
    labels = [it.tests[f"test_{name}"].split.labels for name in ("digits", "dark-digits")]
    assert labels[0].max() == 9 and labels[1].min() == 10


def test_both_are_standardized_alike_and_fixed_by_their_own_moments():
    it = trainer("fixed", options={"from_data": 320})
    (batch,) = it.train.ordered(320)
    whole = batch.x.mean(), batch.x.std(correction=0)
    assert whole[0].abs() < 1e-3 and abs(float(whole[1]) - 1) < 1e-3
    sets = [batch.x[batch.domains == d] for d in (0, 1)]
    assert sets[0].mean() < -0.4 and sets[1].mean() > 0.4
    with torch.no_grad():
        y = it.model.norm0(batch.x, batch.ids)
    for d in (0, 1):
        own = y[batch.domains == d]
        assert own.mean().abs() < 1e-3 and abs(float(own.std(correction=0)) - 1) < 1e-3
    before = [v.detach().clone() for v in it.model.norm0.moments()]
    it.run_epoch()
    assert all(torch.equal(*pair) for pair in zip(before, it.model.norm0.moments(), strict=True))


def test_contexts_are_swapped_at_the_end():
    run = train(blended.config("cn-channels", profile="smoke"))
    again = trainer("cn-channels")
    again.model.load_state_dict(run.model.state_dict())
    (batch,) = again.tests["test"].split.ordered(1000)
    batch.ids = 1 - batch.ids
    with torch.no_grad():
        expected = again.logits(again.model.eval(), batch).argmax(1)
    assert torch.equal(torch.from_numpy(run.predictions("test_swapped")), expected)
    assert {"test_digits_swapped_accuracy", "test_plus_accuracy"} < set(run.final)
    assert not any("swapped" in name for name in train(blended.config("vit", profile="smoke")).final)


def seen(it, split):
    """What the network is given, (N, 1, 8, 8), and its labels."""
    inputs = []
    handle = it.model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    (batch,) = split.ordered(1000)
    it.logits(it.model, batch)
    handle.remove()
    return inputs[0], batch


def test_raw_leaves_the_second_set_as_it_comes():
    usual, raw = trainer("vit"), trainer("vit-raw")
    for split in ("train", "test"):
        first, second = (seen(it, it.train if split == "train" else it.tests["test"].split) for it in (usual, raw))
        other = second[1].domains == 1
        torch.testing.assert_close(first[0][~other], second[0][~other])
        pixels = (raw.train if split == "train" else raw.tests["test"].split).images[other].permute(0, 3, 1, 2)
        torch.testing.assert_close(second[0][other], pixels.float(), atol=1e-3, rtol=0)


def test_labels_of_the_second_set_fall_on_those_of_the_first():
    it = trainer("vit-labels")
    for split in (it.train, it.tests["test"].split):
        for d in (0, 1):
            assert sorted(split.where(domain=d).labels.unique().tolist()) == list(range(10))
    assert it.num_classes == 20


def test_only_the_first_set_is_mirrored():
    for method, both in (("vit", False), ("vit-flips", True)):
        it = trainer(method, flip=True)
        for split in it.parts:
            split.images = torch.arange(8, dtype=torch.uint8)[None, None, :, None].expand(len(split), 8, 8, 1)
        x, domains = (torch.cat([getattr(b, name) for b in it.batches()]) for name in ("x", "domains"))
        mirrored = x[:, 0, 0, 0] > x[:, 0, 0, 7]
        assert mirrored[domains == 0].any() and not mirrored[domains == 0].all()
        assert bool(mirrored[domains == 1].any()) == both


def test_the_last_images_are_all_of_the_second_set():
    it = trainer("vit-last", validation=60, patience=3)
    assert it.tests["val"].split.alongside["domains"].unique().tolist() == [1]
    assert [len(part) for part in it.parts] == [160, 100] and it.config.epochs == 15
    assert trainer("vit-cold").config.warmup == 0 and trainer("vit").config.warmup == 4


@pytest.mark.parametrize(
    ("accuracy", "status", "expected"),
    [(0.04, "finished", True), (0.06, "finished", False), (0.5, "diverged", True), (float("nan"), "finished", True)],
)
def test_collapsed(accuracy, status, expected):
    curve = np.array([0.5, accuracy])
    config = blended.config("vit", profile="reduced")
    run = Run("run", config, {}, {"test_cifar100_accuracy": curve, "test_mnist_accuracy": 1 - curve}, status)
    assert blended.collapsed(run) == expected
