"""The loop: it learns, it is reproducible, it says what happened."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import cnlib
from cnlib.norm.registry import NORMS
from cnlib.training import Config, Trainer, read, readings, train
from cnlib.training.build import build_contexts

SMALL = {"width": 0.125, "epochs": 2, "batch_size": 64, "train_size": 400, "test_size": 200}
EXTRA = {"cn": {"contexts": "one", "num_contexts": 1}}


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains_and_records(norm, tmp_path):
    run = train(Config(**SMALL, norm=norm, **EXTRA.get(norm, {})), tmp_path / "run.jsonl")
    again = read(tmp_path / "run.jsonl")
    assert run.status == again.status == "finished" and run.config == again.config
    assert run.epochs["train_loss"][1] < run.epochs["train_loss"][0]
    for key, values in run.epochs.items():
        np.testing.assert_array_equal(values, again.epochs[key])
    assert {"train_top5", "test_f1", "train_seconds", "images_per_second", "seconds"} <= set(run.epochs)
    assert run.final["best_test_accuracy"] == run.epochs["test_accuracy"].max()
    assert run.model is not None and again.model is None
    assert {"cnlib", "torch", "device", "threads", "data", "commit"} <= set(run.provenance)


def test_learns_the_digits_well():
    run = train(Config(width=0.25, epochs=5, batch_size=64))
    assert run.epochs["test_accuracy"][-1] > 0.93


def test_header_and_final_lines(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    config = Config(**SMALL, profile="smoke")
    train(config, path)
    *lines, checksum = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["type"] for line in lines] == ["header", "epoch", "epoch", "final"] and checksum["type"] == "checksum"
    assert Config.from_dict(lines[0]["config"]) == config and lines[0]["provenance"]["threads"] >= 1
    assert lines[-1]["status"] == "finished" and lines[-1]["best_epoch"] in (1, 2)
    spent = sum(line.get("seconds", 0) + line.get("setup_seconds", 0) for line in lines[:-1])
    assert lines[-1]["seconds"] == pytest.approx(spent)


def test_equal_seeds_equal_numbers_and_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    first = train(Config(**SMALL, norm="mn", flip=True))
    after = torch.rand(1)
    second = train(Config(**SMALL, norm="mn", flip=True))
    other = train(Config(**SMALL, norm="mn", flip=True, seed=1))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert first.epochs["train_loss"].tolist() == second.epochs["train_loss"].tolist()
    assert first.epochs["train_loss"].tolist() != other.epochs["train_loss"].tolist()


def test_every_norm_starts_from_the_same_weights_and_sees_the_same_order():
    data = cnlib.data.load("digits").subset(200, 100)
    trainers = [Trainer(Config(**SMALL, norm=n, **EXTRA.get(n, {})), data, torch.device("cpu")) for n in ("bn", "cn")]
    torch.testing.assert_close(*(t.model.conv4.weight for t in trainers), rtol=0, atol=0)
    orders = [next(t.train.shuffled(64, t.generator)).labels for t in trainers]
    assert torch.equal(*orders)


@pytest.mark.parametrize("norm", ["bn", "mn", "cn", "none"])
def test_divergence_is_recorded(norm, tmp_path):
    config = Config(**SMALL | {"epochs": 5}, norm=norm, lr=1e30, optimizer="sgd", **EXTRA.get(norm, {}))
    run = train(config, tmp_path / "run.jsonl")
    assert run.status == "diverged" and len(run.epochs["epoch"]) < 5
    assert np.isnan(run.epochs["train_loss"][-1])
    assert train(config, tmp_path / "run.jsonl").status == "diverged"


def test_cn_plus_is_measured_beside_cn():
    run = train(Config(**SMALL, norm="cn", contexts="one", num_contexts=1))
    assert "test_plus_accuracy" in run.epochs
    assert run.epochs["test_plus_loss"].tolist() != run.epochs["test_loss"].tolist()


def test_every_test_set_is_read_again_with_statistics_of_all_training_images(tmp_path):
    config = Config(**SMALL | {"train_size": 384}, norm="cn", contexts="random", lr=5e-3)
    run, again = train(config, tmp_path / "run.jsonl"), read(tmp_path / "run.jsonl")
    assert run.final == again.final
    names = ["test", "test_plus", "test_plus_reestimated", "test_reestimated"]
    assert sorted(again.final["predictions"]) == names
    data = cnlib.data.load("digits").subset(384, 200)
    for name in names:
        accuracy = (again.predictions(name) == data.test_labels).mean()
        last = again.final if "reestimated" in name else {key: v[-1] for key, v in again.epochs.items()}
        assert last[f"{name}_accuracy"] == pytest.approx(accuracy)
    with pytest.raises(ValueError, match="keeps no predictions of 'val': it has test,"):
        again.predictions("val")
    # six whole batches: all 384 images were seen once, so the first layer's moments are those of the data
    trainer = Trainer(config, data, torch.device("cpu"))
    trainer.model.load_state_dict(run.model.state_dict())
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    fresh = readings.reestimated(trainer)
    x = torch.cat([batch.x for batch in trainer.train.ordered(384)])
    torch.testing.assert_close(fresh.norm1.running_mean, fresh.conv1(x).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(trainer.model.state_dict()), before, rtol=0, atol=0)
    plus = readings.reestimated(trainer, "cn+")
    assert torch.equal(plus.norm1.running_mean, fresh.norm1.running_mean)  # before the layer under test
    assert not torch.allclose(plus.norm4.running_var, fresh.norm4.running_var, rtol=0.01)  # behind it
    assert not torch.equal(fresh.norm1.running_mean, trainer.model.norm1.running_mean)
    torch.testing.assert_close(dict(fresh.named_parameters()), dict(trainer.model.named_parameters()), rtol=0, atol=0)


def test_bf16_and_contiguous_layout():
    run = train(Config(**SMALL, precision="bf16", channels_last=False))
    assert run.epochs["train_loss"][1] < run.epochs["train_loss"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr=0: expected a number above 0"),
        ({"seed": -1}, "seed=-1"),
        ({"norm": "cn", "contexts": "one"}, "expected 1"),
        ({"method": "../x"}, "method='../x': expected a name of letters"),
        ({"patience": 2}, "patience=2 without validation images"),
        ({"average": 1}, "average=1: expected less than 1"),
        ({"label_noise": 1.5}, "label_noise=1.5: expected 1 or less"),
        ({"label_noise": -0.1}, "label_noise=-0.1: expected 0 or more"),
        ({"epochs": 1.5}, "epochs=1.5: expected an int"),
        ({"epochs": True}, "epochs=True: expected an int"),
        ({"batch_size": 2.5}, "batch_size=2.5: expected an int"),
        ({"train_size": "all"}, "train_size='all': expected an int or None"),
        ({"test_size": 0}, "test_size=0: expected a number above 0"),
        ({"compile": "false"}, "compile='false': expected True or False"),
        ({"lr": "abc"}, "lr='abc': expected a finite number"),
        ({"lr": float("nan")}, "lr=nan: expected a finite number"),
        ({"width": 10**400}, "width=1.*: expected a finite number"),
        ({"seed": 2**63}, "seed=9223372036854775808: expected less than"),
        ({"dataset": 3}, "dataset=3: expected a name"),
        ({"placement": "conv3"}, "placement='conv3': expected a tuple"),
        ({"placement": ()}, "at least one"),
        ({"placement": ("conv1", "conv1")}, "different slots"),
        ({"options": "abc"}, "options='abc': expected a mapping"),
        ({"options": {"patch": [4]}}, "options={'patch': .4.}: expected a mapping"),
        ({"options": {"lr": 1.0}}, "options: lr is a field"),
    ],
)
def test_bad_configurations(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "xn"}, "norm='xn': expected one of bn"),
        ({"norm": "cn"}, "norm 'cn' needs contexts"),
        ({"model": "vgg"}, "model='vgg': expected one of convnet"),
        ({"contexts": "tarot"}, "contexts='tarot': expected one of none"),
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs': expected one of rmsprop"),
        ({"schedule": "moon"}, "schedule='moon': expected one of constant"),
        ({"precision": "fp8"}, "precision='fp8': expected one of fp32"),
        ({"task": "sort"}, "task='sort': expected one of classify"),
        ({"placement": ("conv5",)}, "convnet has no norm slot conv5: its slots are input, conv1"),
        ({"options": {"patch": 4}}, "options: no patch; convnet takes bias, norm, classify takes none"),
        ({"options": {"bias": 3}}, "options: bias=3: expected True or False, as in bias=False"),
        ({"model": "vit", "options": {"patch": 2.0}}, "options: patch=2.0: expected an int, as in patch=4"),
        ({"model": "vit", "options": {"dropout": "x"}}, "options: dropout='x': expected a finite number"),
        ({"task": "pairs", "options": {"held_out": "x"}}, "options: held_out='x': expected an int"),
        ({"task": "pairs", "options": {"from_data": -3}}, "options: from_data=-3: expected 0 or more"),
        ({"validation": 400}, "validation=400: expected less than the 400"),
    ],
)
def test_names_are_checked_where_they_are_used(arguments, message, tmp_path):
    config = Config(**SMALL | arguments)  # a record of it can be read
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run.jsonl")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "bn"),
        ({"norm": "mn"}, "mn-em"),
        ({"norm": "mn", "contexts": "gmm"}, "mn"),
        ({"norm": "mn", "contexts": "random"}, "mn-random"),
        ({"norm": "cn", "contexts": "gmm"}, "cn"),
        ({"norm": "cn", "contexts": "gmm", "placement": ("input",)}, "cn-channels"),
        ({"norm": "cn", "contexts": "one", "num_contexts": 1, "placement": ("input",)}, "cn-channels-one"),
        ({"norm": "bn", "contexts": "superclass"}, "bn-superclass"),
        ({"method": "token"}, "token"),
    ],
)
def test_the_usual_name_of_a_method(arguments, name):
    assert Config(**arguments).method == name


def test_a_record_of_the_first_version_is_read():
    new = Config(norm="cn", contexts="gmm", placement=("input",), encoder="embedder")
    fields = ["method", "start", "schedule", "warmup", "validation", "patience", "average"]
    old = {key: value for key, value in new.to_dict().items() if key not in fields}
    assert Config.from_dict(old | {"inference": "both", "called": ""}) == new
    assert Config.from_dict(old | {"inference": "cn", "called": "mine"}).method == "mine"
    with pytest.raises(ValueError, match="only CN. was tested"):
        Config.from_dict(old | {"inference": "cn+"})


def test_a_configuration_takes_numpys_numbers():
    given = {"lr": np.logspace(-3, -2, 2)[0], "seed": np.int32(1), "flip": np.bool_(True), "norm": "mn"}
    config = Config(**given, options={"em_steps": np.int64(3)})
    assert (type(config.lr), type(config.seed), config.flip) == (float, int, True) and config.options == (
        ("em_steps", 3),
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="expected an int"):
        Config(epochs=np.float64(1.5))


def test_config_survives_json():
    config = Config(placement=("conv1", "conv3"), train_size=10, options={"b": 2, "a": None}, method="bn-two")
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config == replace(config) and hash(again) == hash(config) and config.method == "bn-two"
    assert config.to_dict()["options"] == {"a": None, "b": 2}


def test_a_record_without_the_newer_fields_is_of_the_same_configuration():
    old = {key: value for key, value in Config().to_dict().items() if key not in ("task", "options", "method")}
    assert Config.from_dict(old) == Config()
    with pytest.raises(ValueError, match="unknown fields.*colour"):
        Config.from_dict({"colour": 1})


def test_no_progress_where_nobody_watches(capfd):
    train(Config(**SMALL))
    assert capfd.readouterr() == ("", "")
    train(Config(**SMALL), progress=True)
    assert "bn-s0" in capfd.readouterr().err


def test_training_needs_numpy_and_torch_only():
    code = """
