"""The small laboratory of the first chapters: it learns, it is reproducible, and contexts reach the layers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cnlib
from cnlib import lab


class Probe(nn.Identity):
    """A layer that takes contexts and responsibilities, and keeps what it was given."""

    given_ids: Tensor | None = None
    given_responsibilities: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor | None, Tensor | None, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.given_ids, self.given_responsibilities, self.training))
        return x


def trained(seed: int = 0, norm: Callable[[int], nn.Module] | None = cnlib.BatchNorm) -> tuple[nn.Module, np.ndarray]:
    data = lab.digits(standardize=True)
    torch.manual_seed(seed)
    model = lab.dense(64, [32, 32], 10, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, lab.fit(model, optimizer, lab.batches(len(data.x), 128, 5, seed), data.x, data.y)


def test_it_learns() -> None:
    data = lab.digits(standardize=True)
    model, losses = trained()
    assert losses.shape == (55,)
    assert losses[-11:].mean() < 0.6 < 2 < losses[0]
    assert lab.accuracy(model, data.x_test, data.y_test) > 0.85


def test_it_is_reproducible() -> None:
    (model, losses), (other, others) = trained(), trained()
    assert (losses == others).all()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert (trained(seed=1)[1] != losses).any()


def test_digits_shapes_and_scales() -> None:
    flat, images = lab.digits(), lab.digits(flat=False, dtype=torch.float64)
    assert flat.x.shape == (1442, 64) and flat.x_test.shape == (355, 64) and flat.x.dtype == torch.float32
    assert images.x.shape == (1442, 1, 8, 8) and images.x.dtype == torch.float64
    assert flat.x.min() == 0 and flat.x.max() == 1
    assert flat.y.dtype == torch.int64 and len(flat.y) == 1442 and len(flat.y_test) == 355
    torch.testing.assert_close(images.x_test.flatten(1).float(), flat.x_test)
    scaled = lab.digits(standardize=True)
    assert abs(scaled.x.mean()) < 1e-5 and abs(scaled.x.std() - 1) < 1e-5
    # with the numbers of the training set, not its own
    torch.testing.assert_close(scaled.x_test, (flat.x_test - flat.x.mean()) / flat.x.std())


def test_dense_order_of_layers_and_of_random_numbers() -> None:
    names = [type(layer).__name__ for layer in lab.dense(4, [3, 2], 5)]
    assert names == ["Linear", "Identity", "ReLU"] * 2 + ["Linear"]
    model = lab.dense(4, [3, 2], 5, cnlib.BatchNorm, after=True)
    assert [type(layer).__name__ for layer in model] == ["Linear", "ReLU", "BatchNorm"] * 2 + ["Linear"]
    assert model[5].num_features == 2 and model(torch.randn(6, 4)).shape == (6, 5)

    torch.manual_seed(0)
    model = lab.dense(4, [3], 5, start=lab.he)
    torch.manual_seed(0)
    first = nn.Linear(4, 3)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    assert torch.equal(model[0].weight, first.weight) and not model[0].bias.any()
    # the last layer is made after the first was started, and is left alone
    assert torch.equal(model[3].weight, nn.Linear(3, 5).weight)


def test_batches_visit_every_sample_once_an_epoch() -> None:
    indices = list(lab.batches(10, 3, epochs=2, seed=0))
    assert [len(index) for index in indices] == [3] * 6
    for epoch in (indices[:3], indices[3:]):
        assert len(torch.cat(epoch).unique()) == 9
    assert not torch.equal(torch.cat(indices[:3]), torch.cat(indices[3:]))
    torch.manual_seed(123)
    again = list(lab.batches(10, 3, epochs=2, seed=0))
    assert torch.equal(torch.cat(again), torch.cat(indices))


def test_rows_of_contexts_follow_the_batch() -> None:
    x, y, ids = torch.randn(6, 4), torch.arange(6) % 2, torch.arange(6)
    tau = torch.rand(6, 3)
    probe = Probe()
    model = nn.Sequential(nn.Linear(4, 2), probe)
    before, steps = model[0].weight.detach().clone(), []
    order = [torch.tensor([5, 2]), torch.tensor([0, 1])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lab.fit(model.eval(), optimizer, order, x, y, ids, tau, watch=steps.append)
    assert steps == [0, 1] and model.training and (model[0].weight != before).any()
    for index, (given_ids, given_tau, training) in zip(order, probe.seen, strict=True):
        assert torch.equal(given_ids, ids[index]) and torch.equal(given_tau, tau[index]) and training
    lab.accuracy(model, x, y, ids, tau)
    assert torch.equal(probe.seen[-1][0], ids) and torch.equal(probe.seen[-1][1], tau)
    assert probe.given_ids is None and probe.given_responsibilities is None


def test_fit_takes_the_steps_of_plain_descent() -> None:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    model = nn.Linear(3, 1)
    weight, bias = (p.detach().clone().requires_grad_() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = lab.fit(model, optimizer, [torch.arange(8)] * 2, x, y, loss=nn.functional.mse_loss)
    for seen in losses:
        expected = (x @ weight.T + bias - y).square().mean()
        assert abs(seen - expected.item()) < 1e-6
        for p, g in zip((weight, bias), torch.autograd.grad(expected, (weight, bias)), strict=True):
            p.data -= 0.1 * g
    torch.testing.assert_close(model.weight, weight)


def test_accuracy_counts_and_leaves_the_mode() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert lab.accuracy(nn.Identity(), x, y) == 0.75
    probe = Probe()
    for mode in (True, False):
        for training in (True, False):
            lab.accuracy(probe.train(mode), x, y, training=training)
            assert probe.seen[-1][2] is training and probe.training is mode
    mixed = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval())
    lab.accuracy(mixed, x, y)
    with pytest.raises(RuntimeError):
        lab.accuracy(mixed, x[:, :3], y)
    assert [layer.training for layer in mixed.modules()] == [True, True, False]


def test_bad_input_is_refused() -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for size in (0, 7):
        with pytest.raises(ValueError, match="expected 1 to 6"):
            lab.batches(6, size, 1, 0)
    with pytest.raises(ValueError, match="no batches"):
        lab.fit(model, optimizer, [], x, y)
    for given in ({"y": y[:5]}, {"y": y, "ids": y[:5]}, {"y": y, "responsibilities": torch.rand(5, 2)}):
        name = list(given)[-1]
        with pytest.raises(ValueError, match=f"{name} has 5 rows, expected 6"):
            lab.fit(model, optimizer, [torch.arange(3)], x, **given)
        with pytest.raises(ValueError, match=f"{name} has 5 rows, expected 6"):
            lab.accuracy(model, x, **given)
