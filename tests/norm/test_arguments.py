"""Every argument of every public constructor and function with values it must not have, and with numpy's numbers."""

import inspect
import math

import numpy as np
import pytest
import torch

import cnlib
from cnlib import functional as F

COUNTS = [0, -1, 1.5, True, "3", None, math.nan, [3]]
EPS = [-1e-5, -1.0, math.nan, math.inf, -math.inf, "1e-5", None, True, [1e-5]]
MOMENTUM = [-0.1, 1.1, 2.0, math.nan, math.inf, "0.1", True]
GRADIENT = ["hand", "", None, 1]
LAYERS = {
    "BatchNorm": (cnlib.BatchNorm, {"num_features": 4}),
    "LayerNorm": (cnlib.LayerNorm, {"num_features": 4}),
    "InstanceNorm": (cnlib.InstanceNorm, {"num_features": 4}),
    "GroupNorm": (cnlib.GroupNorm, {"num_groups": 2, "num_features": 4}),
    "RMSNorm": (cnlib.RMSNorm, {"num_features": 4}),
    "MixtureNorm": (cnlib.MixtureNorm, {"num_features": 4}),
    "ContextNorm": (cnlib.ContextNorm, {"num_features": 4, "num_contexts": 2}),
    "ModeNorm": (cnlib.ModeNorm, {"num_features": 4}),
    "GatedContextNorm": (cnlib.GatedContextNorm, {"num_features": 4, "num_contexts": 2}),
    "ExemplarNorm": (cnlib.ExemplarNorm, {"num_features": 4}),
    "SwitchableNorm": (cnlib.SwitchableNorm, {"num_features": 4}),
}
BAD = {
    "num_features": COUNTS,
    "num_groups": [*COUNTS, 3],
    "num_components": COUNTS,
    "num_contexts": COUNTS,
    "em_steps": COUNTS,
    "embedding_dim": [value for value in COUNTS if value is not None],
    "eps": EPS,
    "momentum": MOMENTUM,
    "gradient": GRADIENT,
    "encoder": ["Table", "", None, 0],
    "start": ["Identity", "", None, 0],
    "num_modes": COUNTS,
    "temperature": [0.0, -1.0, math.nan, math.inf, "1", None, True],
    "reduction": COUNTS,
    "hidden": COUNTS,
    "normalizers": [(), "in", ("bn", "bn"), ("gn",), None, 2, (1,)],
}
FLAGS = ("affine", "track_running_stats", "bias", "hard", "device", "dtype")
CONSTRUCTED = [
    (name, argument, value)
    for name, (make, _) in LAYERS.items()
    for argument in inspect.signature(make).parameters
    for value in BAD.get(argument, [])
    if not (name == "RMSNorm" and argument == "eps" and value is None)
]


@pytest.mark.parametrize(("name", "argument", "value"), CONSTRUCTED)
def test_a_layer_refuses_it_by_name(name, argument, value):
    make, options = LAYERS[name]
    with pytest.raises(ValueError, match=argument) as error:
        make(**options | {argument: value})
    assert repr(value) in str(error.value) or "divide" in str(error.value)


@pytest.mark.parametrize("name", LAYERS)
def test_the_table_knows_every_argument(name):
    assert set(inspect.signature(LAYERS[name][0]).parameters) <= {*BAD, *FLAGS}


@pytest.mark.parametrize("name", LAYERS)
def test_numpys_numbers_are_numbers(name):
    make, options = LAYERS[name]
    known = {"eps": np.float32(1e-5), "momentum": np.float64(0.1)}
    given = {key: value for key, value in known.items() if key in inspect.signature(make).parameters}
    layer = make(**{key: np.int64(value) for key, value in options.items()}, **given)
    assert type(layer.num_features) is int and type(layer.eps) is float
    ids = (torch.zeros(6, dtype=torch.long),) if name == "ContextNorm" else ()
    assert layer(torch.randn(6, 4, 3), *ids).shape == (6, 4, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cnlib.GroupNorm(2, num_features=4, num_channels=4),
        lambda: cnlib.LayerNorm(num_features=4, normalized_shape=4),
        lambda: cnlib.RMSNorm(4, affine=True, elementwise_affine=True),
        lambda: cnlib.BatchNorm(4)(x=X, input=X),
    ],
)
def test_two_names_of_one_argument_are_not_both_given(call):
    with pytest.raises(TypeError, match="two names of one argument"):
        call()


