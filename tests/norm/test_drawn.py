"""Whatever tensor comes: no error but ours, no NaN where a finite answer exists, type and shape kept.

DRAWS=2000 draws as many a layer; the default is a tenth of that.
"""

import math
import os

import pytest
import torch
from cases import GRADIENTS
from torch.nn import functional as torchs

import cnlib
from cnlib import functional as F

DRAWS = int(os.environ.get("DRAWS", "200"))
TYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Draw:
    """Numbers and a tensor x from one seed: ranks 2 to 6, sizes 0 to 7, all floating types, scales 1e-30 to 1e30."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        rank = self.integer(2, 6)
        shape = [self.pick((0, 1, 1, 2, 2, 3, 4, 5, 6, 7)) for _ in range(rank)]
        shape = [min(size, 3) if rank > 4 else size for size in shape]
        shape[1] = max(shape[1], 1)
        scale = 10.0 ** self.pick((self.integer(-30, 30), self.integer(-3, 3)))
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        x = (x + self.pick((0.0, 10 * scale, 1.0))).to(self.pick(TYPES))
        kind = self.integer(0, 5)
        if kind == 0 and rank > 2:
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif kind == 1:
            x = x.repeat_interleave(2, 0)[::2]
        elif kind == 2 and shape[0]:
            x = x[:1].expand(shape)
        elif kind == 3 and x.numel():
            x.view(-1)[0] = self.pick((math.nan, math.inf, -math.inf))
        self.x, self.channels = x.requires_grad_(), shape[1]
        self.gradient, self.training = self.pick(GRADIENTS), self.pick((True, False))
        n = shape[0]
        self.ids = torch.randint(3, (n,), generator=self.generator)
        soft = torch.randn(n, 3, generator=self.generator).softmax(1)
        self.tau = self.pick((soft, torchs.one_hot(soft.argmax(1), 3).float())) if n else soft
        self.priors = self.tau.mean(0) if n else torch.full((3,), 1 / 3)
        self.mean = torch.randn(3, self.channels, generator=self.generator)
        self.var = torch.rand(3, self.channels, generator=self.generator) * 10.0 ** self.integer(-44, 3)

    def integer(self, low, high):
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def pick(self, choices):
        return choices[self.integer(0, len(choices) - 1)]

    def ordinary(self):
        """Whether squares of all values are finite, and so is what comes of them."""
        half = self.x.dtype == torch.float16
        return self.x.numel() == 0 or bool(self.x.isfinite().all() and self.x.abs().max() < (1e2 if half else 1e18))


def layer(make, *given):
    def run(d):
        made = make(d).train(d.training)
        return made(d.x, *(getattr(d, name) for name in given)), list(made.parameters())

    return run


def cn_plus(d):
    made = cnlib.ContextNorm(d.channels, 3, start="glorot", gradient=d.gradient).eval()
    made.inference = "cn+"
    return made(d.x), list(made.parameters())


def random_network(made):
    """An ExemplarNorm whose ratios depend on x."""
    torch.nn.init.normal_(made.network.output_weight)
    return made


def groups(d):
    return d.pick([g for g in range(1, d.channels + 1) if d.channels % g == 0])


RUNS = {
    "bn": layer(lambda d: cnlib.BatchNorm(d.channels, gradient=d.gradient)),
    "ln": layer(lambda d: cnlib.LayerNorm(d.channels, gradient=d.gradient)),
    "in": layer(lambda d: cnlib.InstanceNorm(d.channels, affine=True, gradient=d.gradient)),
    "gn": layer(lambda d: cnlib.GroupNorm(groups(d), d.channels, gradient=d.gradient)),
    "rms": layer(lambda d: cnlib.RMSNorm(d.channels, gradient=d.gradient)),
    "mn": layer(lambda d: cnlib.MixtureNorm(d.channels, 3, gradient=d.gradient)),
    "mn given": layer(lambda d: cnlib.MixtureNorm(d.channels, 3, gradient=d.gradient), "tau"),
    "cn": layer(lambda d: cnlib.ContextNorm(d.channels, 3, start="glorot", gradient=d.gradient), "ids"),
    "cn+": cn_plus,
    "sn": layer(lambda d: cnlib.SwitchableNorm(d.channels, gradient=d.gradient)),
    "mode": layer(lambda d: cnlib.ModeNorm(d.channels, 3, gradient=d.gradient)),
    "mode_norm": lambda d: (F.mode_norm(d.x, d.tau, gradient=d.gradient), []),
    "gated": layer(lambda d: cnlib.GatedContextNorm(d.channels, 3, gradient=d.gradient)),
    "gated, hard": layer(lambda d: cnlib.GatedContextNorm(d.channels, 3, gradient=d.gradient, hard=True)),
    "en": layer(lambda d: random_network(cnlib.ExemplarNorm(d.channels, gradient=d.gradient))),
    "exemplar_norm": lambda d: (F.exemplar_norm(d.x, d.tau, gradient=d.gradient), []),
    "switchable_norm": lambda d: (F.switchable_norm(d.x, *2 * (torch.full((3,), 1 / 3),), gradient=d.gradient), []),
    "batch_norm": lambda d: (F.batch_norm(d.x, gradient=d.gradient), []),
    "mixture_norm": lambda d: (F.mixture_norm(d.x, d.tau, d.priors, gradient=d.gradient), []),
    "context_norm": lambda d: (F.context_norm(d.x, d.ids, d.mean, d.var, gradient=d.gradient), []),
    "context_norm_plus": lambda d: (F.context_norm_plus(d.x, d.mean, d.var, gradient=d.gradient), []),
    "responsibilities": lambda d: (
        F.responsibilities(d.x, torch.full((3,), 1 / 3), d.mean, d.var, gradient=d.gradient),
        [],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_drawn(name):
    answered = 0
    for seed in range(DRAWS):
        d = Draw(seed)
        torch.manual_seed(seed)
        at = f"seed {seed}: {tuple(d.x.shape)}, {d.x.dtype}, {d.gradient}, training {d.training}"
        try:
            y, parameters = RUNS[name](d)
        except ValueError as error:
            assert "expected" in str(error), f"{at}: {error}"
            continue
        answered += 1
        grads = torch.autograd.grad(y.sum(), [d.x, *parameters], allow_unused=True)
        if name != "responsibilities":
            assert y.shape == d.x.shape and y.dtype == d.x.dtype, at
        if d.ordinary():
            assert all(t.isfinite().all() for t in (y, *grads) if t is not None), at
    assert answered > DRAWS / 2


@pytest.mark.parametrize("length", [4095, 4097, 2**16, 2**20, 2**22])
def test_long_inputs_lose_no_digits(length):
    """A volume, or a minute of sound: the error of a variance must not grow with the number of positions."""
    x = torch.rand(1, 4, length, generator=torch.Generator().manual_seed(0)) * 2 + 1
    wide = x.double()
    centered = wide - wide.mean(-1, keepdim=True)
    exact = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    ones, rms = torch.ones(1, 1), wide / wide.square().mean((1, 2), keepdim=True).sqrt()
    answers = {
        "bn": (cnlib.BatchNorm(4)(x), exact),
        "gn": (cnlib.GroupNorm(4, 4)(x), exact),
        "in": (cnlib.InstanceNorm(4)(x), exact),
        "rms": (cnlib.RMSNorm(4)(x), rms),
        "sn": (cnlib.SwitchableNorm(4, normalizers=("in", "bn"))(x), exact),
        "mode": (cnlib.ModeNorm(4, 1)(x), exact),
        "mn given": (cnlib.MixtureNorm(4, 1)(x, ones), exact),
        "mn by position": (cnlib.MixtureNorm(4, 1)(x, torch.ones(1, 1, length)), exact),
    }
    for name, (y, right) in answers.items():
        assert (y.double() - right).abs().max() < 2e-6, name
