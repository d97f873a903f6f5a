"""Pairs are what they should be, the loss and the AUC too, and the record says where the layer went."""

import copy

import numpy as np
import pytest
import torch

from cnlib.data import load
from cnlib.experiments import daynight
from cnlib.sweeps import estimate
from cnlib.training import Pairs, read, train
from cnlib.training.metrics import auc
from cnlib.training.pairs import contrastive, distance
from cnlib.transfer import TRANSFERS, Moments, affine, color_distance, gain_and_offset, swap

CPU = torch.device("cpu")


def trainer(method="cn", **changes):
    config = daynight.config(method, profile="smoke", **changes)
    return Pairs(config, load(config.dataset), CPU)


def test_the_loss_by_hand():
    first = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[0.3, 0.4], [0.3, 0.4], [3.0, 4.0], [1.0, 0.0]])
    same = torch.tensor([True, False, False, True])
    assert contrastive(first, second, same).tolist() == pytest.approx([0.25, 0.25, 0, 0])
    assert contrastive(first, second, same, margin=6).tolist() == pytest.approx([0.25, 5.5**2, 1, 0])
    point = torch.zeros(1, 2, requires_grad=True)  # two images at one point: no NaN
    contrastive(point, torch.zeros(1, 2), torch.tensor([False])).sum().backward()
    assert point.grad.isfinite().all()


def test_the_auc_is_the_probability_of_the_right_order():
    scores, positive = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    # pairs (3, 2), (3, 1): right; (1, 2): wrong; (1, 1): a tie
    assert auc(scores, positive) == pytest.approx(2.5 / 4)
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    numbers, kinds = draw.integers(0, 20, 300), draw.random(300) < 0.3
    assert auc(torch.tensor(numbers), torch.tensor(kinds)) == pytest.approx(sklearn.roc_auc_score(kinds, numbers))
    with pytest.raises(ValueError, match="4 positives and 0 negatives"):
        auc(scores, torch.ones(4, dtype=torch.bool))


def test_a_pair_is_a_day_and_a_night_and_half_are_of_one_place():
    it = trainer()
    batches = list(it.batches())
    assert len(batches) == it.epoch_steps() == 4
    drawn = set()
    for batch in batches:
        days, nights = batch.labels.chunk(2)
        assert batch.domains.tolist() == [0] * 8 + [1] * 8 and torch.equal(batch.ids, batch.domains)
        assert (days == nights).tolist() == [True] * 4 + [False] * 4
        drawn |= {*batch.labels.tolist()}
    assert len(drawn) > 8 and not drawn & {*it.tests["test"].split.labels.tolist()}


def test_drawn_images_are_of_that_place_and_time():
    it = trainer()
    for time in (0, 1):
        rows = it.drawn(time, torch.arange(len(it.places[time])).repeat(3))
        assert (it.train.alongside["domains"][rows] == time).all()
        assert torch.equal(it.train.labels[rows], it.train.labels.unique().repeat(3))


def test_the_network_is_read_on_all_pairs_of_day_and_night():
    it = trainer()
    found = it.evaluate()
    (batch,) = it.tests["test"].split.ordered(1000)
    with torch.no_grad():
        points = it.logits(it.model.eval(), batch)
    near, same = [], []
    for i in (batch.domains == 0).nonzero():
        for j in (batch.domains == 1).nonzero():
            near.append(-float((points[i] - points[j]).norm()))
            same.append(bool(batch.labels[i] == batch.labels[j]))
    assert len(near) == 32 * 32 and found["auc"] == pytest.approx(auc(torch.tensor(near), torch.tensor(same)), abs=1e-3)
    assert not it.seen and it.evaluate()["auc"] == found["auc"]


def test_the_gap_is_one_at_the_start_and_nothing_at_the_datas_moments():
    assert trainer("cn").progress()["swap_gap"] == pytest.approx(1)
    fixed = trainer("fixed")
    assert fixed.progress()["swap_gap"] < 1e-3 and "swap_gap" not in trainer("none").progress()
    before = [value.clone() for value in fixed.learned.moments()]
    fixed.run_epoch()
    assert all(torch.equal(*pair) for pair in zip(before, fixed.learned.moments(), strict=True))
    # the distance of two maps, as over the pixels themselves
    it = trainer("cn")
    torch.nn.init.normal_(it.learned.mean, std=0.3), torch.nn.init.normal_(it.learned.log_var, std=0.3)
    (whole,) = it.train.ordered(10_000)
    shares = []
    for a, b in ((0, 1), (1, 0)):
        x = whole.x[whole.domains == a].double()
        wanted = affine(x, *gain_and_offset(it.moments.mean, it.moments.var, a, b))
        far = [(wanted - y).square().mean().sqrt() for y in (swap(x, it.learned, a, b), x)]
        shares.append(float(far[0] / far[1]))
    assert it.progress()["swap_gap"] == pytest.approx(np.mean(shares), rel=1e-4)


