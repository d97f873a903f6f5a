"""convert: norm layers swapped by name, with everything that a layer has."""

import copy
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import assert_same
from torch import nn
from torch.nn.utils import parametrizations, prune

import cnlib

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and every running moment away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name in ("weight", "bias", "running_mean", "running_var"):
                values = getattr(module, name, None)
                if values is not None and values.dim() == 1:
                    values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return model


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


class Rows(nn.Module):
    """What the error for nn.LayerNorm proposes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class TestConvert:
    def model(self):
        deep = nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6))
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), deep)

    def test_by_name(self):
        model = self.model()
        assert cnlib.convert(model, {"2.1": lambda c: cnlib.ContextNorm(c, 3)}) is model
        assert isinstance(model[2][1], cnlib.ContextNorm) and model[2][1].num_features == 6
        assert isinstance(model[1], nn.BatchNorm2d)

    def test_by_pattern_and_the_last_key_wins(self):
        model = cnlib.convert(self.model(), {"*": cnlib.LayerNorm, "1": cnlib.BatchNorm})
        assert isinstance(model[1], cnlib.BatchNorm) and isinstance(model[2][1], cnlib.LayerNorm)

    def test_what_the_layer_learned_comes_along(self):
        model = self.model()
        nn.init.normal_(model[1].weight)
        model(X)
        expected = copy.deepcopy(model).eval()(X)
        cnlib.convert(model.eval(), {"1": cnlib.BatchNorm, "2.1": lambda c: cnlib.GroupNorm(2, c)})
        assert not model[1].training
        assert_same(model(X), expected, atol=1e-5, rtol=1e-5)

    def test_device_and_type_come_along(self):
        model = cnlib.convert(self.model().double(), {"1": lambda c: cnlib.MixtureNorm(c, 2)})
        assert model[1].weight.dtype == torch.float64
        assert int(model[1].num_batches_tracked) == 0

    def test_the_model_itself(self):
        assert isinstance(cnlib.convert(nn.BatchNorm1d(3), {"": cnlib.BatchNorm}), cnlib.BatchNorm)

    @pytest.mark.parametrize("key", ["*", "a.0", "b.0", "b.?"])
    def test_a_shared_layer_is_swapped_under_all_its_names(self, key):
        model = nn.Module()
        model.a = nn.Sequential(nn.BatchNorm1d(3))
        model.b = nn.Sequential(model.a[0], nn.BatchNorm1d(2))
        cnlib.convert(model, {key: cnlib.BatchNorm, "b.1": cnlib.LayerNorm})
        assert isinstance(model.a[0], cnlib.BatchNorm) and model.b[0] is model.a[0]
        assert isinstance(model.b[1], cnlib.LayerNorm)

    def test_torchs_layer_norm_has_its_channels_on_another_axis(self):
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        for factory in (cnlib.LayerNorm, lambda c: cnlib.ContextNorm(c, 3), lambda c: cnlib.MixtureNorm(c, 3)):
            with pytest.raises(ValueError, match="'norm1' is an nn.LayerNorm.*last axis.*axis 1.*Leave this layer out"):
                cnlib.convert(model, {"norm?": factory})
        assert isinstance(model.norm1, nn.LayerNorm)
        cnlib.convert(model, {"norm?": lambda c: nn.Sequential(Transposed(), cnlib.BatchNorm(c), Transposed())})
        x = torch.randn(2, 5, 8)
        assert_same(model.norm2(x), nn.BatchNorm1d(8)(x.flatten(0, 1)).view_as(x), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("key", "factory", "error", "message"),
        [
            ("9", cnlib.BatchNorm, ValueError, "'9'.*'1', '2.1'"),
            ("0", cnlib.BatchNorm, ValueError, "Conv2d"),
            ("1", lambda c: None, TypeError, "NoneType"),
        ],
    )
    def test_errors_leave_the_model_as_it_was(self, key, factory, error, message):
        model = self.model()
        before = [type(m) for m in model.modules()]
        with pytest.raises(error, match=message):
            cnlib.convert(model, {"2.1": cnlib.LayerNorm, key: factory})
        assert [type(m) for m in model.modules()] == before


# options of a layer, ours and torch's alike
OPTIONS: list[dict[str, Any]] = [
    {},
    {"eps": 1e-3, "momentum": 0.01},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    {"affine": True, "track_running_stats": True},
]
PAIRS = [(nn.BatchNorm2d, cnlib.BatchNorm), (nn.InstanceNorm2d, cnlib.InstanceNorm)]
PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def same_layer(old: nn.Module, new: nn.Module, x: torch.Tensor) -> None:
    """Equal numbers and equal running moments, in training and in evaluation."""
    for mode in (True, False):
        old.train(mode), new.train(mode)
        assert_same(new(x), old(x), atol=1e-5, rtol=1e-5)
    for part in PARTS:
        mine, theirs = getattr(new, part, None), getattr(old, part, None)
        assert (mine is None) == (theirs is None), part
        if theirs is not None:
            assert_same(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1].__name__)
@pytest.mark.parametrize("way", ["torch to ours", "ours to torch", "ours to ours", "twice"])
def test_a_layer_of_the_same_method_keeps_everything(pair: tuple, options: dict, way: str) -> None:
    first, *then = {
        "torch to ours": pair,
        "ours to torch": pair[::-1],
        "ours to ours": (pair[1], pair[1]),
        "twice": (pair[0], pair[1], pair[0], pair[1]),
    }[way]
    x = torch.randn(4, 3, 2, 5) * 3 + 1
    old = drawn(first(3, **options))
    new = copy.deepcopy(old)
    for factory in then:
        new = cnlib.convert(nn.Sequential(new), {"0": factory})[0]
    assert type(new) is then[-1]
    settings = ("eps", "momentum", "track_running_stats", "affine")
    assert [getattr(new, s) for s in settings] == [getattr(old, s) for s in settings]
    same_layer(old, copy.deepcopy(new), x)


def without(layer: nn.Module, **parts: Any) -> nn.Module:
    for name, value in parts.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    "old",
    [
        without(nn.BatchNorm2d(3), bias=None),
        without(nn.BatchNorm2d(3), weight=None),
        without(nn.BatchNorm2d(3), running_mean=None, running_var=None),
        without(nn.BatchNorm2d(3), num_batches_tracked=None),
        without(nn.BatchNorm2d(3), track_running_stats=False),
        without(nn.InstanceNorm2d(3, affine=True), bias=None),
        without(nn.GroupNorm(3, 3), bias=None),
        nn.GroupNorm(3, 3, affine=False, eps=0.1),
    ],
    ids=str,
)
def test_parts_set_after_construction(old: nn.Module) -> None:
    kind = next(k for k in ("BatchNorm", "InstanceNorm", "GroupNorm") if k in type(old).__name__)
    factory = {"GroupNorm": lambda c: cnlib.GroupNorm(3, c)}.get(kind, getattr(cnlib, kind))
    drawn(old)
    if getattr(old, "running_mean", 0) is None:
        old.num_batches_tracked = None
    new = cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"0": factory})[0]
    for part in PARTS:
        assert (getattr(new, part, None) is None) == (getattr(old, part, None) is None), part
    assert_same(new.eval()(X), old.eval()(X), atol=1e-5, rtol=1e-5)


def test_bias_false_is_kept() -> None:
    if "bias" not in inspect.signature(nn.BatchNorm2d).parameters:
        pytest.skip("this torch has no bias=False for batch normalization")
    old = drawn(nn.BatchNorm2d(3, bias=False))
    same_layer(old, cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"0": cnlib.BatchNorm})[0], X)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (cnlib.BatchNorm, {"eps": 1e-3, "momentum": 0.5}),
        (lambda c: cnlib.BatchNorm(c, eps=0.1), {"eps": 0.1, "momentum": 0.5}),
        (lambda c: cnlib.BatchNorm(c, momentum=None), {"eps": 1e-3, "momentum": None}),
        (lambda c: cnlib.BatchNorm(c, affine=False), {"eps": 1e-3, "weight": None, "bias": None}),
        (lambda c: cnlib.BatchNorm(c, track_running_stats=False), {"running_mean": None, "track_running_stats": False}),
        (lambda c: cnlib.GroupNorm(2, c), {"eps": 1e-3}),
        (lambda c: cnlib.MixtureNorm(c, 2), {"eps": 1e-3, "momentum": 0.5}),
        (lambda c: cnlib.ContextNorm(c, 2), {"eps": 1e-3}),
    ],
)
def test_what_the_factory_asks_for_wins(factory: Callable, expected: dict) -> None:
    old = drawn(nn.BatchNorm2d(4, eps=1e-3, momentum=0.5))
    new = cnlib.convert(nn.Sequential(old), {"0": factory})[0]
    assert {name: getattr(new, name) for name in expected} == expected
    if new.weight is not None:
        assert new.weight is old.weight and new.bias is old.bias
    assert not hasattr(new, "running_prior") or int(new.num_batches_tracked) == 0, "no mixture yet"


@pytest.mark.parametrize("mode", [True, False])
def test_frozen_parameters_and_optimizers_and_modes_stay(mode: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train(mode)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    cnlib.convert(model, {"*": cnlib.BatchNorm})
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(layer.training is mode for layer in model)
    before = model[1].bias.clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].bias, before)


HOOKS = {
    "register_forward_pre_hook": {},
    "register_forward_hook": {"with_kwargs": True, "always_call": True},
    "register_full_backward_pre_hook": {},
    "register_full_backward_hook": {},
    "register_state_dict_pre_hook": {},
    "register_state_dict_post_hook": {},
    "register_load_state_dict_pre_hook": {},
    "register_load_state_dict_post_hook": {},
}


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_stay_and_can_be_removed(register: str) -> None:
    seen: list[str] = []

    def hook(module: nn.Module, *_: Any, **__: Any) -> None:
        seen.append(type(module).__name__)

    model = nn.Sequential(nn.BatchNorm2d(3))
    handle = getattr(model[0], register)(hook, **HOOKS[register])
    cnlib.convert(model, {"0": cnlib.BatchNorm})
    for expected in (["BatchNorm"], []):
        seen.clear()
        model(X.clone().requires_grad_()).sum().backward()
        model.load_state_dict(model.state_dict())
        assert seen[:1] == expected
        handle.remove()


def test_an_error_leaves_hooks_where_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(5))
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="last axis"):
        cnlib.convert(model, {"*": cnlib.BatchNorm})
    model(X)
    assert calls == [1] and isinstance(model[0], nn.BatchNorm2d)


class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class AlwaysEvaluates(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class OneMore(nn.BatchNorm2d):
    weight = property(lambda self: 1 + self._parameters["weight"])

    def __new__(cls, c):
        layer = nn.BatchNorm2d(c)
        layer.__class__ = cls
        return layer

    def __init__(self, c):
        pass


class OursAct(cnlib.BatchNorm):
    def forward(self, x):
        return super().forward(x).relu()


class OwnCall(nn.GroupNorm):
    def __call__(self, x):
        return super().__call__(x).relu()


class LayerNorm2d(nn.LayerNorm):
    """Called like torchvision's; it does more."""

    def forward(self, x):
        return nn.functional.layer_norm(x.movedim(1, -1), self.normalized_shape).movedim(-1, 1).relu()


