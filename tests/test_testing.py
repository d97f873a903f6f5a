"""check_norm finds nothing in a correct layer, and in a faulty one what is wrong with it."""

from unittest import SkipTest

import pytest
import torch
from torch import nn

import cnlib
from cnlib.testing import CHECKS, Failure, Pair, check_norm


class AnyRank(nn.modules.batchnorm._BatchNorm):
    """torch's batch norm for x of any rank; takes, and leaves aside, what a mixture norm is called with."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x, *extra):
        return super().forward(x)


class StartsFromData(AnyRank):
    """The running statistics begin as those of the first batch, as mixture norm's do."""

    def forward(self, x, *extra):
        self.momentum = 0.1 if self.num_batches_tracked else 1.0
        return super().forward(x)


class PlainContext(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mean, self.log_var = (nn.Parameter(torch.zeros(3, channels)) for _ in range(2))

    def forward(self, x, ids):
        mean, var = (row[ids].view(*x.shape[:2], *(1,) * (x.dim() - 2)) for row in (self.mean, self.log_var.exp()))
        return ((x - mean) / (var + 1e-5).sqrt()).to(x.dtype)


class PlainSwitch(nn.Module):
    """Switchable norm as its public code has it, with biased variances: three copies of each moment."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean_logits, self.var_logits = (nn.Parameter(torch.ones(3)) for _ in range(2))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        values = x.reshape(*x.shape[:2], -1).to(torch.promote_types(x.dtype, self.weight.dtype))
        if values.shape[0] * values.shape[2] == 1 and self.training:
            raise ValueError("one value")
        both = [(values.mean(axes, keepdim=True), values.var(axes, keepdim=True, correction=0)) for axes in (2, (1, 2))]
        if self.training:
            m = values.shape[0] * values.shape[2]
            mean, var = values.mean((0, 2)), values.var((0, 2), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var * m / (m - 1), 0.1)
        else:
            mean, var = self.running_mean, self.running_var
        both.append((mean[:, None], var[:, None]))
        w, u = self.mean_logits.softmax(0), self.var_logits.softmax(0)
        mean, var = (sum(r[k] * both[k][i] for k in range(3)) for i, r in enumerate((w, u)))
        y = (values - mean) / (var + 1e-5).sqrt() * self.weight[:, None] + self.bias[:, None]
        return y.reshape(x.shape).to(x.dtype)


def one_mode(channels):
    return cnlib.ModeNorm(channels, 1)


def one_normalizer(channels):
    return cnlib.ExemplarNorm(channels, normalizers=("bn",))


def with_parameters_of(make, reference):
    """The reference, and beside its weight and bias what else the layer has, which is to change nothing."""

    def build(channels):
        layer = reference(channels)
        for i, parameter in enumerate([*make(channels).parameters()][2:]):
            layer.register_parameter(f"unused{i}", nn.Parameter(parameter.detach().clone()))
        return layer

    return build


class Plain(nn.Module):
    """A correct batch norm. What an heir may get wrong is a method."""

    def __init__(self, channels, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.keep(torch.zeros(channels), torch.ones(channels))

    def keep(self, mean, var):
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)

    def uses_the_batch(self):
        return self.training

    def widen(self, x):
        return x.float() if x.dtype == torch.float16 else x

    def axes(self, x):
        return (0, *range(2, x.dim()))

    def refuse(self, x):
        if x.numel() == x.shape[1]:
            raise ValueError("one value per channel")

    def moments(self, x):
        return x.mean(self.axes(x), keepdim=True), x.var(self.axes(x), correction=0, keepdim=True)

    def unbiased(self, var, x):
        m = x.numel() // var.numel()
        return var * m / (m - 1)

    @torch.no_grad()
    def remember(self, mean, var):
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(new.flatten().to(running), self.momentum)

    def root(self, var):
        return (var + 1e-5).sqrt()

    def forward(self, x):
        wide, shape = self.widen(x), (1, -1) + (1,) * (x.dim() - 2)
        if self.uses_the_batch():
            self.refuse(x)
            mean, var = self.moments(wide)
            self.remember(mean, self.unbiased(var, wide))
        else:
            mean, var = self.running_mean.view(shape), self.running_var.view(shape)
        x_hat = (wide - mean) / self.root(var)
        return (x_hat * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class PlainLayer(Plain):
    def axes(self, x):
        return tuple(range(1, x.dim()))

    def uses_the_batch(self):
        return True

    def nothing(self, *_):
        pass

    keep = refuse = remember = nothing


class BornLate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.ModuleList()

    def forward(self, x):
        if not self.layers:
            self.layers.append(Plain(x.shape[1]).to(x.dtype))
        return self.layers[0](x)


def fault(base=Plain, **methods):
    return type("Faulty", (base,), methods)


def homeless(self, mean, var):
    self.running_mean, self.running_var = mean, var


def on_the_graph(self, mean, var):
    self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean.flatten()
    self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var.flatten()


def one_pass(self, x):
    mean, square = x.mean(self.axes(x), keepdim=True), x.square().mean(self.axes(x), keepdim=True)
    return mean, square - mean.square()


def bessel(self, x):
    return x.mean(self.axes(x), keepdim=True), x.var(self.axes(x), keepdim=True)


def deviation(self, x):
    return x.mean(self.axes(x), keepdim=True), x.std(self.axes(x), correction=0, keepdim=True)


def divided_twice(self, x):
    weights = torch.ones_like(x) / (x.numel() // x.shape[1])
    mean = (weights * x).mean(self.axes(x), keepdim=True)
    return mean, (weights * (x - mean).square()).mean(self.axes(x), keepdim=True)


def constants(self, x):
    with torch.no_grad():
        return Plain.moments(self, x)


def outside(self, var):
    return var.sqrt() + 1e-5


def same_var(self, var, x):
    return var


def one_position(self, mean, var):
    Plain.remember(self, *(value.flatten(2)[..., 0] if value.dim() > 2 else value for value in (mean, var)))


def unbiased_but_one(self, var, x):
    return Plain.unbiased(self, var, x) if x.numel() > x.shape[1] else var


def layer_reference(channels):
    return nn.GroupNorm(1, channels)


FAULTS = {
    "mode": (fault(uses_the_batch=lambda self: torch.is_grad_enabled()), AnyRank, {"mode"}),
    "no buffers": (fault(keep=homeless), AnyRank, {"reload"}),
    "other momentum": (lambda c: Plain(c, momentum=0.9), AnyRank, {"running"}),
    "on the graph": (fault(remember=on_the_graph), AnyRank, {"graph"}),
    "never updated": (fault(remember=lambda self, mean, var: None), AnyRank, {"running"}),
    "born late": (BornLate, AnyRank, {"reload"}),
    "one pass": (fault(moments=one_pass), AnyRank, {"float32"}),
    "unbiased in the output": (fault(moments=bessel, unbiased=same_var), AnyRank, {"output", "axes"}),
    "biased in memory": (fault(unbiased=same_var), AnyRank, {"running"}),
    "deviation for variance": (fault(moments=deviation), AnyRank, {"output", "axes", "running"}),
    "deviation for variance, layer norm": (fault(PlainLayer, moments=deviation), layer_reference, {"output", "axes"}),
    "epsilon outside": (fault(root=outside), AnyRank, {"flat"}),
    "epsilon outside, layer norm": (fault(PlainLayer, root=outside), layer_reference, {"flat"}),
    "half": (fault(widen=lambda self, x: x), AnyRank, {"half"}),
    "one value": (fault(refuse=lambda self, x: None, unbiased=unbiased_but_one), AnyRank, {"one"}),
    "constants": (fault(moments=constants), AnyRank, {"gradient"}),
    "one axis short": (fault(axes=lambda self, x: (0,), remember=one_position), AnyRank, {"axes"}),
    "divided twice": (fault(moments=divided_twice), AnyRank, {"output", "axes", "running"}),
    "statistics where there should be none": (
        lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
        nn.InstanceNorm2d,
        {"output"},
    ),
}


def failed(*args, **options):
    return {failure.check for failure in check_norm(*args, **options)}


@pytest.mark.parametrize(("make", "reference", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_fails_its_checks_and_no_other(make, reference, expected):
    assert failed(make, reference) == expected


def test_every_check_can_fail():
    assert set().union(*(expected for *_, expected in FAULTS.values())) == set(CHECKS)


def ids(x):
    return (torch.arange(len(x)) % 3,)


def ones(x):
    return (x.new_ones(len(x), 1),)


OURS = {
    "BatchNorm, any rank": (cnlib.BatchNorm, AnyRank),
    "BatchNorm, 1d": (cnlib.BatchNorm, nn.BatchNorm1d),
    "BatchNorm, 2d": (cnlib.BatchNorm, nn.BatchNorm2d),
    "BatchNorm, autograd": (lambda c: cnlib.BatchNorm(c, gradient="autograd"), nn.BatchNorm2d),
    "BatchNorm, bare": (
        lambda c: cnlib.BatchNorm(c, affine=False, track_running_stats=False),
        lambda c: nn.BatchNorm2d(c, affine=False, track_running_stats=False),
    ),
    "LayerNorm": (cnlib.LayerNorm, layer_reference),
    "LayerNorm, vectors": (cnlib.LayerNorm, nn.LayerNorm),
    "GroupNorm": (lambda c: cnlib.GroupNorm(2, c), lambda c: nn.GroupNorm(2, c)),
    "InstanceNorm": (cnlib.InstanceNorm, nn.InstanceNorm2d),
    "InstanceNorm, running": (
        lambda c: cnlib.InstanceNorm(c, affine=True, track_running_stats=True),
        lambda c: nn.InstanceNorm1d(c, affine=True, track_running_stats=True),
    ),
    "MixtureNorm, EM": (lambda c: cnlib.MixtureNorm(c, 1), StartsFromData),
    "MixtureNorm, given": (lambda c: cnlib.MixtureNorm(c, 1), StartsFromData, ones),
    "ContextNorm": (lambda c: cnlib.ContextNorm(c, 3), PlainContext, ids),
    "SwitchableNorm": (cnlib.SwitchableNorm, PlainSwitch),
    "ExemplarNorm, one normalizer": (one_normalizer, with_parameters_of(one_normalizer, AnyRank)),
    "ModeNorm, one mode": (one_mode, with_parameters_of(one_mode, StartsFromData)),
}


@pytest.mark.parametrize("arguments", OURS.values(), ids=OURS)
def test_our_layers_fail_nothing(arguments):
    assert check_norm(*arguments) == []


@pytest.mark.parametrize("reference", [nn.BatchNorm1d, nn.BatchNorm3d, nn.InstanceNorm1d, layer_reference])
def test_torch_fails_nothing_against_itself(reference):
    assert check_norm(reference, reference) == []


def test_parameters_of_other_names_and_shapes():
    class Images(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels, affine=False)
            self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
            self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

        def forward(self, x):
            return (super().forward(x) * self.gamma + self.beta).to(x.dtype)

    assert check_norm(Images, nn.BatchNorm2d) == []
    assert failed(lambda c: nn.BatchNorm2d(c, affine=False), nn.BatchNorm2d) == set(CHECKS)


def test_another_axis_for_the_context_is_found():
    class WrongEnd(PlainContext):
        def forward(self, x, ids):
            mean, var = (row[ids].view(len(x), *(1,) * (x.dim() - 2), -1) for row in (self.mean, self.log_var.exp()))
            return ((x - mean) / (var + 1e-5).sqrt()).to(x.dtype)

    assert failed(WrongEnd, PlainContext, extra=ids) == {"axes"}


def test_an_output_of_another_shape_or_type_is_found():
    assert "output" in failed(lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.Flatten()), nn.BatchNorm2d)
    assert "half" in failed(fault(forward=lambda self, x: Plain.forward(self, x.float())), AnyRank)


def test_an_exception_is_a_failure_with_its_text():
    class Broken(nn.BatchNorm2d):
        def forward(self, x):
            raise KeyError("no such thing")

    failures = check_norm(Broken, nn.BatchNorm2d)
    assert {failure.check for failure in failures} == set(CHECKS)
    assert str(failures[0]) == "output: KeyError: 'no such thing'"
    assert str([Failure("one", "a"), Failure("two", "b")]) == "[one: a, two: b]"


def test_a_check_can_be_run_alone():
    CHECKS["mode"](Pair(cnlib.BatchNorm, nn.BatchNorm2d))
    with pytest.raises(AssertionError, match="the output in training under no_grad is off by"):
        CHECKS["mode"](Pair(FAULTS["mode"][0], AnyRank))
    with pytest.raises(SkipTest, match="no running statistics"):
        CHECKS["running"](Pair(cnlib.LayerNorm, layer_reference))
    with pytest.raises(SkipTest, match="vectors only"):
        CHECKS["axes"](Pair(cnlib.LayerNorm, nn.LayerNorm))


def test_the_tolerance_is_the_callers():
    rough = fault(root=lambda self, var: (var + 1e-2).sqrt())
    assert failed(rough, AnyRank) == {"output", "axes", "running"}
    assert failed(rough, AnyRank, tolerance=0.05) == set()


def test_arguments_of_no_use_are_refused():
    with pytest.raises(TypeError, match="returned a Tensor, expected a new nn.Module"):
        check_norm(torch.zeros, nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"the reference takes no x .*missing 1 required positional"):
        check_norm(PlainContext, PlainContext)


def test_the_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    check_norm(lambda c: cnlib.MixtureNorm(c, 1), StartsFromData)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_under_no_grad_the_answer_is_the_same():
    with torch.no_grad():
        assert check_norm(cnlib.BatchNorm, nn.BatchNorm2d) == []
        assert failed(FAULTS["constants"][0], AnyRank) == {"gradient"}
