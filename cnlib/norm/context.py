"""Context normalization (Faye et al. 2023), eq. (5)-(7) of the French CN paper, (8)-(9) of the ICDM paper.

Chapter 6. The printed gradient with respect to the variance is wrong in both papers; see the errata page.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnlib.norm.arithmetic import affine_, channelwise, flatten, narrow, no_autocast, product_, wide_type, widen
from cnlib.norm.calling import by_hand, drop_in
from cnlib.norm.checks import check_context, check_eps, check_gradient, check_input, check_moments, check_positive
from cnlib.norm.gaussians import posterior
from cnlib.norm.given import given
from cnlib.norm.mixture import normalize_mixture

ENCODERS = ("table", "linear", "embedder")
INFERENCE = ("cn", "cn+", "average")
STARTS = ("identity", "glorot")


def context_standardize(
    x: Tensor, context: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Eq. (5) / (8) and an affine map. x: (N, C, L); context: (N,); mean, var: (T, C); weight, bias: (C,)."""
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    centered = widen(x) - rows(mean, context)
    return narrow(affine_(centered, rows(scale, context), None if bias is None else bias[:, None]), x.dtype)


def rows(table: Tensor, context: Tensor) -> Tensor:
    """The row of a (T, C) table each sample's context names: (N, C, 1)."""
    return table.index_select(0, context).unsqueeze(2)


def by_context(values: Tensor, context: Tensor, num_contexts: int) -> Tensor:
    """Sum the (N, D) rows of each context: (T, D). onehot(r)^T values, the adjoint of ``rows``.

    A matrix product, where index_add would depend on the order in which threads arrive.
    """
    onehot = context == torch.arange(num_contexts, device=context.device)[:, None]
    with no_autocast(values):
        return onehot.to(values.dtype) @ values


class ContextStandardize(torch.autograd.Function):
    """``context_standardize`` with its gradient by hand. With h = g (v_r + eps)^(-1/2), and sums over the samples of
    context r and their positions (times weight, where there is one):

        dl/dx   = h
        dl/dm_r = - sum h
        dl/dv_r = - 1/2 sum h (x - m_r) / (v_r + eps)

    Both papers print (m_r + x) / (2 (v_r + eps)^(3/2)) for the last: without dl/dx-hat, and with the wrong sign of x.
    """

    @staticmethod
    def forward(ctx, x, context, mean, var, weight, bias, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, context, mean, var, weight)
        ctx.eps = eps
        return context_standardize(x, context, mean, var, weight, bias, eps)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, context, mean, var, weight = ctx.saved_tensors
        rstd = (var + ctx.eps).rsqrt()  # (T, C)
        r = rows(rstd, context)  # (N, C, 1)
        h = widen(g) * r  # (N, C, L)
        # a sample has one context, so its positions can be summed first
        sum_h = h.sum(2)  # (N, C)
        sum_hc = product_(widen(x) - rows(mean, context), h).sum(2)  # (N, C)
        d_weight = sum_hc.sum(0) if ctx.needs_input_grad[4] else None  # (C,)
        d_bias = (sum_h / r[:, :, 0]).sum(0) if ctx.needs_input_grad[5] else None  # (C,)
        if weight is not None:
            h, sum_h, sum_hc = h * weight[:, None], sum_h * weight, sum_hc * weight
        sum_h, sum_hc = by_context(torch.cat((sum_h, sum_hc), 1), context, len(mean)).chunk(2, 1)  # (T, C)
        d_mean, d_var = -sum_h, -0.5 * rstd**2 * sum_hc  # (T, C)
        return narrow(h, x.dtype), None, d_mean, d_var, d_weight, d_bias, None


def normalize_context(
    x: Tensor,
    context: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gradient: str,
) -> Tensor:
    """``context_standardize`` on (N, C, *) inputs in any floating type."""
    dtype = wide_type(x)
    mean, var = mean.to(dtype), var.to(dtype)
    weight, bias = (channelwise(values, dtype, (-1,)) for values in (weight, bias))
    run = ContextStandardize.apply if by_hand(gradient) else context_standardize
    return run(flatten(x), context, mean, var, weight, bias, eps).reshape(x.shape)


def context_norm(
    x: Tensor, context: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5, gradient: str = "manual"
) -> Tensor:
    """(x - mean_r) / sqrt(var_r + eps) with the mean and variance of each sample's context r.

    x: (N, C) or (N, C, *); context: (N,) integer ids in [0, T); mean, var: (T, C), learned or given.
    An affine map per context: nothing here looks at the batch. Returns the shape and type of x.
    Raises ValueError / TypeError for a wrong shape, a negative variance, a missing or out-of-range id.
    Source: eq. (5), French paper; (8), ICDM paper.
    """
    check_input(x, None, "context_norm")
    check_moments(mean, var, x.shape[1], "context_norm")
    context = check_context(context, x, mean.shape[0], "context_norm")
    return normalize_context(x, context, mean, var, None, None, check_eps(eps), check_gradient(gradient))