class FrozenBatchNorm2d(nn.Module):
    """Called like torchvision's; not it."""

    def __init__(self, c):
        super().__init__()
        self.weight, self.num_features = nn.Parameter(torch.ones(c)), c

    def forward(self, x):
        return x * self.weight.view(-1, 1, 1)


def patched() -> nn.Module:
    layer = nn.BatchNorm2d(3)
    layer.forward = lambda x: nn.BatchNorm2d.forward(layer, x).relu()
    return layer


REFUSED = {
    "BatchNormAct2d": lambda: BatchNormAct2d(3),
    "AlwaysEvaluates": lambda: AlwaysEvaluates(3),
    "OneMore": lambda: OneMore(3),
    "OursAct": lambda: OursAct(3),
    "OwnCall": lambda: OwnCall(3, 3),
    "LayerNorm2d": lambda: LayerNorm2d(3),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(3),
    "BatchNorm2d, with forward": patched,
    "quantized": lambda: torch.ao.nn.quantized.BatchNorm2d(3),
    "ParametrizedBatchNorm2d": lambda: parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None),
    "with weight of its own beside BatchNorm2d": lambda: prune.random_unstructured(nn.BatchNorm2d(3), "weight", 0.5),
    "LazyBatchNorm2d.*run one batch": lambda: nn.LazyBatchNorm2d(),
    "LazyInstanceNorm2d.*run one batch": lambda: nn.LazyInstanceNorm2d(),
    "LazyBatchNorm1d.*run one batch": lambda: nn.LazyBatchNorm1d(affine=False, track_running_stats=False),
}


