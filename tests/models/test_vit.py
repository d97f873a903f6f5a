"""ViT: the Keras example's network to a weight, torch's own block, the places, the token, small images."""

import pytest
import torch
from torch import nn

import cnlib
from cnlib.models import MODELS, ViT
from cnlib.models.vit import patches
from cnlib.training import Config
from cnlib.training.build import build_model

PAPER = {"pixels": 72, "patch": 6, "depth": 8, "key": 64, "head": "flatten", "keras": True}
TINY = {"patch": 4, "dim": 16, "depth": 2, "heads": 2, "hidden": 24}


def count(model):
    return sum(p.numel() for p in model.parameters())


def dense(inputs, outputs):
    return inputs * outputs + outputs


def test_the_published_network_has_the_weights_of_the_keras_example():
    """Counted by hand from the example, layer by layer; Keras adds 7 that are not trained, its Normalization's mean,
    variance and count of three channels."""
    tokens, norm = (72 // 6) ** 2, 2 * 64
    embedding = dense(6 * 6 * 3, 64) + tokens * 64  # projection, positions
    attention = 3 * dense(64, 4 * 64) + dense(4 * 64, 64)  # four heads of key size 64
    block = norm + attention + norm + dense(64, 128) + dense(128, 64)
    head = norm + dense(tokens * 64, 2048) + dense(2048, 1024) + dense(1024, 100)
    assert (embedding, attention, block, head) == (16_192, 66_368, 83_200, 21_077_220)
    assert count(ViT(100, 3, 32, **PAPER)) == embedding + 8 * block + head == 21_759_012


def test_the_reduced_network_has_a_hundredth_of_them():
    block = 4 * 64 + dense(64, 3 * 64) + dense(64, 64) + dense(64, 128) + dense(128, 64)
    assert count(ViT()) == dense(48, 64) + 64 * 64 + 6 * block + 2 * 64 + dense(64, 100) == 214_692


def test_it_starts_as_keras_does():
    model = ViT(100, 3, 32, **PAPER)
    one = model.blocks[0]
    for weight, inputs, outputs in (
        (one.attention.qkv.weight[:256], 64, 256),
        (one.attention.out.weight, 256, 64),
        (one.mlp[0].weight, 64, 128),
        (model.head[1].weight, 9216, 2048),
    ):
        limit = (6 / (inputs + outputs)) ** 0.5
        assert 0.99 * limit < weight.abs().max() <= limit
    assert 0.0499 < model.positions.abs().max() <= 0.05 and one.norm1.eps == 1e-6
    assert not any(module.bias.any() for module in model.modules() if isinstance(module, nn.Linear))


RENAMED = {
    "attention.qkv.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj", "mlp.0": "linear1",
    "mlp.3": "linear2",
}  # fmt: skip


def theirs_of(name):
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_torchs(training):
    torch.manual_seed(0)
    block = ViT(dropout=0.0, attention_dropout=0.0).double().blocks[0].train(training)
    theirs = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True).double()
    theirs.train(training).load_state_dict({theirs_of(key): value for key, value in block.state_dict().items()})
    x = torch.randn(3, 17, 64, dtype=torch.double, requires_grad=True)
    target, results = torch.randn_like(x), []
    for layer in (block, theirs):
        y, weights = layer(x), dict(layer.named_parameters())
        gradients = torch.autograd.grad((y * target).sum(), [x, *weights.values()])
        results.append({"y": y, **dict(zip(("x", *weights), gradients, strict=True))})
    ours = {theirs_of(key): value for key, value in results[0].items()}
    torch.testing.assert_close(ours, results[1])


def test_the_keras_block_has_a_second_gelu():
    torch.manual_seed(0)
    plain, keras = (ViT(**TINY, dropout=0.0, keras=flag).eval().blocks[0] for flag in (False, True))
    plain.load_state_dict(keras.state_dict(), strict=False)
    x = torch.randn(2, 5, 16)
    between = x + keras.attention(keras.norm1(x))
    expected = between + nn.functional.gelu(plain.mlp(keras.norm2(between)))
    torch.testing.assert_close(keras(x), expected)


def test_patches_are_squares_row_by_row():
    x = torch.arange(2 * 2 * 4 * 6).view(2, 2, 4, 6)
    cut = patches(x, 2)
    assert cut.shape == (2, 6, 8)
    for i, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(cut[:, i], x[:, :, row : row + 2, column : column + 2].flatten(1))
    assert torch.equal(patches(x.to(memory_format=torch.channels_last), 2), cut)


@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (1, 8, {"patch": 2}),
        (1, (8, 12), {"patch": 4}),
        (3, 32, {"pixels": 24, "patch": 6}),
        (2, 8, {"pixels": 12, "patch": 3, "head": "flatten"}),
        (3, 32, {"token": True, "num_contexts": 3}),
        (3, 8, {"patch": 4, "key": 5, "heads": 3}),
    ],
)
def test_any_image_size(channels, size, options):
    model = ViT(7, channels, size, width=0.5, **TINY | options)
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(4, channels, height, width)
    with cnlib.use_context(model, torch.tensor([0, 1, 2, 0])):
        assert model(x).shape == (4, 7)


