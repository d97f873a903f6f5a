"""The network of exemplar normalization: a sample's ratios of the normalizers, from what they make of its mean.

EN-sum (Zhang et al. 2020), with its gradient by hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import no_autocast
from cnlib.norm.checks import check_positive

# Everywhere below: q (N, K, C), ratios (N, K), r channels a block, H hidden units.


class Network(NamedTuple):
    """The parameters: filters f (C,), W1 (H, K^2), b1 (H,), W2 (K, H), b2 (K,)."""

    filters: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor


def _hidden(q: Tensor, network: Network, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """z (N, K, C/r), the grouped 1x1 convolution of q; its correlations z z^T (N, K^2); and the hidden units (N, H)."""
    n, k, c = q.shape
    # not unflatten: batched gradients know only reshape
    z = (q * network.filters).reshape(n, k, c // r, r).sum(3)
    correlations = torch.matmul(z, z.transpose(1, 2)).reshape(n, k * k)
    return z, correlations, (torch.matmul(correlations, network.hidden_weight.t()) + network.hidden_bias).tanh()


def ratios_of(q: Tensor, network: Network, r: int) -> Tensor:
    """softmax(W2 tanh(W1 vec(z z^T) + b1) + b2): (N, K), rows sum to 1."""
    with no_autocast(q):
        *_, hidden = _hidden(q, network, r)
        return (torch.matmul(hidden, network.output_weight.t()) + network.output_bias).softmax(1)


def ratios_gradient(d_ratios: Tensor, ratios: Tensor, q: Tensor, network: Network, r: int) -> tuple[Tensor, Network]:
    """dl/dq (N, K, C), and dl/d of each parameter, from dl/dratios (N, K). With h the hidden units, V = z z^T:

    e  = ratio_k (dl/dratio_k - sum_j ratio_j dl/dratio_j)       dl/dW2 = sum_N e h^T        dl/db2 = sum_N e
    p  = (W2^T e) (1 - h^2)                                      dl/dW1 = sum_N p vec(V)^T   dl/db1 = sum_N p
    dl/dV = unvec(W1^T p)       dl/dz = (dl/dV + dl/dV^T) z
    dl/dq = f dl/dz             dl/df = sum_NK q dl/dz           each channel with its block's dl/dz
    """
    with no_autocast(q):
        z, correlations, hidden = _hidden(q, network, r)
        e = ratios * (d_ratios - (ratios * d_ratios).sum(1, keepdim=True))  # (N, K)
        p = torch.matmul(e, network.output_weight) * (1 - hidden.square())  # (N, H)
        d_output, d_hidden = torch.matmul(e.t(), hidden), torch.matmul(p.t(), correlations)  # (K, H), (H, K^2)
        n, k, c = q.shape
        d_v = torch.matmul(p, network.hidden_weight).reshape(n, k, k)  # (N, K, K)
        d_z = torch.matmul(d_v + d_v.transpose(1, 2), z)  # (N, K, C/r)
        d_z = d_z.unsqueeze(3).expand(n, k, c // r, r).reshape(n, k, c)
        d_filters = (d_z * q).sum((0, 1))  # (C,)
        return d_z * network.filters, Network(d_filters, d_hidden, p.sum(0), d_output, e.sum(0))


class RatioNetwork(nn.Module):
    """The parameters of ``ratios_of`` for C channels and K normalizers, H = hidden K.

    block: the channels r that one output of the convolution sees, the largest divisor of C up to ``reduction``.
    """

    def __init__(
        self,
        num_features: int,
        num_normalizers: int,
        reduction: int,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c, k, r, h = check_positive(
            num_features=num_features, num_normalizers=num_normalizers, reduction=reduction, hidden=hidden
        )
        self.hidden_units = h * k
        self.block = next(size for size in range(min(r, c), 0, -1) if c % size == 0)
        shapes = {"filters": (c,), "hidden_weight": (self.hidden_units, k * k), "hidden_bias": (self.hidden_units,)}
        for name, shape in (shapes | {"output_weight": (k, self.hidden_units), "output_bias": (k,)}).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Filters normal with variance 1/r, the hidden layer as in ``nn.Linear``, the output 0: equal ratios."""
        filters, hidden_weight, hidden_bias, *output = self.parameters()
        nn.init.normal_(filters, std=self.block**-0.5)
        for parameter in (hidden_weight, hidden_bias):
            bound = hidden_weight.shape[1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound)
        for parameter in output:
            nn.init.zeros_(parameter)

    def parts(self) -> Network:
        return Network(*self.parameters())

    def extra_repr(self) -> str:
        return f"block={self.block}, hidden_units={self.hidden_units}"
