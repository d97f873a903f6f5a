"""Each supposed cause is really taken away, and alone; the readings read what they say."""

import copy
import math

import numpy as np
import pytest
import torch

from cnlib import results
from cnlib.experiments import EXPERIMENTS
from cnlib.experiments.causes import CHANGES, OWN, Probe, lengths
from cnlib.sweeps import sweep
from cnlib.training import train
from cnlib.training.build import OPTIMIZERS
from cnlib.training.loop import fetch
from cnlib.training.readings import evaluate, first_layer

CAUSES = EXPERIMENTS["causes"]


def probe(method, **changes):
    config = CAUSES.config(method, 0, "smoke", **changes)
    return Probe(config, fetch(config.dataset).subset(config.train_size, config.test_size), torch.device("cpu"))


def test_the_first_batch_gives_cn_the_moments_of_its_contexts():
    plain, started = probe("cn"), probe("cn", options={"first_batch": True})
    mean, var = first_layer(started.model, started.config).moments()
    assert torch.equal(first_layer(plain.model, plain.config).moments()[0], torch.zeros_like(mean))
    assert mean.abs().mean() > 0.1 and (var.log().abs().mean() > 0.1)
    # nothing else has moved: other weights, running statistics, the order of the images
    ours, theirs = started.model.state_dict(), plain.model.state_dict()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == [
        f"norm3.{name}_encoder.{part}" for name in ("mean", "log_var") for part in ("weight",)
    ]
    batches = [next(one.batches()).labels for one in (plain, started)]
    assert torch.equal(*batches)


def test_a_layer_that_cannot_start_from_data_is_named():
    with pytest.raises(ValueError, match="norm 'bn' cannot start from data: leave out the option"):
        probe("bn", options={"first_batch": True})


def test_a_run_from_the_first_batch_goes_on_bit_for_bit(tmp_path):
    config = CAUSES.config("cn", 0, "smoke", options={"first_batch": True})
    whole = train(config, progress=False)
    train(config, tmp_path / "run.jsonl", progress=False, until=0.0)
    again = train(config, tmp_path / "run.jsonl", progress=False)
    assert again.status == "finished" and np.array_equal(whole.curve("train_loss"), again.curve("train_loss"))


def test_the_gain_multiplies_what_the_layer_gives():
    trainer = probe("bn-scaled")
    layer, x = first_layer(trainer.model, trainer.config), torch.randn(8, 8, 4, 4)
    assert layer(x).square().mean().item() == pytest.approx(3, rel=1e-3)
    assert math.sqrt(3) == pytest.approx(trainer.options["gain"])


def test_wrong_ids_are_those_of_the_next_image_and_the_average_needs_none():
    trainer = probe("cn")
    layer, seen = first_layer(trainer.model, trainer.config), []
    torch.nn.init.normal_(layer.mean_encoder.weight)
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(layer.given_ids))
    truth = trainer.contexts["test_ids"]
    for name in ("test", "test_wrong"):
        evaluate(trainer, trainer.tests[name], trainer.model)
    half = len(seen) // 2
    batches = truth.split([len(ids) for ids in seen[:half]])
    for told, right, wrong in zip(batches, seen[:half], seen[half:], strict=True):
        assert torch.equal(right, told) and torch.equal(wrong, told.roll(1))
    assert trainer.tests["test_average"].inference == "average"


def test_final_readings_of_mn_are_those_of_its_layer():
    run = train(CAUSES.config("mn", 0, "smoke"), progress=False)
    assert 1 / 3 < run.final["largest_responsibility"] <= 1
    # after few steps the affine map, which is taken off here, is nearly the identity
    seen = run.curve("test_output_std")[-1] ** 2 + run.curve("test_output_mean")[-1] ** 2
    assert run.final["second_moment"] == pytest.approx(seen.item(), rel=0.1)
    assert "largest_responsibility" not in train(CAUSES.config("bn", 0, "smoke"), progress=False).final


