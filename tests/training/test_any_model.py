"""A plain network of torchvision trains in the engine, a norm of ours in the places it names."""

import pytest
import torch
from torch import nn

import cnlib
from cnlib.models import MODELS
from cnlib.training import Config, Trainer, readings, train

torchvision = pytest.importorskip("torchvision")
SMALL = {"model": "resnet18", "epochs": 1, "batch_size": 16, "train_size": 48, "test_size": 16, "lr": 1e-4}


def resnet18(num_classes, in_channels, image_size, width=1.0):
    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    return model


def resnet18_with_slots(*sizes, **options):
    model = resnet18(*sizes, **options)
    model.SLOTS = {"stem": "bn1", "first": "layer1.*.bn1"}
    return model


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS, "resnet18", resnet18)
    monkeypatch.setitem(MODELS, "resnet18-slots", resnet18_with_slots)


@pytest.mark.parametrize(
    "model, placement",
    [("resnet18", ("bn1", "layer1.*.bn1")), ("resnet18-slots", ("stem", "first"))],
)
@pytest.mark.parametrize("norm", ["cn", "mn"])
def test_resnet18_trains_with_a_norm_swapped(model, placement, norm):
    config = Config(**SMALL | {"model": model}, norm=norm, contexts="random", num_contexts=2, placement=placement)
    run = train(config)
    ours = [
        name for name, layer in run.model.named_modules() if isinstance(layer, cnlib.ContextNorm | cnlib.MixtureNorm)
    ]
    assert run.status == "finished" and ours == ["bn1", "layer1.0.bn1", "layer1.1.bn1"]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in run.model.modules()) == 17
    assert run.curve("test_output_std").shape == (1, 2 if norm == "cn" else 1)
    assert {"test_accuracy", "train_loss"} <= set(run.epochs) and "test_reestimated_accuracy" in run.final


def test_batch_norm_of_ours_in_every_place_is_the_network_itself():
    data = cnlib.data.load("digits").subset(48, 16)
    torch.manual_seed(0)
    theirs = resnet18(10, 1, (8, 8))
    ours = Trainer(Config(**SMALL, norm="bn", placement=("*bn*", "*downsample.1")), data, torch.device("cpu"))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in ours.model.modules())
    x = next(ours.train.ordered(16)).x
    torch.testing.assert_close(ours.model(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_place_that_it_does_not_have_is_named():
    with pytest.raises(ValueError, match="resnet18 has no norm slot bn7: name layers as model.named_modules"):
        train(Config(**SMALL, placement=("bn1", "bn7")))
    with pytest.raises(ValueError, match="resnet18-slots has no norm slot bn7: its slots are stem, first"):
        train(Config(**SMALL | {"model": "resnet18-slots"}, placement=("bn7",)))


def test_a_pattern_that_fits_everything_means_the_norm_layers():
    data = cnlib.data.load("digits").subset(48, 16)
    config = Config(**SMALL, norm="mn", contexts="random", num_contexts=2, placement=("*",))
    trainer = Trainer(config, data, torch.device("cpu"))
    assert isinstance(readings.first_layer(trainer.model, config), cnlib.MixtureNorm)