@pytest.mark.parametrize("key", ["*", "1"])
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(message: str, key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.BatchNorm2d(3), REFUSED[message]())
    layers = list(model)
    with pytest.raises(ValueError, match=f"layer '1' is a .*{message}"):
        cnlib.convert(model, {"0": cnlib.BatchNorm, key: cnlib.BatchNorm})
    assert list(model) == layers


class Renamed(nn.BatchNorm2d):
    """A subclass that only builds or prints in a way of its own is the layer it derives from."""

    def __init__(self, c):
        super().__init__(c, eps=0.1)

    def extra_repr(self):
        return ""

    def _check_input_dim(self, x):
        pass


@pytest.mark.parametrize("old", [Renamed(3), nn.LazyBatchNorm2d()], ids=["renamed", "lazy, after a batch"])
def test_subclasses_that_compute_the_same(old: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old(X)
    drawn(old)
    same_layer(old, cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"*": cnlib.BatchNorm})[0], X)


def test_a_subclass_of_ours_with_options_of_its_own_keeps_them() -> None:
    class Ours(cnlib.BatchNorm):
        def __init__(self, c):
            super().__init__(c, eps=0.1)

    assert cnlib.convert(nn.Sequential(nn.BatchNorm2d(3)), {"*": Ours})[0].eps == 0.1