X = torch.randn(8, 4, 5)
TAU, PRIORS = torch.full((8, 2), 0.5), torch.tensor([0.5, 0.5])
RATIOS = torch.tensor([0.2, 0.5, 0.3])
MEAN, VAR, IDS = torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(8, dtype=torch.long)
TENSORS = {
    "batch_norm": (F.batch_norm, {"x": X}),
    "mixture_norm": (F.mixture_norm, {"x": X, "responsibilities": TAU, "priors": PRIORS}),
    "context_norm": (F.context_norm, {"x": X, "context": IDS, "mean": MEAN, "var": VAR}),
    "context_norm_plus": (F.context_norm_plus, {"x": X, "mean": MEAN, "var": VAR}),
    "responsibilities": (F.responsibilities, {"x": X, "priors": PRIORS, "mean": MEAN, "var": VAR}),
    "mode_norm": (F.mode_norm, {"x": X, "gates": TAU}),
    "exemplar_norm": (F.exemplar_norm, {"x": X, "ratios": RATIOS.expand(8, 3)}),
    "switchable_norm": (F.switchable_norm, {"x": X, "mean_weights": RATIOS, "var_weights": RATIOS}),
}
BAD_RATIOS = [None, [0.2, 0.5, 0.3], RATIOS * 2, RATIOS * math.nan, torch.tensor([1.5, -0.5, 0.0]), RATIOS[:2]]
BAD_TENSORS = {
    "x": [None, [1.0], X.int(), X.to(torch.complex64), X[0, 0, :], torch.tensor(1.0)],
    "responsibilities": [
        None,
        TAU * 2,
        TAU * 0,
        TAU * math.nan,
        torch.tensor([[-1.0, 2.0]] * 8),
        TAU[:7],
        TAU.long(),
        TAU[:, :, None].expand(8, 2, 4),
        torch.ones(8, 2, 5),
    ],
    "priors": [None, PRIORS * 2, PRIORS * math.nan, torch.tensor([1.5, -0.5]), torch.tensor([1.0, 0.0]), PRIORS[:1]],
    "context": [None, IDS.float(), IDS.bool(), IDS - 1, IDS + 2, IDS[:7], IDS[:, None], [0] * 8],
    "mean": [None, MEAN[:, :3], MEAN[0], MEAN[:1]],
    "var": [None, VAR[:, :3], -VAR, VAR[0], VAR[:1]],
    "gates": [None, TAU * 2, TAU * math.nan, TAU[:7], TAU.long(), TAU[:, :, None].expand(8, 2, 5), TAU[0]],
    "ratios": [None, TAU, RATIOS.expand(7, 3), 2 * RATIOS.expand(8, 3), RATIOS.expand(8, 3)[..., None], RATIOS],
    "mean_weights": BAD_RATIOS,
    "var_weights": BAD_RATIOS,
    "eps": EPS,
    "gradient": GRADIENT,
}
CALLED = [
    (name, argument, index)
    for name, (function, _) in TENSORS.items()
    for argument in inspect.signature(function).parameters
    for index in range(len(BAD_TENSORS[argument]))
    # a component without mass may have prior 0, and its posterior is 0
    if not (name == "responsibilities" and argument == "priors" and index == 4)
]


@pytest.mark.parametrize(("name", "argument", "index"), CALLED)
def test_a_function_refuses_it(name, argument, index):
    function, given = TENSORS[name]
    with pytest.raises((ValueError, TypeError), match=r"expected|must be|carries") as error:
        function(**given | {argument: BAD_TENSORS[argument][index]})
    assert "Tensor.__" not in str(error.value)
