"""What goes into the norm layer under test and what comes out, a context at a time: does it normalize?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnlib.norm import ContextNorm
from cnlib.training import distributed


class Observer:
    """Moments of a layer's input and output over all samples and positions seen, for each context and channel.

    layer: a norm layer called with (N, C) or (N, C, *). Set `ids` (N,) before each call; None counts all samples as one
    context. Moments of a sample are around its own mean, and samples are added up in float64: a spread that is small
    beside the mean is not lost.
    """

    def __init__(self, layer: nn.Module, num_contexts: int) -> None:
        self.layer, self.num_contexts = layer, num_contexts
        self.ids: Tensor | None = None
        self.count = torch.zeros(num_contexts, dtype=torch.float64)
        self.sums: Tensor | None = None

    def __enter__(self) -> Observer:
        self.handle = self.layer.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = (t.detach().float().reshape(*t.shape[:2], -1) for t in (inputs[0], output))
        ids = torch.zeros(len(x), dtype=torch.long) if self.ids is None else self.ids.cpu()
        found = [[m.cpu().double() for m in torch.var_mean(t, 2, correction=0)] for t in (x, y)]
        rows = torch.stack([moment for var, mean in found for moment in (mean, var + mean.square())], 1) * x.shape[2]
        sums = rows.new_zeros(self.num_contexts, *rows.shape[1:]).index_add_(0, ids, rows)  # (T, 4, C)
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += ids.bincount(minlength=self.num_contexts) * x.shape[2]

    def summary(self) -> dict[str, list[float]]:
        """One number a context, NaN where a context was not seen; the rms is over channels.

        output_mean: rms of the output's mean; output_std: rms of its standard deviation (0 and 1: normalized).
        ContextNorm also has mean_gap, rms of (mu - mean of its input) / std of its input, and std_ratio, the geometric
        mean of sigma / std of its input: 0 and 1 where it learned the true moments.
        """
        seen = [part for part in distributed.from_all((self.sums, self.count)) if part[0] is not None]
        if not seen:
            raise ValueError("nothing seen: call the layer inside `with Observer(layer, T):`")
        sums, count = (torch.stack(parts).sum(0) for parts in zip(*seen, strict=True))
        m1, m2, n1, n2 = (sums / count[:, None, None]).unbind(1)
        std, out = ((b - a.square()).clamp_min(0).sqrt() for a, b in ((m1, m2), (n1, n2)))
        found = {"output_mean": _rms(n1), "output_std": _rms(out)}
        if isinstance(self.layer, ContextNorm):
            with torch.no_grad():
                mu, var = (t.cpu().double() for t in self.layer.moments())
            found["mean_gap"] = _rms((mu - m1) / std)
            found["std_ratio"] = (0.5 * var.log() - std.log()).mean(1).exp()
        return {key: value.tolist() for key, value in found.items()}


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt()
