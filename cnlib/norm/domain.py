"""Domain-specific batch normalization (Chang et al. 2019): a batch norm of its own for each domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnlib.norm.batch import BatchNorm
from cnlib.norm.checks import check_context, check_input, check_positive
from cnlib.norm.given import given


class DomainBatchNorm(nn.Module):
    """As many `BatchNorm` as there are contexts: each normalizes the samples of its own, and no other sees them.

    forward(x, context): x (N, C) or (N, C, *), context (N,) integer ids in [0, num_contexts), by default the one set by
    `cnlib.use_context`. Running moments, scale and shift are each context's own, so evaluation needs the id, too. It is
    context normalization whose moments are the batch's and not learned; what a context is given in training has to hold
    two values a channel. Raises ValueError / TypeError as ContextNorm and BatchNorm.
    Source: Chang et al. (2019), section 3.
    """

    def __init__(self, num_features: int, num_contexts: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        num_features, num_contexts = check_positive(num_features=num_features, num_contexts=num_contexts)
        self.num_features, self.num_contexts, self.name = num_features, num_contexts, ""
        self.given_ids: Tensor | None = None
        self.norms = nn.ModuleList(BatchNorm(num_features, eps, momentum) for _ in range(num_contexts))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """See the class."""
        who = f"DomainBatchNorm {self.name!r}" if self.name else "DomainBatchNorm"
        check_input(x, self.num_features, who)
        ids = check_context(given(self, "given_ids") if context is None else context, x, self.num_contexts, who)
        groups = [(ids == r).nonzero().squeeze(1) for r in range(self.num_contexts)]
        present = [(norm, rows) for norm, rows in zip(self.norms, groups, strict=True) if len(rows)]
        if not present:
            return x
        y = torch.cat([norm(x[rows]) for norm, rows in present])
        return y[torch.cat([rows for _, rows in present]).argsort()]