def test_the_distance_of_maps_that_differ_little_far_from_zero():
    """As over the numbers themselves: what cancels in a sum of squares is 1e12 times what is left."""
    x = 1e6 + torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    var, mean = torch.var_mean(x, correction=0)
    moments = Moments(mean.view(1, 1), var.view(1, 1), var.view(1, 1).sqrt())
    one, other = (
        (torch.tensor([gain]).double(), torch.tensor([offset]).double()) for gain, offset in ((2, -1e6), (1, 0))
    )
    assert distance(moments, 0, one, other) == pytest.approx(float((x - 1e6).square().mean().sqrt()), rel=1e-6)


def test_the_layers_own_rate_and_no_decay():
    for method, factor in (("cn", 1), ("cn-fast", 10)):
        it = trainer(method, weight_decay=0.5, warmup=0, schedule="constant")
        own = it.optimizer.param_groups[1]
        assert own["lr"] == pytest.approx(factor * it.config.lr) and own["weight_decay"] == 0
        assert {id(p) for p in own["params"]} == {id(p) for p in it.learned.parameters()}
        count = sum(len(group["params"]) for group in it.optimizer.param_groups)
        assert count == len(list(it.model.parameters()))
    it = trainer("cn-fast")
    it.run_epoch()
    rates = [group["lr"] for group in it.optimizer.param_groups]
    assert rates[1] == pytest.approx(10 * rates[0]) and rates[0] < it.config.lr
    assert len(trainer("none").optimizer.param_groups) == 1


def test_a_record_has_the_way_and_the_colors(tmp_path):
    config = daynight.config("cn", profile="smoke")
    run = train(config, tmp_path / "run.jsonl")
    again = read(tmp_path / "run.jsonl")
    assert again.headline == "test_auc" and again.curve("mean_0").shape == (2, 3)
    assert again.final["test_swapped_auc"] == run.final["test_swapped_auc"] and "predictions" not in run.final
    assert np.allclose(again.curve("mean_1")[-1], run.final["learned_mean"][1])
    it = trainer("cn")
    it.model.load_state_dict(run.model.state_dict())
    (test,) = it.tests["test"].split.ordered(1000)
    mean, std = (torch.tensor(run.final[f"pixel_{name}"])[:, None, None] / 255 for name in ("mean", "std"))
    distances = {"learned": [], "shift": []}
    for k in test.labels.unique():
        day, night = (test.x[(test.labels == k) & (test.domains == t)] for t in (0, 1))
        shift = torch.tensor(run.final["data_mean"])[1] - torch.tensor(run.final["data_mean"])[0]
        swaps = {"learned": swap(day, it.learned, 0, 1), "shift": day + shift[:, None, None]}
        for name, images in swaps.items():
            distances[name].append(color_distance((images * std + mean).clamp(0, 1), night * std + mean))
    for name, values in distances.items():
        assert run.final[f"day_to_night_{name}_w1"] == pytest.approx(np.mean(values), abs=1e-4)
    for way in ("day_to_night", "night_to_day"):
        for name in (*TRANSFERS, "learned"):
            assert {f"{way}_{name}_{what}" for what in ("w1", "clipped", "red_blue")} < set(run.final)
    assert run.final["day_to_night_none_clipped"] == 0
    assert run.final["day_to_night_real_red_blue"] == pytest.approx(run.final["night_to_day_none_red_blue"])


def test_what_is_no_set_of_pairs_is_refused():
    with pytest.raises(ValueError, match="digits has domains none: expected day and night"):
        train(daynight.config("cn", profile="smoke", dataset="digits"))
    with pytest.raises(ValueError, match="without validation images"):
        train(daynight.config("cn", profile="smoke", validation=10))
    with pytest.raises(ValueError, match="steps=0: expected 1 or more"):
        train(daynight.config("cn", profile="smoke", options={"steps": 0}))


def test_a_run_goes_on_from_its_state_bit_for_bit():
    whole = trainer("cn-fast")
    whole.run_epoch()
    config = daynight.config("cn-fast", profile="smoke")
    other = Pairs(config, load(config.dataset), CPU, copy.deepcopy(whole.state()))
    for it in (whole, other):
        it.found = {key: value for key, value in it.run_epoch().items() if "second" not in key}
    assert whole.found == other.found and whole.found["test_auc"] > 0.4


def test_a_dry_run_times_the_whole_set():
    assert 0 < estimate(daynight.config("cn", profile="smoke")) < 600
