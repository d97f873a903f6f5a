"""What a new layer costs: a class of about 30 lines and a row. Everything else finds it by what it can do."""

from functools import partial

import pytest
import test_layers
import torch
from cases import GRADIENTS, IDS, assert_same, cases, double
from torch import nn

import cnlib
from cnlib.norm.arithmetic import channelwise, wide_type
from cnlib.norm.batch import BATCH, normalize_groups
from cnlib.norm.checks import check_context, check_input
from cnlib.norm.layer import Norm
from cnlib.norm.processes import group_of
from cnlib.norm.registry import NORMS, Entry


class ScaledBatchNorm(Norm):
    """Batch normalization, and a learned scale for each channel and context of a sample: x (N, C, *), ids (N,)."""

    def __init__(
        self, num_features, num_contexts, eps=1e-5, momentum=0.1, gradient="manual", *, device=None, dtype=None
    ):
        super().__init__(num_features, eps, momentum, True, True, gradient, device, dtype)
        self.scale = nn.Parameter(torch.zeros(num_contexts, num_features, device=device, dtype=dtype))
        self.given_ids = None
        self.synchronized, self.process_group = False, None

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "scale"):
            nn.init.zeros_(self.scale)

    def forward(self, x, context=None):
        check_input(x, self.num_features, "ScaledBatchNorm")
        ids = self.given_ids if context is None else context
        ids = check_context(ids, x, len(self.scale), "ScaledBatchNorm")
        if self.training:
            run = partial(normalize_groups, eps=self.eps, gradient=self.gradient, group=group_of(self))
            y, mean, var, m = run(x, self.num_features, BATCH, self.weight, self.bias)
            if self.track_running_stats:
                self.update_running(mean[0], var[0], m)
        else:
            y = self.normalize_running(x)
        scale = 1 + channelwise(self.scale[ids], wide_type(x), (*x.shape[:2], *(1,) * (x.dim() - 2)))
        return (y * scale).to(x.dtype)


@pytest.fixture(autouse=True)
def row(monkeypatch):
    monkeypatch.setitem(NORMS, "scaled", Entry("scaled BN", ScaledBatchNorm, lambda c: {"num_contexts": 3}))


CONTRACT = [
    (getattr(test_layers, name), options)
    for name, options in {
        "test_types": [{"dtype": t, "gradient": g} for t in (torch.bfloat16, torch.float64) for g in GRADIENTS],
        "test_autocast_leaves_statistics_wide": [{}],
        "test_half_parameters_still_compute_wide": [{}],
        "test_memory_formats": [{"memory_format": f} for f in (torch.channels_last, torch.channels_last_3d)],
        "test_state_copies": [{}],
        "test_repr_names_the_sizes": [{}],
        "test_meta_device": [{}],
        "test_built_on_a_device_in_a_type": [{}],
    }.items()
    for options in options
]


@pytest.mark.parametrize(("test", "options"), CONTRACT)
def test_the_row_buys_the_contract_tests(test, options):
    ((make, extra),) = cases(["scaled"]).values()
    assert extra == (IDS,)
    test(make, extra, **options)


def model():
    torch.manual_seed(0)
    built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return cnlib.convert(built, {"1": lambda c: cnlib.norm.create("scaled", c)})


X = double((4, 3, 6, 6), 0).float()


def test_create_and_convert_know_it():
    assert isinstance(model()[1], ScaledBatchNorm)
    assert isinstance(cnlib.convert(model(), {"*": cnlib.BatchNorm})[1], cnlib.BatchNorm)
    with pytest.raises(ValueError, match="ScaledBatchNorm of cnlib has them on axis 1"):
        cnlib.convert(nn.Sequential(nn.LayerNorm(4)), {"0": lambda c: cnlib.norm.create("scaled", c)})


def test_use_context_and_synchronize_reach_it(tmp_path):
    net = model()
    nn.init.normal_(net[1].scale)
    with cnlib.use_context(net, IDS):
        inside = net(X)
    assert_same(inside, net[2](net[1](net[0](X), IDS)))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert cnlib.synchronize(net)[1].synchronized
    finally:
        torch.distributed.destroy_process_group()


def test_its_statistics_can_be_frozen_and_taken_anew():
    net = model()
    before = net[1].running_mean.clone()
    with cnlib.frozen(net), cnlib.use_context(net, IDS):
        net(X)
    assert torch.equal(net[1].running_mean, before)
    cnlib.reestimate(net, [(X[:3], IDS[:3]), (X[3:], IDS[3:])])
    z = net[0](X).detach()
    assert_same(net[1].running_mean, z.mean((0, 2, 3)))
    assert_same(net[1].running_var, z.transpose(0, 1).flatten(1).var(1))
