"""What the first chapters train with: the digits as tensors, a small dense network, batches, one loop, the accuracy.

    X, Y, X_test, Y_test = lab.digits(standardize=True)
    model = lab.dense(64, [64, 64], 10, norm=cnlib.BatchNorm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = lab.fit(model, optimizer, lab.batches(len(X), 128, epochs=5, seed=0), X, Y)
    print(lab.accuracy(model, X_test, Y_test))

Seconds on one core, and no more than a page explains: recorded experiments run on ``cnlib.training``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cnlib.norm import use_context
from cnlib.norm.statistics import modes_kept

Rows = Tensor | None
Loss = Callable[[Tensor, Tensor], Tensor]


class Digits(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(flat: bool = True, standardize: bool = False, dtype: torch.dtype | None = None) -> Digits:
    """The 8x8 digits that scikit-learn ships: 1,442 for training, 355 for the test.

    x: (N, 64) if flat, else (N, 1, 8, 8); gray levels in [0, 1], or with mean 0 and standard deviation 1 over all
    training pixels, one number each. y: (N,) int64. dtype: torch's default if None.
    """
    from cnlib import data

    loaded = data.load("digits")
    y, y_test = torch.tensor(loaded.train_labels), torch.tensor(loaded.test_labels)
    images = (torch.tensor(i).permute(0, 3, 1, 2) for i in (loaded.train_images, loaded.test_images))
    x, x_test = (i.to(dtype or torch.get_default_dtype()) / 255 for i in images)
    if flat:
        x, x_test = x.flatten(1), x_test.flatten(1)
    if standardize:
        x, x_test = (x - x.mean()) / x.std(), (x_test - x.mean()) / x.std()
    return Digits(x, y, x_test, y_test)


def dense(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    norm: Callable[[int], nn.Module] | None = None,
    after: bool = False,
    start: Callable[[nn.Linear], None] | None = None,
) -> nn.Sequential:
    """Linear, norm, ReLU for each width in ``hidden``, then a last Linear.

    norm: called with the width; None puts an nn.Identity in its place, so that layers are counted alike.
    after: Linear, ReLU, norm. start: called with each hidden Linear when it is made (the last one keeps torch's
    initial weights), such as ``he``; random numbers are drawn in this order.
    """
    model = nn.Sequential()
    for width in hidden:
        linear = nn.Linear(inputs, width)
        if start is not None:
            start(linear)
        between = nn.Identity() if norm is None else norm(width)
        model.extend([linear, nn.ReLU(), between] if after else [linear, between, nn.ReLU()])
        inputs = width
    return model.append(nn.Linear(inputs, outputs))


def he(layer: nn.Linear) -> None:
    """He's initial weights (He et al. 2015) for a layer before a ReLU: variance 2 / inputs; biases 0. In place."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


def batches(count: int, size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Indices (size,) into ``count`` samples, in an order new in each epoch; what fills no batch is left out.

    The order depends on ``seed`` alone, not on torch's global random state. ValueError where size is above count.
    """
    if not 1 <= size <= count:
        raise ValueError(f"batches: size is {size}, expected 1 to {count}, the number of samples")
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(count, generator=generator) for _ in range(epochs))
    return (index for order in orders for index in order[: count // size * size].split(size))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    x: Tensor,
    y: Tensor,
    ids: Rows = None,
    responsibilities: Rows = None,
    watch: Callable[[int], None] | None = None,
    loss: Loss | None = None,
) -> np.ndarray:
    """A step of the optimizer for each item of ``batches``; returns the loss of each, before the step: (steps,).

    batches: indices into x, y, ids and responsibilities, which all have N rows; the latter two reach the layers that
    take them (``cnlib.use_context``). watch: called with the number of the step, before it. loss: of logits and labels;
    None is cross-entropy. The model stays in training mode. ValueError where the numbers of rows differ, or there is no
    batch.
    """
    _check_rows("fit", x, y=y, ids=ids, responsibilities=responsibilities)
    model.train()
    # no function as a default: the API page would print it with its address
    measure: Loss = nn.functional.cross_entropy if loss is None else loss
    losses: list[float] = []
    for step, index in enumerate(batches):
        if watch is not None:
            watch(step)
        with use_context(model, *(None if rows is None else rows[index] for rows in (ids, responsibilities))):
            value = measure(model(x[index]), y[index])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    if not losses:
        raise ValueError("fit: no batches; an iterator can be used once, make a new one for each call")
    return np.array(losses)


@torch.no_grad()
def accuracy(
    model: nn.Module, x: Tensor, y: Tensor, ids: Rows = None, responsibilities: Rows = None, training: bool = False
) -> float:
    """Share of the samples whose largest logit is that of their label, all in one batch.

    training: in training mode, as with the statistics of this batch. The modes of the model's layers are as before.
    ValueError where the numbers of rows differ.
    """
    _check_rows("accuracy", x, y=y, ids=ids, responsibilities=responsibilities)
    with modes_kept(model), use_context(model, ids, responsibilities):
        found = model.train(training)(x).argmax(1)
    return (found == y).double().mean().item()


def _check_rows(caller: str, x: Tensor, **others: Rows) -> None:
    for name, rows in others.items():
        if rows is not None and len(rows) != len(x):
            raise ValueError(f"{caller}: {name} has {len(rows)} rows, expected {len(x)}, one for each sample of x")