import sys
for name in ("sklearn", "torchvision", "matplotlib", "pandas", "tqdm", "scipy", "typer", "IPython"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np, cnlib.results, cnlib.plots, cnlib.experiments.convnet
from cnlib.data import ImageData
from cnlib.training import Config, train
images, labels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 4
data = ImageData("toy", images, labels, images, labels, tuple("abcd"))
config = Config(width=0.0625, epochs=1, batch_size=16, norm="cn", contexts="gmm")
print(train(config, data=data, progress=True).status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "finished", done.stderr
    assert "cn-s0: 1/1" in done.stderr


def test_the_rate_follows_its_schedule(monkeypatch):
    rates = []
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, batch: (rates.append(self.optimizer.param_groups[0]["lr"]), step(self, batch))[1]
    )
    train(Config(**SMALL, schedule="cosine", warmup=3, lr=0.1, optimizer="sgd"))
    steps = 2 * (400 // 64)
    expected = [0.1 * (i + 1) / 3 for i in range(3)]
    expected += [0.05 * (1 + np.cos(np.pi * i / (steps - 3))) for i in range(steps - 3)]
    np.testing.assert_allclose(rates, expected)


def test_the_decay_of_the_authors_optimizer_does_not_depend_on_the_rate():
    data = cnlib.data.load("digits").subset(200, 100)
    weights = {}
    for lr in (1e-3, 1e-2):
        config = Config(**SMALL, optimizer="adamw-tfa", lr=lr, weight_decay=0.01)
        trainer = Trainer(config, data, torch.device("cpu"))
        before = trainer.model.conv1.weight.detach().clone()
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        weights[lr] = (trainer.model.conv1.weight / before).detach()
    for ratio in weights.values():
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.99))


