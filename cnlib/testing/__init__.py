"""Eleven checks for a normalization layer of your own: ``check_norm`` lists those that it fails.

    from cnlib.testing import check_norm
    check_norm(MyBatchNorm, torch.nn.BatchNorm2d)

One alone, with its traceback: ``CHECKS["mode"](Pair(MyBatchNorm, torch.nn.BatchNorm2d))``. The page "The bug museum"
shows the mistakes that each of them finds. The idea is ``check_estimator`` of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from cnlib.testing.checks import CHECKS
from cnlib.testing.pair import Pair, batch

__all__ = ["CHECKS", "Failure", "Pair", "batch", "check_norm"]


@dataclass(frozen=True, repr=False)
class Failure:
    """A check that a layer does not pass, and what was seen."""

    check: str
    message: str

    def __repr__(self) -> str:
        return f"{self.check}: {self.message}"


def check_norm(
    make: Callable[[int], nn.Module],
    reference: Callable[[int], nn.Module],
    extra: Callable[[Tensor], tuple[Any, ...]] | None = None,
    tolerance: float = 1e-4,
) -> list[Failure]:
    """Compare a layer with a reference and with itself; return the checks that it fails, [] for a correct layer.

    Check, what must hold, and what it finds:

        output     in training, the reference's output; finds another variance
        axes       the same where all axes have one size; sums or values along a wrong axis, which raise no error there
        gradient   the backward is the derivative of the layer's own forward; moments taken as constants
        flat       a constant input has finite output and gradient; epsilon outside the root
        mode       the same output under no_grad, in training and in evaluation; a mode read off the gradient
        running    in evaluation, after 15 batches, the reference's output; momentum, biased variance
        reload     the state dict, loaded into a new layer, gives the same output; statistics not in buffers
        graph      after a training step the layer holds nothing of a graph; running moments not cut
        float32    at mean 10,000 and deviation 1, its own output in float64; E[x^2] - E[x]^2
        half       for float16 x of deviation 300, that output rounded to float16; squares that overflow
        one        one value per channel is refused where the reference refuses it; an output of zeros

    make, reference: called with the number of channels, 4, as often as needed; each returns a new layer, on the CPU.
    They get x (N, 4) or, where the reference takes no vectors, (N, 4, *) of the lowest rank that it takes; "axes" goes
    through all ranks from 3 to 5 that it takes. Both layers get the same parameters: by name where all names agree,
    otherwise in the order of definition.
    A check without a premise is left out: "running" where the reference has no running statistics ("output" then looks
    at evaluation too), "axes" where it takes vectors only.

    extra: x -> the tuple that both are called with after x, such as ids: ``lambda x: (torch.arange(len(x)) % 3,)``.
    tolerance: largest difference of two float64 outputs of deviation near 1; "float32" and "half" have their own.

    An exception in a check is a failure with the exception's text. What ``make`` and ``reference`` raise at first is
    not caught. TypeError where one of them returns no module, ValueError where the reference takes no x. The global
    random state is left as it was.
    """
    failures = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        pair = Pair(make, reference, extra, tolerance)
        for name, check in CHECKS.items():
            torch.manual_seed(0)
            try:
                check(pair)
            except SkipTest:
                continue
            except Exception as error:
                text = " ".join(str(error).split())
                ours = isinstance(error, AssertionError) and text
                failures.append(Failure(name, text if ours else f"{type(error).__name__}: {text}"))
    return failures
