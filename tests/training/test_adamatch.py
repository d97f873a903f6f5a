"""AdaMatch: each ingredient against small numbers, a step against its description, and nothing left behind."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import timeless
from torch.nn import functional as F

from cnlib.data import load
from cnlib.experiments import EXPERIMENTS
from cnlib.norm import BatchNorm, frozen
from cnlib.norm.domain import DomainBatchNorm
from cnlib.training import TASKS, checkpoint, read, train
from cnlib.training.adamatch_formulas import (
    Alignment,
    aligned,
    aligned_over_all,
    interpolated,
    target_weight,
    unit_length,
)
from cnlib.training.metrics import weighted_scores
from cnlib.training.schedule import factor

E = EXPERIMENTS["adamatch"]
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(method="bn", **changes):
    config = E.config(method, profile="smoke", **changes)
    return TASKS[config.task](config, load(config.dataset).subset(config.train_size, config.test_size), CPU)


def test_alignment_by_hand():
    p = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    # the source has 3 of 4 in the first class, the target was predicted half and half: weights 1.5 and 0.5
    found = aligned(p, torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found, torch.tensor([[0.9 / 1.1, 0.2 / 1.1], [0.3 / 0.7, 0.4 / 0.7]]), atol=1e-5, rtol=0)
    # a class that the target never showed is not divided by 0
    assert aligned(p, torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])).isfinite().all()


def test_the_ratio_over_all_axes_is_one():
    p, source = (torch.randn(n, 10).mul(3).softmax(1) for n in (7, 5))
    torch.testing.assert_close(aligned_over_all(p, source), p)


def test_running_averages():
    it = Alignment(2)
    assert it.source.tolist() == it.target.mean(0).tolist() == [0.5, 0.5]
    it.update(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0)
    torch.testing.assert_close(it.source, torch.tensor([0.5005, 0.4995]))
    torch.testing.assert_close(it.target.mean(0), torch.tensor([0.5 - 0.5 / 128, 0.5 + 0.5 / 128]))
    for step in range(1, 129):
        it.update(torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.8]), step)
    torch.testing.assert_close(it.target.mean(0), torch.tensor([0.2, 0.8]))  # the first one is forgotten


def test_a_probability_of_041_passes_the_threshold_under_l2():
    p = torch.full((1, 10), 0.59 / 9)
    p[0, 3] = 0.41
    # 0.41 / sqrt(0.41^2 + 9 (0.59 / 9)^2)
    assert float(unit_length(p).amax()) == pytest.approx(0.41 / math.sqrt(0.41**2 + 0.59**2 / 9)) and p.amax() < 0.9
    assert float(unit_length(p).amax()) > 0.9
    p = torch.full((1, 10), 0.60 / 9)
    p[0, 3] = 0.40
    assert float(unit_length(p).amax()) < 0.9
    assert float(unit_length(torch.full((1, 10), 0.1)).sum()) == pytest.approx(math.sqrt(10))


def test_interpolation_weight_and_rate():
    joint, alone = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    assert interpolated(joint, alone, torch.tensor([[0.0, 0.75]])).tolist() == [[1.0, 0.5]]
    assert [target_weight(t) for t in (0.0, 0.25, 0.5, 0.8)] == pytest.approx([0, 0.5, 1, 1])
    short = 382 / 937  # the program that counts 937 steps where there are 382
    assert target_weight(short) == pytest.approx(0.918, abs=5e-4)
    assert 0.03 * factor("cosine-quarter", 0, 382, 937) == pytest.approx(0.022, abs=5e-4)
    assert 0.03 * factor("cosine-start", 0, 10, 10) == pytest.approx(0.0075)
    assert factor("cosine-start", 0, 0, 10) == factor("cosine-quarter", 0, 0, 10) == 1


def test_weighted_scores():
    confusion = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    precision, recall, f1 = weighted_scores(confusion)
    assert recall == pytest.approx(0.7) and precision == pytest.approx(0.8 * 6 / 7 + 0.2 / 3)
    assert f1 == pytest.approx(0.8 * 12 / 15 + 0.2 * 2 / 5)


def batch_and_losses(it, step=0):
    source, target = next(iter(it.batches()))
    it.model.train()
    state = it.mixing_generator.get_state()
    found = it.losses(source, target, it.mixing_generator, step)
    it.mixing_generator.set_state(state)
    return source, target, found


def test_a_step_is_the_inventors_description():
    """Written out again, from their description, with the network as a function of batches."""
    it, other = trainer(), trainer()
    it.steps_done = other.steps_done = 2
    for one in (it, other):  # confident enough that some pass
        with torch.no_grad():
            one.model.linear.weight.mul_(8)
        one.options["threshold"] = 0.7
    source, target, found = batch_and_losses(it, step=2)
    model = other.model.train()
    n = len(source.labels)
    before = {k: v.clone() for k, v in model.named_buffers()}
    z2 = model(torch.cat(source.views))
    for name, buffer in model.named_buffers():
        buffer.data.copy_(before[name])
    z = model(torch.cat((*source.views, *target.views)))
    z1 = z[: 2 * n]
    z1 = z1 + (z2 - z1) * torch.rand(z1.shape, generator=other.mixing_generator)
    weak, strong, t_weak, t_strong = z1[:n], z1[n:], z[2 * n :].chunk(2)[0], z[2 * n :].chunk(2)[1]
    ps, pt = weak.softmax(1), t_weak.softmax(1)
    average = 0.999 * 0.1 + 0.001 * ps.mean(0)
    window = (127 * torch.full((10,), 0.1) + pt.mean(0)) / 128
    p = pt * (1e-6 + average) / (1e-6 + window)
    p = p / p.sum(1, keepdim=True)
    mask = (p.max(1).values >= 0.7 * ps.max(1).values.mean()).float()
    assert 0 < float(mask.mean()) < 1
    mu = 0.5 - math.cos(min(math.pi, 2 * math.pi * 2 / 6)) / 2
    expected = 0.5 * (F.cross_entropy(weak, source.labels) + F.cross_entropy(strong, source.labels))
    expected = expected + mu * (F.cross_entropy(t_strong, p.argmax(1), reduction="none") * mask).mean()
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["mask"], mask.mean())
    for (name, mine), theirs in zip(it.model.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    mine = torch.autograd.grad(found["loss"], [*it.model.parameters()])
    for a, b in zip(mine, torch.autograd.grad(expected, [*model.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_step_of_the_program_of_the_tables():
    it, other = trainer("bn-keras"), trainer("bn-keras")
    it.steps_done = other.steps_done = 2
    source, target, found = batch_and_losses(it)
    model, n = other.model.train(), len(source.labels)
    z = model(torch.cat((*source.views, *target.views)))
    z2 = model.eval()(torch.cat(source.views))
    z1 = z[: 2 * n] + (z2 - z[: 2 * n]) * torch.rand(z2.shape, generator=other.mixing_generator)
    weak, strong, (t_weak, t_strong) = z1[:n], z1[n:], z[2 * n :].chunk(2)
    q = F.normalize(t_weak.softmax(1) * (weak.softmax(1).mean() / t_weak.softmax(1).mean()), dim=1).detach()
    mask = (q.max(1).values >= 0.9 * weak.softmax(1).max(1).values.mean()).float()
    of_target = (-(q * t_strong.log_softmax(1)).sum(1) * mask).mean()
    mu = target_weight(2 / 6 * 382 / 937)
    expected = F.cross_entropy(weak, source.labels) + F.cross_entropy(strong, source.labels) + mu * of_target
    torch.testing.assert_close(found["loss"], expected)
    assert it.model.training and all(m.training for m in it.model.modules())


def test_the_first_pass_leaves_no_trace():
    it = trainer()
    before = {k: v.clone() for k, v in it.model.state_dict().items()}
    source, _, _ = batch_and_losses(it)
    moved = {k for k, v in it.model.state_dict().items() if not torch.equal(v, before[k])}
    counts = [v for k, v in it.model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert moved == {k for k in before if "running" in k or "num_batches" in k} and {int(c) for c in counts} == {1}


@pytest.mark.parametrize("method", ["bn", "cn", "dsbn", "source-only", "cn-keras"])
def test_measuring_gradients_changes_nothing(method):
    it = trainer(method)
    it.run_epoch()
    before = checkpoint_of(it)
    first, rng = it.gradients(), torch.get_rng_state()
    assert it.gradients() == first and torch.equal(rng, torch.get_rng_state())
    torch.testing.assert_close(checkpoint_of(it), before, rtol=0, atol=0)
    assert all(value > 0 for value in first.values()) and set(first) == {
        "gradient_variance_max", "gradient_variance_mean", "noise_scale",
    }  # fmt: skip


def checkpoint_of(it):
    state = it.state()
    kept = {k: state[k] for k in ("model", "generators", "rng", "alignment")}
    return {f"{k}.{name}": v.clone() for k, part in kept.items() for name, v in part.items()}


def test_the_published_variance_is_that_of_one_gradients_entries():
    it = trainer(options={"noise_batches": 2})
    found = it.gradients()
    seen, losses = [], it.losses
    it.losses = lambda source, target, *rest: seen.append((source, target)) or losses(source, target, *rest)
    it.gradients()
    source, target = seen[0]
    with frozen(it.model):
        it.model.train()(torch.cat((source.x, target.x))).sum().backward()
    variances = [float(p.grad.var(correction=0)) for p in it.model.parameters()]
    assert found["gradient_variance_max"] == pytest.approx(max(variances), rel=1e-4)
    assert found["gradient_variance_mean"] == pytest.approx(sum(variances) / len(variances), rel=1e-4)


def test_domain_batch_norm_is_a_batch_norm_a_domain():
    torch.manual_seed(0)
    layer, apart = DomainBatchNorm(3, 2, momentum=0.5), [BatchNorm(3, momentum=0.5) for _ in range(2)]
    x, ids = torch.randn(6, 3, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    y = layer(x, ids)
    for r, norm in enumerate(apart):
        torch.testing.assert_close(y[ids == r], norm(x[ids == r]))
        torch.testing.assert_close(layer.norms[r].running_var, norm.running_var)
    torch.testing.assert_close(layer(x[:1], ids[:1]), apart[0](x[:1]))  # one that is not there is left alone
    layer.eval()
    torch.testing.assert_close(layer(x[1:2], ids[1:2]), apart[1].eval()(x[1:2]))
    with pytest.raises(ValueError, match="no context was given"):
        layer(x)


def test_four_readings_and_what_is_recorded():
    run = train(E.config("cn", profile="smoke"), progress=False)
    for name in ("test_source", "test_target", "test_source_as_target", "test_target_as_source"):
        assert run.predictions(name).shape == (50,)
        for metric in ("accuracy", "precision", "recall", "f1", "weighted_f1", "share_of_1", "majority"):
            assert 0 <= run.curve(f"{name}_{metric}")[-1] <= 1
        assert run.curve(f"{name}_weighted_recall") == pytest.approx(run.curve(f"{name}_accuracy"))
    assert {"test_target_plus_accuracy", "test_target_reestimated_accuracy", "learned_mean"} <= set(run.final)
    assert {"train_mask", "train_accepted_accuracy", "train_target_loss", "noise_scale"} <= set(run.epochs)
    assert run.headline == "test_target_accuracy"


def test_without_a_told_layer_both_contexts_are_one_reading():
    run = train(E.config("bn", profile="smoke"), progress=False)
    for part, other in (("source", "target"), ("target", "source")):
        mine, again = f"test_{part}", f"test_{part}_as_{other}"
        assert (run.curve(f"{mine}_loss") == run.curve(f"{again}_loss")).all()
        assert run.final[f"{mine}_reestimated_loss"] == run.final[f"{again}_reestimated_loss"]
        assert (run.predictions(mine) == run.predictions(again)).all()


def test_contexts_follow_the_domain_and_are_swapped_at_test():
    it = trainer("cn")
    source, target = next(iter(it.batches()))
    assert not source.ids.any() and target.ids.all()
    assert not torch.equal(*source.views) and len(target.labels) == 16
    swapped = it.tests["test_target_as_source"]
    assert swapped.contexts(torch.tensor([1, 1])).tolist() == [0, 0]
    assert trainer("cn-random").told is False and trainer("dsbn").told is True


def test_fixed_standardizes_each_domain_by_its_own_moments():
    it = trainer("fixed")
    batch = next(it.train.ordered(10**6))
    with torch.no_grad():
        y = it.model.norm0(batch.x, batch.ids)
    for r in (0, 1):
        part = y[batch.ids == r]
        assert abs(float(part.mean())) < 1e-3 and float(part.std()) == pytest.approx(1, abs=1e-2)
    before = it.model.norm0.moments()[0].clone()
    it.run_epoch()
    assert torch.equal(before, it.model.norm0.moments()[0])


def test_source_only_never_sees_the_target():
    one, other = trainer("source-only"), trainer("source-only")
    other.target.images = 255 - other.target.images
    for it in (one, other):
        for batch in it.batches():
            it.step(batch)
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_labels_of_the_target_are_not_trained_on():
    one, other = trainer(), trainer()
    other.target.alongside["labels"] = (other.target.labels + 1) % 10
    for it in (one, other):
        for batch in it.batches():
            it.step(batch)
    assert all(torch.equal(*pair) for pair in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_only_weights_decay():
    it = trainer("cn")
    decaying, kept = it.optimizer.param_groups
    names = {id(p): name for name, p in it.model.named_parameters()}
    assert decaying["weight_decay"] == 5e-4 and kept["weight_decay"] == 0
    assert all(
        "conv" in n or "shortcut" in n or n == "linear.weight" for n in (names[id(p)] for p in decaying["params"])
    )
    assert {"norm0.mean_encoder.weight", "linear.bias"} <= {names[id(p)] for p in kept["params"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits", "contexts": "none"}, "has domains none: expected a source and a target"),
        ({"options": {"alignment": "classes"}}, "alignment='classes': expected one of class, all"),
        ({"options": {"ratio": 0}}, "ratio=0: expected 1 or more"),
        ({"options": {"noise_batches": 1}}, "noise_batches=1: expected 2 or more"),
        ({"validation": 10}, "without validation images"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(**changes)


def test_killed_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    config = E.config("cn", profile="smoke")
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    states, save = {}, checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: states.update({path.stem: state}) or save(path, state))
    helper = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    jobs = json.dumps([(str(killed), config.to_dict(), "step", 5)])  # inside epoch 2
    result = subprocess.run(helper, input=jobs, capture_output=True, encoding="utf-8")
    assert json.loads(result.stdout or "[]") == [-9], result.stderr
    assert read(killed).status == "unfinished" and len(read(killed).epochs["epoch"]) == 1
    train(config, killed, progress=False)
    train(config, whole, progress=False)
    assert timeless(whole) == timeless(killed)
    for part in ("model", "average", "optimizer", "alignment", "generators"):
        torch.testing.assert_close(states["whole"][part], states["killed"][part], rtol=0, atol=0)