def test_the_average_of_the_weights_is_tested_in_their_place():
    data = cnlib.data.load("digits").subset(200, 100)
    trainer = Trainer(Config(**SMALL, average=0.5, optimizer="sgd", lr=0.05), data, torch.device("cpu"))
    mean, seen = None, []
    step = trainer.step

    def watched(batch):
        nonlocal mean
        values = step(batch)
        weight = trainer.model.conv1.weight.detach().clone()
        mean = weight if mean is None else 0.5 * mean + 0.5 * weight
        return values

    trainer.step = watched
    logits = trainer.logits
    trainer.logits = lambda model, batch: seen.append(model) or logits(model, batch)
    trainer.run_epoch()
    assert seen[0] is trainer.compiled and seen[-1] is trainer.average.module
    torch.testing.assert_close(trainer.tested.conv1.weight, mean)
    assert not torch.equal(trainer.model.conv1.weight, mean)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_it_stops_by_the_validation_images_and_takes_its_best_weights(average, tmp_path):
    config = Config(**SMALL | {"epochs": 12, "train_size": 300}, validation=60, patience=1, lr=0.02, average=average)
    run = train(config, tmp_path / "run.jsonl")
    values = run.curve("val_accuracy")
    best = int(values.argmax())
    assert len(values) < 12 and len(values) == best + 2 and run.final["chosen_epoch"] == best + 1
    data = cnlib.data.load("digits").subset(300, 200)
    trainer = Trainer(config, data, torch.device("cpu"))
    assert len(trainer.train) == 240 and torch.equal(
        trainer.tests["val"].split.labels, torch.from_numpy(data.train_labels[-60:])
    )
    trainer.model.load_state_dict(run.model.state_dict())
    assert readings.evaluate(trainer, trainer.tests["val"], trainer.model)["accuracy"] == values[best]