def test_the_layers_own_rate_is_its_own_alone():
    """After one step of RMSprop, whose length is ten times the rate whatever the gradient."""
    moved = {}
    for share in (1.0, 0.1, 0.0):
        trainer = probe("cn", options={"own_rate": share}, train_size=64, weight_decay=0.0)
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.run_epoch()
        after = trainer.model.state_dict()
        moved[share] = {name: after[name] - before[name] for name, _ in trainer.model.named_parameters()}
    own = {name for name in moved[1.0] if "encoder" in name}
    assert own and all(moved[1.0][name].abs().max() > 0 for name in own)
    for name, step in moved[1.0].items():
        shares = (0.1, 0.0) if name in own else (1.0, 1.0)
        for share, expected in zip((0.1, 0.0), shares, strict=True):
            torch.testing.assert_close(moved[share][name], expected * step, rtol=1e-3, atol=1e-7)


def test_sigma_and_its_input_are_read_before_the_first_step_and_sigma_at_the_end():
    held, started = (
        train(CAUSES.config("cn", 0, "smoke", options=options), progress=False).final
        for options in ({"own_rate": 0.0}, {"first_batch": True})
    )
    assert held["first_sigma"] == held["last_sigma"] == pytest.approx(1)
    assert started["first_deviation"] == held["first_deviation"] < 0.9
    # the moments of three contexts, and the input's deviation over all of them
    assert started["first_sigma"] == pytest.approx(held["first_deviation"], rel=0.2)
    assert started["last_sigma"] != started["first_sigma"]


def test_the_weights_in_front_keep_their_lengths():
    free, held = (probe("cn", options={"held_length": held}) for held in (False, True))
    start = lengths(held.model.conv3.weight).detach().clone()
    assert start.shape == (held.model.conv3.out_channels, 1, 1, 1)
    for trainer in (free, held):
        trainer.run_epoch()
    torch.testing.assert_close(lengths(held.model.conv3.weight), start)
    assert ((lengths(free.model.conv3.weight) / start).log().abs() > 0.1).float().mean() > 0.5
    with pytest.raises(ValueError, match="held_length: expected a layer behind a convolution, got one at 'input'"):
        probe("cn-channels", options={"held_length": True})


@pytest.mark.parametrize(
    "name, momentum, first, second",
    [("rmsprop", 0.0, 10.0, 7.1), ("rmsprop-keras", 0.0, 10**0.5, 2.3), ("rmsprop-primed", 0.0, 1.0, 1.0)],
)
def test_first_steps_under_a_constant_gradient(name, momentum, first, second):
    w = torch.zeros(1, requires_grad=True)
    config = CAUSES.config("bn", optimizer=name, momentum=momentum, lr=1e-3, weight_decay=0.0)
    optimizer, steps = OPTIMIZERS[name]([w], config), []
    for _ in range(2):
        w.grad = torch.full((1,), 0.5)
        before = w.item()
        optimizer.step()
        steps.append((before - w.item()) / config.lr)
    assert steps == pytest.approx([first, second], rel=0.01)


def test_a_primed_optimizer_is_saved_and_loaded_as_torchs():
    def one():
        return OPTIMIZERS["rmsprop-primed"]([w], CAUSES.config("bn", momentum=0.9))

    w = torch.ones(3, requires_grad=True)
    first = one()
    w.grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    other = one()
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    start = w.detach().clone()
    first.step()
    moved = w.detach().clone()
    with torch.no_grad():
        w.copy_(start)
    other.step()
    assert torch.equal(w, moved)


def test_changes_differ_from_the_published_setting_in_what_they_say():
    plain = CAUSES.config("cn", profile="reduced", setting={"dataset": "cifar100"}).to_dict()
    for change in (CHANGES | OWN).values():
        config = CAUSES.config("cn", profile="reduced", setting={"dataset": "cifar100", **change}).to_dict()
        assert {key for key in config if config[key] != plain[key]} == set(change)


def test_every_sweep_runs(tmp_path):
    for name in CAUSES.sweeps:
        configs = CAUSES.configs(name, "smoke", dataset="digits", only="*digits-*")
        few = dict(list(configs.items())[-1:])
        assert set(sweep(few, tmp_path, progress=False).values()) <= {"finished", "recorded"}
    assert results.load(tmp_path)