def test_frozen_batch_norm_stays_frozen() -> None:
    ops = pytest.importorskip("torchvision.ops")
    old = drawn(ops.FrozenBatchNorm2d(3, eps=1e-3))
    model = cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"*": cnlib.BatchNorm})
    again = cnlib.convert(copy.deepcopy(model), {"*": cnlib.BatchNorm})
    for new in (model, again, copy.deepcopy(model)):
        for mode in (True, False):
            assert_same(new.train(mode)(X), old(X), atol=1e-5, rtol=1e-5)
        assert not any(p.requires_grad for p in new.parameters()) and new[0].eps == 1e-3
        assert_same(new[0].running_mean, old.running_mean)
    back = cnlib.convert(model, {"*": ops.FrozenBatchNorm2d})
    assert_same(back(X), old(X), atol=1e-5, rtol=1e-5)
    groups = cnlib.convert(back, {"*": lambda c: cnlib.GroupNorm(1, c)}).train()
    assert groups[0].training and not groups[0].weight.requires_grad


def test_layer_norm_2d_has_its_channels_on_axis_1() -> None:
    convnext = pytest.importorskip("torchvision.models.convnext")
    old = drawn(convnext.LayerNorm2d(3, eps=1e-6))
    new = cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"*": cnlib.BatchNorm})[0]
    assert new.num_features == 3 and new.eps == 1e-6
    assert_same(new.weight, old.weight)
    same = cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"*": convnext.LayerNorm2d})[0]
    assert_same(same(X), old(X))