def test_the_best_weights_are_those_that_were_tested():
    data = cnlib.data.load("digits").subset(200, 100)
    trainer = Trainer(Config(**SMALL, validation=40, patience=9, average=0.5), data, torch.device("cpu"))
    trainer.run_epoch()
    tested = {key: value.clone() for key, value in trainer.tested.state_dict().items()}
    trainer.best["value"] = 2.0  # no later epoch is better
    trainer.run_epoch()
    trainer.conclude()
    torch.testing.assert_close(dict(trainer.tested.state_dict()), tested, rtol=0, atol=0)


def test_contexts_go_with_any_norm():
    data = cnlib.data.load("digits").subset(200, 100)
    trainer = Trainer(Config(**SMALL, contexts="random"), data, torch.device("cpu"))
    assert next(trainer.batches()).ids.shape == (64,)
    assert trainer.run_epoch()["test_output_std"] and trainer.config.method == "bn-random"


@pytest.mark.parametrize("contexts", ["gmm", "random", "shuffled"])
def test_contexts_are_fitted_on_train_and_applied_to_test(contexts):
    data = cnlib.data.load("digits").subset(300, 100)
    config = Config(norm="cn", contexts=contexts, num_contexts=3)
    given = build_contexts(config, data)
    assert given["train_ids"].shape == (300,) and given["test_ids"].shape == (100,)
    assert set(given["train_ids"].tolist()) == {0, 1, 2}
    if contexts != "shuffled":  # the test images do not influence the training ids
        alone = build_contexts(config, data.subset(300, 10))
        assert torch.equal(alone["train_ids"], given["train_ids"])
    soft = build_contexts(config, data, soft=True)
    torch.testing.assert_close(soft["test_responsibilities"].sum(1), torch.ones(100))
    if contexts == "gmm":
        assert torch.equal(soft["test_responsibilities"].argmax(1), given["test_ids"])
    run = train(replace(config, norm="mn", width=0.125, epochs=1, batch_size=64, train_size=300, test_size=100))
    assert run.status == "finished"


def test_superclass_contexts_need_their_own_number():
    with pytest.raises(ValueError, match="'superclass' has 20"):
        build_contexts(Config(norm="cn", contexts="superclass"), cnlib.data.load("digits"))


def test_contexts_are_those_of_the_data():
    """Superclasses of other classes, or domains that the data does not have, would be trained without a word."""
    digits = cnlib.data.load("digits")
    with pytest.raises(ValueError, match="'superclass' are made from 100 classes, and digits has 10"):
        build_contexts(Config(norm="cn", contexts="superclass", num_contexts=20), digits)
    domains = {"train_domains": digits.train_labels % 2, "test_domains": digits.test_labels % 2}
    two = replace(digits, **domains, domains=("even", "odd"))
    with pytest.raises(ValueError, match="num_contexts=3: digits has domains even, odd"):
        build_contexts(Config(norm="cn", contexts="domain"), two)
    found = build_contexts(Config(norm="cn", contexts="domain", num_contexts=2), two)
    assert torch.equal(found["train_ids"], torch.from_numpy(two.train_domains))