def test_an_image_is_enlarged_here_or_before():
    model = ViT(5, 1, 8, pixels=12, **TINY).eval()
    x = torch.randn(2, 1, 8, 8)
    larger = nn.functional.interpolate(x, size=(12, 12), mode="bilinear")
    torch.testing.assert_close(model(x), model(larger))


def test_the_places_are_on_the_image_and_on_the_patches():
    model, seen = ViT(5, 3, 8, **TINY), {}
    assert (model.norm0.num_features, model.norm1.num_features) == (3, 16)
    cnlib.convert(model, {layer: lambda c: cnlib.ContextNorm(c, 2) for layer in model.SLOTS.values()})
    for name in ("norm0", "norm1"):
        getattr(model, name).register_forward_hook(lambda _, i, y, name=name: seen.update({name: tuple(y.shape)}))
    with cnlib.use_context(model, torch.tensor([0, 1])):
        model(torch.randn(2, 3, 8, 8))
    assert seen == {"norm0": (2, 3, 8, 8), "norm1": (2, 16, 4)}


def test_cn_on_patches_is_a_segment_embedding():
    """With variances 1, CN before the positions is the embedding less a row of its context's, at every patch."""
    torch.manual_seed(0)
    plain, cn = ViT(5, 3, 8, **TINY).eval(), ViT(5, 3, 8, **TINY).eval()
    cn.load_state_dict(plain.state_dict())
    cnlib.convert(cn, {"norm1": lambda c: cnlib.ContextNorm(c, 2, eps=0.0)})
    with torch.no_grad():
        cn.norm1.mean.normal_()
        x = torch.randn(2, 3, 8, 8)
        with cnlib.use_context(cn, torch.tensor([1, 1])):
            found = cn(x)
        plain.embed.bias -= cn.norm1.mean[1]
        torch.testing.assert_close(found, plain(x))


def test_the_token_says_the_context_and_nothing_else_differs():
    models = []
    for token in (False, True):
        torch.manual_seed(3)
        models.append(ViT(5, 3, 8, num_contexts=4, token=token, **TINY).eval())
    plain, told = models
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, told.state_dict()[name]), name
    assert count(told) - count(plain) == 4 * 16
    x, outputs = torch.randn(1, 3, 8, 8).repeat(3, 1, 1, 1), None
    with cnlib.use_context(told, torch.tensor([0, 3, 3])):
        outputs = told(x)
        outputs.sum().backward()
    assert torch.equal(outputs[1], outputs[2]) and not torch.allclose(outputs[0], outputs[1])
    assert told.token.rows.grad.abs().sum(1).gt(0).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="ContextToken 'token': no context was given"):
        told(x)
    with cnlib.use_context(told, torch.tensor([0, 4, 0])), pytest.raises(ValueError, match=r"in \[0, 4\)"):
        told(x)


def test_norms_of_the_blocks_see_tokens_on_axis_0():
    torch.manual_seed(0)
    usual, ours = ViT(5, 3, 8, **TINY).eval(), ViT(5, 3, 8, **TINY, norm=cnlib.LayerNorm).eval()
    ours.load_state_dict(usual.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(ours(x), usual(x))
    swapped = cnlib.convert(ours, {"blocks.*": cnlib.BatchNorm}).train()
    swapped(x)
    kinds = {name: type(layer) for name, layer in swapped.named_modules() if "norm" in name}
    assert kinds["blocks.1.norm2"] is cnlib.BatchNorm and kinds["norm"] is cnlib.LayerNorm
    embedded = (swapped.embed(patches(x, 4)) + swapped.positions).flatten(0, 1)
    torch.testing.assert_close(swapped.blocks[0].norm1.running_mean, 0.1 * embedded.mean(0))


def test_a_configuration_builds_it_with_a_row_for_each_context():
    options = {"patch": 2, "dim": 16, "depth": 1, "token": True}
    config = Config(model="vit", norm="none", placement=("patches",), num_contexts=6, options=options)
    model = build_model(config, cnlib.data.load("digits"))
    assert model.token.rows.shape == (6, 16) and model.positions.shape == (16, 16) and MODELS["vit"] is ViT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 5}, "patch=5 does not divide an image of 32 x 32"),
        ({"pixels": 30}, "patch=4 does not divide an image of 30 x 30"),
        ({"image_size": (32, 30)}, "an image of 32 x 30"),
        ({"heads": 5}, "tokens of 64 numbers for 5 heads"),
        ({"head": "class"}, "head='class': expected one of mean, flatten"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"image_size": (32, 0)}, "image_size=0: expected at least 1"),
        ({"width": 0}, "width=0.*a width above 0"),
        ({"pixels": -8}, "pixels=-8.*pixels and key of 0 or more"),
        ({"key": -4}, "key=-4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViT(**arguments)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"input is \(2, 1, 32, 32\), expected \(N, 3, 32, 32\)"):
        ViT(**TINY)(torch.zeros(2, 1, 32, 32))
