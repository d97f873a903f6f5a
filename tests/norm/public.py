"""What two public layers compute, written from their published equations, with each of their choices a parameter.

`PublicSwitch`: Luo et al. (2019), eq. (3)-(5), and the layer for images of their program (Switchable-Normalization, as
read at 5472286). `PublicMode`: Deecke et al. (2019), eq. (5)-(8), Algorithms 1-2, and theirs (mn-torch, as read at
8000e58). Images (N, C, H, W) only. Both are differentiated by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PublicSwitch(nn.Module):
    """Switchable norm: the moments of LN and BN are made from those of IN, E[v + m^2] - E[m]^2.

    unbiased: IN's variance is that over L - 1, and LN and BN inherit it. kept: what a batch leaves of the running
    moments, both of which start at 0. moving_average: without it the buffers are plain sums of the means and of the
    second moments, which `average` turns into moments. last_gamma: the scale starts at 0, as at the end of a residual
    block.
    """

    def __init__(
        self,
        channels: int,
        unbiased: bool = True,
        kept: float = 0.9,
        moving_average: bool = True,
        last_gamma: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.unbiased, self.kept, self.moving_average, self.eps = unbiased, kept, moving_average, eps
        self.mean_logits, self.var_logits = (nn.Parameter(torch.ones(3)) for _ in range(2))
        self.weight = nn.Parameter(torch.full((channels,), 0.0 if last_gamma else 1.0))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))  # (N, C)
        var = x.var((2, 3), correction=int(self.unbiased))
        second = var + mean**2

        def over(axis: int) -> tuple[Tensor, Tensor]:
            whole = mean.mean(axis, keepdim=True)
            return whole, second.mean(axis, keepdim=True) - whole**2

        batch = over(0) if self.training else (self.running_mean, self.running_var)
        if self.training:
            self.move(*(value.detach()[0] for value in batch))
        means, variances = zip((mean, var), over(1), batch, strict=True)
        m, v = (
            sum(ratio * value for ratio, value in zip(logits.softmax(0), values, strict=True))
            for logits, values in ((self.mean_logits, means), (self.var_logits, variances))
        )
        x_hat = (x - m[..., None, None]) / (v + self.eps).sqrt()[..., None, None]
        return self.weight[:, None, None] * x_hat + self.bias[:, None, None]

    def move(self, mean: Tensor, var: Tensor) -> None:
        if self.moving_average:
            for running, new in ((self.running_mean, mean), (self.running_var, var)):
                running.mul_(self.kept).add_((1 - self.kept) * new)
        else:
            self.running_mean.add_(mean)
            self.running_var.add_(mean**2 + var)

    def average(self, batches: int) -> None:
        """The paper's batch average: from sums over so many batches to moments."""
        self.running_mean.div_(batches)
        self.running_var.div_(batches).sub_(self.running_mean**2)


class PublicMode(nn.Module):
    """Mode normalization with a running mean of x and one of x^2 for each mode, from 0, moved by ``rate``."""

    def __init__(self, channels: int, num_modes: int = 2, rate: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.rate, self.eps = rate, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.gate = nn.Linear(channels, num_modes)
        nn.init.normal_(self.gate.weight, 1 / num_modes, 0.01)
        self.register_buffer("first", torch.zeros(num_modes, channels))
        self.register_buffer("second", torch.zeros(num_modes, channels))

    def running_moments(self) -> tuple[Tensor, Tensor]:
        return self.first, self.second - self.first**2

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x.mean((2, 3))).softmax(1)  # (N, K)
        share = gates / gates.sum(0)

        def expected(values: Tensor) -> Tensor:
            return torch.einsum("nk,nchw->kc", share, values) / values[0, 0].numel()

        mean, var = self.running_moments()
        if self.training:
            mean = expected(x)
            var = torch.stack([expected((x - m[:, None, None]).square())[k] for k, m in enumerate(mean)])
            for running, power in ((self.first, 1), (self.second, 2)):
                running.mul_(1 - self.rate).add_(self.rate * expected(x**power).detach())
        y = sum(
            g[:, None, None, None] * (x - m[:, None, None]) / (v + self.eps).sqrt()[:, None, None]
            for g, m, v in zip(gates.t(), mean, var, strict=True)
        )
        return self.weight[:, None, None] * y + self.bias[:, None, None]