def test_torchvision_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert isinstance(cnlib.convert(nn.Sequential(nn.BatchNorm2d(3)), {"*": cnlib.BatchNorm})[0], cnlib.BatchNorm)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 0.1}], ids=str)
def test_layer_norm_on_rows_gives_the_same_numbers(options: dict) -> None:
    old, x = drawn(nn.LayerNorm(8, **options)), torch.randn(2, 5, 8) * torch.arange(1, 6)[:, None]
    new = cnlib.convert(nn.Sequential(copy.deepcopy(old)), {"0": lambda c: Rows(cnlib.LayerNorm(c))})
    assert_same(new(x), old(x), atol=1e-5, rtol=1e-5)
    if "bias" not in options:
        root = drawn(nn.RMSNorm(8, **options))
        new = cnlib.convert(nn.Sequential(copy.deepcopy(root)), {"0": lambda c: Rows(cnlib.RMSNorm(c))})
        assert_same(new(x), root(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_torchs_encoder_calls_the_new_layers(grad: bool) -> None:
    """Its fused evaluation would read eps and weight of a norm layer, and never call it."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    old = drawn(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))).eval()
    new = cnlib.convert(copy.deepcopy(old), {"*": lambda c: Rows(cnlib.LayerNorm(c))})
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.set_grad_enabled(grad):
        assert_same(new(x), old(x), atol=1e-5, rtol=1e-5)
        kept = ~mask
        assert_same(
            new(x, src_key_padding_mask=mask)[kept], old(x, src_key_padding_mask=mask)[kept], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("old", "factory", "message"),
    [
        (nn.RMSNorm(4), cnlib.BatchNorm, r"'0' is an nn.RMSNorm.*last axis.*rows.*reshape\(-1, channels\)"),
        (nn.LayerNorm(4), nn.BatchNorm1d, "'0' is an nn.LayerNorm.*last axis"),
        (nn.LayerNorm((4, 5, 5)), cnlib.LayerNorm, r"over the last 3 axes, \(4, 5, 5\)"),
        (nn.BatchNorm2d(4), nn.LayerNorm, "channels on axis 1.*Use cnlib.LayerNorm"),
        (cnlib.LayerNorm(4), nn.LayerNorm, "channels on axis 1.*Use cnlib.LayerNorm"),
    ],
)
def test_axes_that_do_not_fit(old: nn.Module, factory: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cnlib.convert(nn.Sequential(old), {"0": factory})


def test_synchronization_is_kept() -> None:
    group = object()
    sync = nn.SyncBatchNorm(3)
    sync.process_group = group
    new = cnlib.convert(nn.Sequential(sync), {"*": cnlib.BatchNorm})[0]
    assert new.synchronized and new.process_group is group
    for factory in (cnlib.BatchNorm, cnlib.MixtureNorm, nn.SyncBatchNorm):
        again = cnlib.convert(nn.Sequential(copy.copy(new)), {"*": factory})[0]
        assert getattr(again, "synchronized", True) and again.process_group is group
    with pytest.raises(ValueError, match="'0' shares its batch statistics.*nn.SyncBatchNorm"):
        cnlib.convert(nn.Sequential(new), {"*": nn.BatchNorm2d})
    assert not cnlib.convert(nn.Sequential(nn.BatchNorm2d(3)), {"*": cnlib.BatchNorm})[0].synchronized


def test_ours_with_states_of_their_own() -> None:
    mixture = cnlib.MixtureNorm(3, 2, eps=1e-3)
    mixture(X)
    new = cnlib.convert(nn.Sequential(copy.deepcopy(mixture)), {"*": lambda c: cnlib.MixtureNorm(c, 2)})[0]
    assert_same(new.eval()(X), mixture.eval()(X), atol=1e-6, rtol=1e-6)
    assert_same(new.train()(X), mixture.train()(X), atol=1e-6, rtol=1e-6)
    other = cnlib.convert(nn.Sequential(mixture), {"*": lambda c: cnlib.MixtureNorm(c, 4)})[0]
    assert int(other.num_batches_tracked) == 0, "another number of components is another mixture"
    context, ids = cnlib.ContextNorm(3, 2), torch.arange(6) % 2
    nn.init.normal_(context.mean)
    new = cnlib.convert(nn.Sequential(context), {"*": lambda c: cnlib.ContextNorm(c, 2)})[0]
    assert new.mean is context.mean
    assert_same(new(X, ids), context(X, ids))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "c"])
def test_wrapped_models(wrap: Callable) -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    wrapped = wrap(copy.deepcopy(model))
    assert_same(wrapped(X), model(X))
    for key in ("*", "*.1") if isinstance(wrapped, nn.DataParallel) else ("*", "1", "_orig_mod.1"):
        with torch.no_grad():
            [m for m in wrapped.modules() if hasattr(m, "running_mean") and m is not wrapped][-1].running_mean.add_(1)
            model[1].running_mean.add_(1)
        cnlib.convert(wrapped, {key: cnlib.BatchNorm})
        assert_same(wrapped(X), model(X), atol=1e-5, rtol=1e-5)


def test_wrappers_that_would_not_notice() -> None:
    compiled = nn.Sequential(torch.compile(nn.BatchNorm2d(3), backend="eager"))
    for model, key in ((compiled, "*"), (compiled[0], "*"), (compiled[0], "")):
        with pytest.raises(ValueError, match=r"compiled by itself.*then call torch\.compile"):
            cnlib.convert(model, {key: cnlib.BatchNorm})


def test_distributed_models_are_converted_first(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.BatchNorm2d(3)))
        with pytest.raises(ValueError, match="convert the model first, then wrap it"):
            cnlib.convert(model, {"*": cnlib.BatchNorm})
    finally:
        torch.distributed.destroy_process_group()


def test_neighbors_with_weight_norm_are_left_alone() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)).eval()
    drawn(model[1])
    expected = model(X)
    assert_same(cnlib.convert(copy.deepcopy(model), {"*": cnlib.BatchNorm})(X), expected, atol=1e-5, rtol=1e-5)


ONE = cnlib.BatchNorm(3)


@pytest.mark.parametrize(
    ("model", "factories", "error", "message"),
    [
        ([1], {"*": cnlib.BatchNorm}, TypeError, "the model is a list"),
        (nn.BatchNorm2d(3), {"": cnlib.BatchNorm(3)}, TypeError, "came a BatchNorm, expected a function"),
        (nn.BatchNorm2d(3), {"": "bn"}, TypeError, "came a str, expected a function"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)), {"*": lambda c: ONE}, ValueError, "must make a new one"),
    ],
)
def test_arguments(model: Any, factories: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        cnlib.convert(model, factories)


NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "densenet121": (64, {}),
    "inception_v3": (96, {"aux_logits": False, "init_weights": False}),
    "googlenet": (64, {"aux_logits": False, "init_weights": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name: str) -> None:
    """The same logits in evaluation and the same gradients in training, weights and running moments drawn."""
    models = pytest.importorskip("torchvision.models")
    size, options = NETWORKS[name]
    torch.manual_seed(0)
    theirs = drawn(getattr(models, name)(num_classes=5, **options))
    ours = cnlib.convert(copy.deepcopy(theirs), {"*": cnlib.BatchNorm})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, found = (model.eval()(x) for model in (theirs, ours))
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    grads = []
    # in double precision: with two images, rounding alone moves single-precision gradients by more
    for model in (theirs, ours):
        torch.manual_seed(1)
        model.double().train()(x.double()).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[1] - grads[0]).norm() <= 1e-6 * grads[0].norm()
    buffers = zip(ours.buffers(), theirs.buffers(), strict=True)
    assert all(torch.allclose(mine.double(), other.double(), rtol=1e-5, atol=1e-8) for mine, other in buffers)


@pytest.mark.slow
def test_convnext_by_rows_and_positions() -> None:
    """Every norm layer by one of ours on rows: LayerNorm2d too, whose factory moves the axis there and back."""
    models = pytest.importorskip("torchvision.models")

    class Positions(Rows):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    torch.manual_seed(0)
    theirs = drawn(models.convnext_tiny(num_classes=5)).eval()
    factories = {}
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.LayerNorm):
            wrapper = Positions if type(layer).__name__ == "LayerNorm2d" else Rows
            factories[name] = lambda c, wrapper=wrapper: wrapper(cnlib.LayerNorm(c))
    ours = cnlib.convert(copy.deepcopy(theirs), factories)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).norm() <= 1e-5 * theirs(x).norm()
    with pytest.raises(ValueError, match="is an nn.LayerNorm, with its channels on the last axis"):
        cnlib.convert(theirs, {"*": cnlib.BatchNorm})
