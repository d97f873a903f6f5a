"""LayerNorm, InstanceNorm, GroupNorm and RMSNorm against finite differences and torch.nn."""

import pytest
import torch
from cases import GRADIENTS, assert_same, check_gradients, check_layer_gradients, double, run, seeds, shake, shapes
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import cnlib
from cnlib.norm.family import RootMeanSquare

INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def layers(c: int, **options: object) -> list[nn.Module]:
    divisors = [g for g in range(1, c + 1) if c % g == 0]
    return [cnlib.LayerNorm(c, **options)] + [cnlib.GroupNorm(g, c, **options) for g in divisors]  # type: ignore


@given(shape=shapes, seed=seeds)
def test_gradients(shape, seed):
    for layer in layers(shape[1], eps=1e-3):
        check_layer_gradients(shake(layer), double(shape, seed))


@given(shape=shapes, seed=seeds, affine=st.booleans())
def test_instance_gradients(shape, seed, affine):
    assume(torch.Size(shape[2:]).numel() > 1)
    check_layer_gradients(shake(cnlib.InstanceNorm(shape[1], eps=1e-3, affine=affine)), double(shape, seed))


@given(shape=shapes, seed=seeds)
def test_manual_is_autograd(shape, seed):
    pairs = zip(*(layers(shape[1], gradient=g) for g in GRADIENTS), strict=True)
    for manual, autograd in pairs:
        assert_same(run(shake(manual), double(shape, seed)), run(shake(autograd), double(shape, seed)))


@given(shape=shapes, seed=seeds, affine=st.booleans())
def test_group_norm_parity(shape, seed, affine):
    x = double(shape, seed, scale=3, shift=2)
    for ours in layers(shape[1], affine=affine):
        groups = ours.num_groups
        assume(x.numel() // groups > 1)  # torch refuses what it can only map to the bias
        theirs = shake(nn.GroupNorm(groups, shape[1], affine=affine))
        ours.double().load_state_dict(theirs.state_dict(), strict=True)
        for _ in range(2):
            assert_same(run(ours, x), run(theirs, x))
            ours.eval(), theirs.eval()
        theirs.load_state_dict(ours.state_dict(), strict=True)


@given(n=st.integers(1, 4), c=st.integers(2, 5), seed=seeds)
def test_layer_norm_parity(n, c, seed):
    x = double((n, c), seed)
    theirs, ours = shake(nn.LayerNorm(c)), cnlib.LayerNorm(c).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(run(ours, x), run(theirs, x))
    wide = double((n, c, 3, 2), seed)
    everything = nn.LayerNorm(wide.shape[1:], elementwise_affine=False)
    assert_same(run(cnlib.LayerNorm(c, affine=False), wide)[:2], run(everything, wide)[:2])


@given(shape=shapes, seed=seeds, affine=st.booleans(), track=st.booleans())
def test_instance_norm_parity(shape, seed, affine, track):
    assume(torch.Size(shape[2:]).numel() > 1)
    x = double(shape, seed, scale=3, shift=2)
    options = {"affine": affine, "track_running_stats": track}
    theirs = shake(INSTANCE[len(shape)](shape[1], **options))
    ours = cnlib.InstanceNorm(shape[1], **options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for _ in range(2):
        for step in range(2):
            assert_same(run(ours, x + step), run(theirs, x + step))
        assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
        ours.eval(), theirs.eval()


@given(shape=shapes, seed=seeds, affine=st.booleans())
def test_rms_gradients(shape, seed, affine):
    x = double(shape, seed)
    check_layer_gradients(shake(cnlib.RMSNorm(shape[1], eps=1e-3, affine=affine)), x)
    manual, autograd = (shake(cnlib.RMSNorm(shape[1], affine=affine, gradient=g)) for g in GRADIENTS)
    assert_same(run(manual, x), run(autograd, x))


def test_gradients_through_the_mean_square_it_returns():
    x, w = double((3, 2, 4), 0), double((1, 2, 1), 1)
    check_gradients(lambda x, w: RootMeanSquare.apply(x, w, 1e-3), x, w)
    check_gradients(lambda x: RootMeanSquare.apply(x, None, 1e-3)[1], x)


@given(n=st.integers(1, 4), c=st.integers(1, 5), seed=seeds, affine=st.booleans(), eps=st.sampled_from([None, 1e-3]))
def test_rms_parity(n, c, seed, affine, eps):
    x = double((n, c), seed, scale=3, shift=2)
    theirs = shake(nn.RMSNorm(c, eps=eps, elementwise_affine=affine))
    ours = cnlib.RMSNorm(c, eps=eps, affine=affine).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(run(ours, x), run(theirs, x))
    assert_same(run(ours.eval(), x), run(theirs.eval(), x))
    # over all channels and positions of a sample
    wide = double((n, c, 3, 2), seed)
    everything = nn.RMSNorm(wide.shape[1:], eps=eps, elementwise_affine=False)
    assert_same(run(cnlib.RMSNorm(c, eps=eps, affine=False), wide)[:2], run(everything, wide)[:2])


def test_rms_of_zeros_is_zero_and_scale_does_not_matter():
    assert_same(cnlib.RMSNorm(3)(torch.zeros(2, 3)), torch.zeros(2, 3))
    x = double((4, 3, 5), 0)
    assert_same(cnlib.RMSNorm(3, eps=0.0).double()(1e3 * x), cnlib.RMSNorm(3, eps=0.0).double()(x))


def test_index_sets_are_one_family():
    # GroupNorm with one group is LayerNorm, with C groups InstanceNorm; one sample makes BatchNorm InstanceNorm
    x = double((3, 4, 5), 0)
    assert_same(cnlib.GroupNorm(1, 4)(x), cnlib.LayerNorm(4)(x))
    assert_same(cnlib.GroupNorm(4, 4)(x), cnlib.InstanceNorm(4)(x))
    assert_same(cnlib.BatchNorm(4)(x[:1]), cnlib.InstanceNorm(4)(x[:1]))


@pytest.mark.parametrize("layer", [cnlib.LayerNorm(4), cnlib.GroupNorm(2, 4), cnlib.InstanceNorm(4)])
def test_large_mean_stays_accurate_in_float32(layer):
    x = (double((4, 4, 16, 16), 0) + 1e4).float()
    assert_same(layer(x).double(), layer(x.double()), atol=2e-3, rtol=0)


@pytest.mark.parametrize("layer", [cnlib.LayerNorm(3), cnlib.GroupNorm(1, 3), cnlib.InstanceNorm(3), cnlib.RMSNorm(3)])
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(3), ValueError),
        (torch.zeros(2, 4, 5), ValueError),
        (torch.zeros(2, 3, 4, dtype=torch.int32), TypeError),
        (torch.zeros(2, 3, 4, dtype=torch.complex128), TypeError),
    ],
)
def test_bad_input_is_named(layer, x, error):
    with pytest.raises(error, match=type(layer).__name__):
        layer(x)


def test_instance_norm_needs_positions():
    with pytest.raises(ValueError, match="1 position"):
        cnlib.InstanceNorm(3)(torch.zeros(2, 3))


def test_groups_must_divide():
    with pytest.raises(ValueError, match="does not divide"):
        cnlib.GroupNorm(3, 4)