def context_norm_plus(x: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5, gradient: str = "manual") -> Tensor:
    """CN+: mixture normalization under the learned Gaussians of all T contexts, with priors 1/T.

    x: (N, C) or (N, C, *); mean, var: (T, C). tau_r(x) is formed in log space over the channel vector at each
    position; the moments are those of the batch under tau. Source: eq. (7), French paper; (9), ICDM paper.
    """
    check_input(x, None, "context_norm_plus")
    check_moments(mean, var, x.shape[1], "context_norm_plus")
    priors = x.new_full((mean.shape[0],), 1 / mean.shape[0], dtype=wide_type(x))
    tau = posterior(x, priors, mean, var, check_gradient(gradient))
    return normalize_mixture(x, tau, priors, None, None, check_eps(eps), gradient)[0]


def average_map(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and variance (1, C) with which context norm is the plain average of its maps of all T contexts.

    The mean over r of (x - m_r) s_r, with s_r = (v_r + eps)^(-1/2), is (x - m) s with s = E[s_r], m = E[m_r s_r] / s.
    """
    scale = (var + eps).rsqrt()  # (T, C)
    whole = scale.mean(0, keepdim=True)  # (1, C)
    return (mean * scale).mean(0, keepdim=True) / whole, (whole.square().reciprocal() - eps).clamp_min(0)


class ContextNorm(nn.Module):
    """Context normalization over (N, C) or (N, C, *) inputs, one context id a sample.

    forward(x, context): context (N,) integer ids in [0, num_contexts); without it, the one set by
    ``cnlib.use_context``. Mean and log variance of each context are learned as weights are. sigma^2 = exp(s) stays
    positive where the papers' affine form (eq. (6)) need not.

    encoder: how (mean, log variance) follow from the one-hot id r.
        "table"     a row of a table (Adaptive Context Normalization, ACN)
        "linear"    W r + b (French paper, eq. (6); ACN-base)
        "embedder"  W (W_r r + b_r) + b through a shared embedding (ICDM paper, Algorithm 1)
    start: "identity" is mean 0 and variance 1 in every context. "glorot" is the authors' programs' random start: means
    and log standard deviations uniform in +-sqrt(6 / (T + C)), so that contexts differ before training; with an encoder
    all its weights are drawn so, by their own sizes, and biases are 0. ``start_from`` starts from data.
    inference: "cn" normalizes with the sample's own context, "cn+" with all contexts as a mixture and no id
    (Algorithm 3), "average" with the average of all contexts' maps, which needs no id either and no batch (ours); only
    read in eval mode. affine: a per-channel scale and shift after it; bias: whether with the shift.

    CN-Channels is this layer on images, ``ContextNorm(3, T)`` on (N, 3, H, W); CN-Patches is this layer on
    patches or their embeddings, ``ContextNorm(D, T)`` on (N, D, patches).
    Source: Algorithms 1-3 of both papers; eq. (5)-(7), French paper; (8)-(9), ICDM paper.
    """

    def __init__(
        self,
        num_features: int,
        num_contexts: int,
        eps: float = 1e-5,
        encoder: str = "table",
        affine: bool = False,
        gradient: str = "manual",
        *,
        start: str = "identity",
        embedding_dim: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_features, num_contexts = check_positive(num_features=num_features, num_contexts=num_contexts)
        for name, value, known in (("encoder", encoder, ENCODERS), ("start", start, STARTS)):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {known}")
        self.num_features, self.num_contexts, self.eps = num_features, num_contexts, check_eps(eps)
        self.encoder, self.start, self.affine, self.gradient = encoder, start, affine, check_gradient(gradient)
        width = num_features if embedding_dim is None else embedding_dim
        (self.embedding_dim,) = check_positive(embedding_dim=width)
        self.inference = "cn"
        # both are set by cnlib.use_context: the layer's place in its model, and the ids of the batch
        self.name = ""
        self.given_ids: Tensor | None = None
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **at)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **at)) if affine and bias else None
        if encoder == "table":
            self.mean = nn.Parameter(torch.empty(num_contexts, num_features, **at))
            self.log_var = nn.Parameter(torch.empty(num_contexts, num_features, **at))
        else:
            width = num_contexts
            if encoder == "embedder":
                self.embedder = nn.Linear(num_contexts, self.embedding_dim, **at)
                width = self.embedding_dim
            self.mean_encoder = nn.Linear(width, num_features, **at)
            self.log_var_encoder = nn.Linear(width, num_features, **at)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mean and variance of each context as ``start`` says; affine map 1 and 0."""
        if self.encoder == "embedder" and self.start == "identity":
            # not 0: the encoders behind it could not tell contexts apart
            self.embedder.reset_parameters()
        for name, parameter in self.named_parameters():
            if self.start == "glorot" and parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
                if name.startswith("log_var"):
                    # drawn is the log of a standard deviation
                    with torch.no_grad():
                        parameter.mul_(2)
            elif not (name.startswith("embedder") and self.start == "identity"):
                nn.init.constant_(parameter, 1.0 if name == "weight" else 0.0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every context, (T, C) each, in float32 at least."""
        mean, log_var = self._encode()
        return mean, log_var.exp()

    def _encode(self) -> tuple[Tensor, Tensor]:
        mean: Tensor
        log_var: Tensor
        if self.encoder == "table":
            mean, log_var = self.mean, self.log_var
        elif self.encoder == "linear":
            # W onehot(r) + b for all r at once: the columns of W, plus b
            mean = self.mean_encoder.weight.t() + self.mean_encoder.bias
            log_var = self.log_var_encoder.weight.t() + self.log_var_encoder.bias
        else:
            with no_autocast(self.embedder.weight):
                alpha = self.embedder.weight.t() + self.embedder.bias
                mean, log_var = self.mean_encoder(alpha), self.log_var_encoder(alpha)
        return widen(mean), widen(log_var)

    @torch.no_grad()
    def start_from(self, x: Tensor, context: Tensor) -> None:
        """Set mean and variance of each context present to those of a first batch; eps is in the variance.

        x: (N, C) or (N, C, *), context: (N,). Contexts without two values keep theirs. Raises ValueError where the
        encoder cannot give these moments: an embedding of E numbers reaches any E + 1 contexts, and not more.
        """
        check_input(x, self.num_features, self._name_in_errors())
        context = check_context(context, x, self.num_contexts, self._name_in_errors())
        flat = flatten(widen(x))
        mean, log_var = (value.clone() for value in self._encode())
        for r in context.unique().tolist():
            values = flat[context == r].transpose(0, 1).flatten(1)
            if values.shape[1] > 1:
                spread, center = torch.var_mean(values, 1, correction=0)
                mean[r], log_var[r] = center, (spread + self.eps).log()
        if self.encoder == "table":
            self.mean.copy_(mean)
            self.log_var.copy_(log_var)
            return
        solved = [self._solve(mean), self._solve(log_var)]
        for encoder, (weight, bias) in zip((self.mean_encoder, self.log_var_encoder), solved, strict=True):
            encoder.weight.copy_(weight)
            encoder.bias.copy_(bias)

    def _solve(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of an encoder that gives target (T, C)."""
        if self.encoder == "linear":
            return target.t(), torch.zeros_like(target[0])
        alpha = (self.embedder.weight.t() + self.embedder.bias).double()
        alpha = torch.cat((alpha, torch.ones_like(alpha[:, :1])), 1)
        solution = torch.linalg.pinv(alpha) @ target.double()
        if not torch.allclose(alpha @ solution, target.double(), rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"{self._name_in_errors()}: an embedding of {self.embedding_dim} numbers cannot give the moments of "
                f"{self.num_contexts} contexts; use embedding_dim={self.num_contexts - 1} or more, or encoder='linear'"
            )
        return solution[:-1].t(), solution[-1]

    def _name_in_errors(self) -> str:
        return f"ContextNorm {self.name!r}" if self.name else f"ContextNorm({self.num_features}, {self.num_contexts})"

    @drop_in
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_input(x, self.num_features, self._name_in_errors())
        if self.inference not in INFERENCE:
            raise ValueError(f"{self._name_in_errors()}: inference={self.inference!r}, expected one of {INFERENCE}")
        mean, var = self.moments()
        if not self.training and self.inference == "cn+":
            return self._mixture(x, mean, var)
        if not self.training and self.inference == "average":
            ids = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            mean, var = average_map(mean, var, self.eps)
        else:
            told = given(self, "given_ids") if context is None else context
            ids = check_context(told, x, self.num_contexts, self._name_in_errors())
        return normalize_context(x, ids, mean, var, self.weight, self.bias, self.eps, self.gradient)

    def _mixture(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y, shape = context_norm_plus(x, mean, var, self.eps, self.gradient), (1, -1) + (1,) * (x.dim() - 2)
        weight, bias = (channelwise(values, wide_type(x), shape) for values in (self.weight, self.bias))
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, {self.num_contexts}, eps={self.eps}, encoder={self.encoder!r}, "
            f"affine={self.affine}, start={self.start!r}, inference={self.inference!r}, gradient={self.gradient!r}"
        )
