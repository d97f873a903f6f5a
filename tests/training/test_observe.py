"""What is measured at the norm layer under test, against moments computed by hand."""

import numpy as np
import pytest
import torch

import cnlib
from cnlib.training import Config, train
from cnlib.training.observe import Observer


def test_moments_a_context_over_batches():
    torch.manual_seed(0)
    x, ids = 3 + 2 * torch.randn(60, 4, 5, 5), torch.arange(60) % 3
    x[ids == 1] *= 10
    layer = cnlib.ContextNorm(4, 3)
    layer.start_from(x, ids)
    with torch.no_grad(), Observer(layer, 3) as observer:
        for chosen in torch.arange(60).split(25):
            observer.ids = ids[chosen]
            layer(x[chosen], ids[chosen])
    true = observer.summary()
    np.testing.assert_allclose(true["mean_gap"], 0, atol=1e-3)
    np.testing.assert_allclose(true["std_ratio"], 1, atol=1e-3)
    np.testing.assert_allclose(true["output_mean"], 0, atol=1e-3)
    np.testing.assert_allclose(true["output_std"], 1, atol=1e-3)
    with torch.no_grad():
        layer.mean += 1.0
        layer.log_var += 2 * np.log(3)
    with torch.no_grad(), Observer(layer, 3) as observer:
        observer.ids = ids
        layer(x, ids)
    seen = observer.summary()
    std = torch.stack([x[ids == r].transpose(0, 1).flatten(1).std(1, correction=0) for r in range(3)])
    np.testing.assert_allclose(seen["mean_gap"], (1 / std).square().mean(1).sqrt(), rtol=1e-3)
    np.testing.assert_allclose(seen["std_ratio"], 3, rtol=1e-3)
    np.testing.assert_allclose(seen["output_std"], 1 / 3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(60, 4), (60, 4, 7, 5)])
def test_a_small_spread_around_a_large_mean_is_not_lost(shape):
    x = 3000 + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Identity()
    with Observer(layer, 1) as observer:
        for part in x.split(25):
            layer(part)
    std = x.double().transpose(0, 1).flatten(1).std(1, correction=0)
    np.testing.assert_allclose(observer.summary()["output_std"], std.square().mean().sqrt(), rtol=1e-3)


def test_a_context_not_seen_is_nan_and_the_hook_goes_away():
    layer = cnlib.ContextNorm(2, 2)
    with Observer(layer, 2) as observer:
        observer.ids = torch.zeros(4, dtype=torch.long)
        layer(torch.randn(4, 2), observer.ids)
    assert np.isnan(observer.summary()["output_mean"][1]) and not layer._forward_hooks
    with pytest.raises(ValueError, match="nothing seen"), Observer(layer, 2) as empty:
        empty.summary()


@pytest.mark.parametrize("norm, contexts, columns", [("bn", "none", 1), ("mn", "gmm", 1), ("cn", "gmm", 3)])
def test_recorded_a_context_and_epoch(norm, contexts, columns, tmp_path):
    config = Config(norm=norm, contexts=contexts, width=0.125, epochs=2, batch_size=64, train_size=200, test_size=100)
    run = train(config, tmp_path / "run.jsonl")
    assert run.curve("test_output_std").shape == (2, columns)
    assert ("test_mean_gap" in run.epochs) == (norm == "cn")
    if norm == "bn":  # running statistics of the training set, a few steps old
        assert 0.3 < run.curve("test_output_std")[-1, 0] < 3
