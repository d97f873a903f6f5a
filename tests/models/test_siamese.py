"""One network for both images of a pair, points on a sphere, and places for a norm layer."""

import pytest
import torch

import cnlib
from cnlib.models import MODELS, Siamese, ViT
from cnlib.training import Config
from cnlib.training.build import build_model

TINY = {"patch": 4, "dim": 16, "depth": 1, "heads": 2, "hidden": 24, "embedding": 5}


def test_outputs_are_the_encoders_at_length_one():
    torch.manual_seed(0)
    model = Siamese(image_size=(8, 12), **TINY)
    x = torch.randn(6, 3, 8, 12)
    points = model(x)
    raw = model.encoder(x)
    assert points.shape == (6, 5) and isinstance(model.encoder, ViT)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(points, raw / raw.norm(dim=1, keepdim=True))
    # a pair is two rows: what one image becomes does not depend on the other
    torch.testing.assert_close(model(x[:2]), points[:2])
    with pytest.raises(ValueError, match="expected"):
        model(x[:, :, :4])


def test_its_places_are_the_transformers(monkeypatch):
    from cnlib.data import load

    config = Config(model="siamese", norm="cn", placement=("input",), contexts="domain", num_contexts=2, options=TINY)
    model = build_model(config, load("photo-places"))
    assert isinstance(model.encoder.norm0, cnlib.ContextNorm) and MODELS["siamese"] is Siamese
    assert model.encoder.expected == (3, 24, 32)
    patches = Config(
        model="siamese", norm="cn", placement=("patches",), contexts="domain", num_contexts=2, options=TINY
    )
    assert build_model(patches, load("photo-places")).encoder.norm1.num_features == 16
