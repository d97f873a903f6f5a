"""The engine, network and batch norm of the book train as a loop in torch alone does, with torch's own layers."""

import torch
from torch import nn
from torch.nn import functional as F

from cnlib import data
from cnlib.experiments import EXPERIMENTS
from cnlib.training import Trainer

CONVS = ((1, 16, 5), (16, 32, 5), (32, 32, 5), (32, 64, 3))  # Table IV at a quarter of the width, on gray digits


def network():
    layers = []
    for i, (before, after, kernel) in enumerate(CONVS):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True)] if i < 3 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 10)).double()


def test_the_engine_trains_as_a_plain_loop_does():
    # at the printed rate RMSprop makes steps out of rounding errors, where a gradient is all but zero
    config = EXPERIMENTS["convnet"].config("bn", profile="book", epochs=2, precision="fp64", lr=1e-4)
    digits = data.load("digits")
    trainer = Trainer(config, digits, torch.device("cpu"))
    plain = network()
    for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours.data)

    x, labels = torch.from_numpy(digits.train_images).permute(0, 3, 1, 2).double(), torch.tensor(digits.train_labels)
    seen = torch.from_numpy(digits.test_images).permute(0, 3, 1, 2).double()
    # the engine keeps both in float32
    mean, scale = x.mean().float().double(), 1 / x.std(correction=0).float().double()
    x, seen = ((images - mean) * scale for images in (x, seen))
    optimizer = torch.optim.RMSprop(plain.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        losses = []
        plain.train()
        whole = torch.randperm(len(x), generator=order)
        for batch in whole[: len(x) // 64 * 64].split(64):
            loss = F.cross_entropy(plain(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        metrics = trainer.run_epoch()
        with torch.no_grad():
            guesses = plain.eval()(seen).argmax(1)
        accuracy = (guesses == torch.tensor(digits.test_labels)).double().mean().item()
        assert abs(metrics["train_loss"] - sum(losses) / len(losses)) < 1e-12
        assert abs(metrics["test_accuracy"] - accuracy) < 1e-12
    for (name, ours), theirs in zip(trainer.model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
