"""The running mixture of MixtureNorm: its buffers, how batches move it, and where EM starts. Chapter 5."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import unbiased
from cnlib.norm.calling import has_values, in_backward, move

Mixture = tuple[Tensor, Tensor, Tensor]  # priors (K,), means and variances (K, C)
Start = tuple[Tensor, Mixture | None]  # whether it has started


class RunningMixture(nn.Module):
    """Running priors (K,), means and variances (K, C), and the number of batches that moved them.

    Whether there is a mixture, or only its arbitrary start, is told by the buffers alone, so that whatever copies
    buffers copies it: state dicts, DistributedDataParallel, averages of models.
    """

    running_prior: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, num_components: int, num_features: int, momentum: float | None, at: dict[str, Any]) -> None:
        super().__init__()
        self.num_components, self.momentum = num_components, momentum
        # set to False, also by cnlib.frozen, training uses the batch and leaves the running mixture alone
        self.track_running_stats = True
        self.register_buffer("running_prior", torch.empty(num_components, **at))
        self.register_buffer("running_mean", torch.empty(num_components, num_features, **at))
        self.register_buffer("running_var", torch.empty(num_components, num_features, **at))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=at["device"]))
        # where EM started for the last batches, each with what tells its batch
        self._starts: deque[tuple[Tensor, Start]] = deque(maxlen=8)

    def reset_running_stats(self) -> None:
        """No mixture: priors 1/K, means 0, variances 1, until the next batch starts it."""
        for buffer, value in (
            (self.running_prior, 1 / self.num_components),
            (self.running_mean, 0.0),
            (self.running_var, 1.0),
            (self.num_batches_tracked, 0),
        ):
            if buffer is not None:
                buffer.fill_(value)
        self._starts.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        counter, alone = self.num_batches_tracked, prefix + "num_batches_tracked" not in state_dict
        if alone and prefix + "running_mean" in state_dict and counter is not None and counter.device.type != "meta":
            counter.fill_(1)  # a mixture that came without its counter has started all the same

    @property
    def started(self) -> bool:
        """Whether there is a running mixture, or only its arbitrary start."""
        return bool(self._has_started())

    def _has_started(self) -> Tensor:
        if self.num_batches_tracked is not None:
            return self.num_batches_tracked > 0
        if self.running_mean is None or self.running_var is None:
            return torch.tensor(False)
        return ((self.running_mean != 0) | (self.running_var != 1)).any()

    def running(self) -> Mixture | None:
        """The buffers as they are; None without a running mixture. Raises ValueError where some were set to None."""
        prior, mean, var = self.running_prior, self.running_mean, self.running_var
        if prior is not None and mean is not None and var is not None:
            return prior, mean, var
        if prior is None and mean is None and var is None:
            return None
        raise ValueError(
            f"{type(self).__name__}: some of running_prior, running_mean and running_var are None, expected all or "
            "none; set the others to None too, or restore them"
        )

    def start_of(self, x: Tensor) -> Start:
        """Whether a mixture has started, and it, in the type of x (N, C, *).

        For a batch that a backward pass sends again (activation checkpointing), as they were when it first came.
        """
        running, started = self.running(), self._has_started()
        if running is None or not has_values(x):
            return started, None if running is None else _as(running, x.dtype)
        # a channel and a sample, since either may be 0 in every batch: behind a ReLU, or where samples are padded
        batch = torch.stack((x[:, 0].sum(), x[:1].sum()))
        if in_backward():
            for other, start in reversed(self._starts):
                if torch.equal(other, batch):
                    return start
        start = started.clone(), _as(running, x.dtype, copy=True)
        self._starts.append((batch, start))
        return start

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor, m: Tensor | int, priors: Tensor, values: Tensor) -> None:
        """Move the running mixture towards a batch of m values a channel: mean, biased var (K, C), priors (K,).

        values (K, 1): the number of values with equal weights whose variance is as biased as that of a component, see
        ``equal_values``.
        """
        running = self.running()
        if running is None or (isinstance(m, int) and m == 0):
            return
        # The first batch replaces the arbitrary start: the means name the components for all later batches.
        started, rate = self._has_started(), self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        rates = torch.where(started, mean.new_full((), 0.0 if rate is None else rate), 1.0)
        if rate is None and self.num_batches_tracked is not None:
            rates = 1 / self.num_batches_tracked  # a plain average
        # An empty component has no moments in this batch; it keeps those it had.
        alive = (priors > 0).unsqueeze(1)
        for old, batch in zip(running, (priors, mean, unbiased(var, values)), strict=True):
            moved = old + rates * (batch - old)
            move(old, moved if batch is priors else torch.where(alive, moved, old), type(self).__name__)


def _as(mixture: Mixture, dtype: torch.dtype, copy: bool = False) -> Mixture:
    prior, mean, var = (values.to(dtype, copy=copy) for values in mixture)
    return prior, mean, var
