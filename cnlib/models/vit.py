"""The vision transformer of the context normalization papers, and a small one: the same network at other options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.norm import Place
from cnlib.norm.checks import check_context
from cnlib.norm.given import given

Factory = Callable[[int], nn.Module]
HEADS = ("mean", "flatten")
UNITS = (2048, 1024)  # of the flatten head


class Attention(nn.Module):
    """Multi-head self-attention. x: (N, L, D) -> (N, L, D); `key` numbers a head for query, key and value each.

    softmax(q k^T / sqrt(key)) v in every head, dropout on the softmax. Source: Vaswani et al. 2017, eq. (1).
    """

    def __init__(self, dim: int, heads: int, key: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.key, self.dropout = heads, key, dropout
        self.qkv, self.out = nn.Linear(dim, 3 * heads * key), nn.Linear(heads * key, dim)

    def forward(self, x: Tensor) -> Tensor:
        # (N, heads, L, key) each; torch's attention on a CPU is slower on views
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, self.key)).permute(2, 0, 3, 1, 4).contiguous()
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the norm stands before each part ("pre-norm"). (N, L, D).

    As torch.nn.TransformerEncoderLayer with norm_first, which has a dropout after the attention besides. keras: a GELU
    follows the second layer of the MLP as it follows the first.
    """

    def __init__(self, dim: int, attention: Attention, hidden: int, dropout: float, norm: Factory, keras: bool) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(dim), attention, norm(dim)
        last = [nn.GELU()] if keras else []
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), *last, nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(each_token(self.norm1, x))
        return x + self.mlp(each_token(self.norm2, x))


def each_token(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm layer, called with (N, C), on every token of (N, L, D): layer norm, or whichever was put in its place."""
    return norm(x.flatten(0, 1)).view_as(x)


class ContextToken(nn.Module):
    """A learned row for each context, prepended to the tokens: (N, L, D) -> (N, L + 1, D). `cnlib.use_context` says
    which. It tells a transformer its context without any norm layer; ours, as a control."""

    given_ids: Tensor | None

    def __init__(self, num_contexts: int, dim: int) -> None:
        super().__init__()
        self.name, self.given_ids = "", None
        self.rows = nn.Parameter(0.02 * torch.randn(num_contexts, dim))

    def forward(self, x: Tensor) -> Tensor:
        ids = check_context(given(self, "given_ids"), x, len(self.rows), f"ContextToken {self.name!r}")
        return torch.cat((self.rows[ids].unsqueeze(1).to(x.dtype), x), 1)


class ViT(nn.Module):
    """Patches, a linear embedding, learned positions, transformer blocks, a head: (N, C, H, W) -> (N, num_classes).

    Two places are empty: `norm0` on the image (slot "input", CN-Channels), and `norm1` on the embedded patches, as
    (N, dim, patches) and before their positions (slot "patches", CN-Patches).

    image_size    (height, width), or one number for both. pixels: the side to which the image is enlarged first
                  (bilinear), 0 for none. patch: the side of a patch; it has to divide both sides
    dim, depth    width of a token, number of blocks. heads, key: attention heads and their size, 0 for dim / heads.
                  hidden: units of a block's MLP. `width` is a factor on dim, hidden and the units of the head
    dropout       in the MLPs; attention_dropout: of the weights of attention (on a CPU it costs a third of the time)
    head          "mean" of the tokens, norm, linear; or "flatten": norm, all tokens side by side, two hidden layers of
                  2048 and 1024 units with dropout 0.5, linear
    token         whether a `ContextToken` with a row for each of num_contexts joins the patches; the head does not see
                  it
    keras         as Keras makes its layers: uniform starts after Glorot, eps 1e-6, and the example's second GELU
    norm          makes the layers before attention and MLP, from `dim`; by default layer norm of each token

    The papers' network, "Image classification with Vision Transformer" of the Keras examples (K. Salama, 2021; the
    version with tokens of 64): `ViT(100, 3, 32, pixels=72, patch=6, depth=8, key=64, head="flatten", keras=True)`.
    Raises ValueError for sizes that do not fit each other.
    Source: Dosovitskiy et al. 2021; placements: ICDM paper, section IV-B.
    """

    SLOTS: ClassVar[dict[str, str]] = {"input": "norm0", "patches": "norm1"}

    def __init__(
        self,
        num_classes: int = 100,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        width: float = 1.0,
        num_contexts: int = 1,
        pixels: int = 0,
        patch: int = 4,
        dim: int = 64,
        depth: int = 6,
        heads: int = 4,
        key: int = 0,
        hidden: int = 128,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        head: str = "mean",
        token: bool = False,
        keras: bool = False,
        norm: Factory = nn.LayerNorm,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.expected, self.pixels = (in_channels, *size), (pixels, pixels) if pixels else size
        counts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": min(size)}
        counts |= {"patch": patch, "depth": depth, "heads": heads, "dim": dim, "hidden": hidden}
        for name, count in {**counts, "num_contexts": num_contexts}.items():
            if count < 1:
                raise ValueError(f"ViT: {name}={count}: expected at least 1")
        if width <= 0 or min(pixels, key) < 0:
            raise ValueError(
                f"ViT: width={width}, pixels={pixels}, key={key}: expected a width above 0, pixels and key of 0 or more"
            )
        if any(side % patch for side in self.pixels):
            raise ValueError(
                f"ViT: patch={patch} does not divide an image of {' x '.join(map(str, self.pixels))} pixels"
            )
        if not (0 <= dropout < 1 and 0 <= attention_dropout < 1):
            raise ValueError(f"ViT: dropout={dropout}, attention_dropout={attention_dropout}: expected 0 to below 1")
        if head not in HEADS:
            raise ValueError(f"ViT: head={head!r}: expected one of {', '.join(HEADS)}")
        dim, hidden, *units = (max(1, round(width * count)) for count in (dim, hidden, *UNITS))
        if not key and dim % heads:
            raise ValueError(f"ViT: tokens of {dim} numbers for {heads} heads: expected a multiple, or a key size")
        self.patch, tokens = patch, math.prod(side // patch for side in self.pixels)
        self.norm0, self.embed = Place(in_channels), nn.Linear(in_channels * patch**2, dim)
        self.norm1 = Place(dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dim))
        attention = lambda: Attention(dim, heads, key or dim // heads, attention_dropout)  # noqa: E731
        self.blocks = nn.Sequential(*(Block(dim, attention(), hidden, dropout, norm, keras) for _ in range(depth)))
        sizes = (tokens * dim, *units) if head == "flatten" else (dim,)
        hidden_layers = [(nn.Linear(a, b), nn.GELU(), nn.Dropout(0.5)) for a, b in itertools.pairwise(sizes)]
        first = [nn.Dropout(0.5)] if head == "flatten" else []
        self.norm = norm(dim)
        self.head = nn.Sequential(*first, *itertools.chain(*hidden_layers), nn.Linear(sizes[-1], num_classes))
        self.flat = head == "flatten"
        if keras:
            self.start_as_keras()
        # last, so that equal seeds draw equal weights with and without it
        self.token = ContextToken(num_contexts, dim) if token else nn.Identity()

    @torch.no_grad()
    def start_as_keras(self) -> None:
        """Glorot-uniform weights, biases 0, positions uniform in +-0.05, eps 1e-6 in layer norms."""
        nn.init.uniform_(self.positions, -0.05, 0.05)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # query, key and value are layers of their own there
                for part in module.weight.chunk(3 if name.endswith("qkv") else 1):
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W) of the size given, or of the one they are enlarged to."""
        if x.ndim != 4 or tuple(x.shape[1:]) not in (self.expected, (self.expected[0], *self.pixels)):
            raise ValueError(f"ViT: input is {tuple(x.shape)}, expected (N, {', '.join(map(str, self.expected))})")
        if x.shape[2:] != self.pixels:
            x = F.interpolate(x, size=self.pixels, mode="bilinear", align_corners=False)
        x = self.embed(patches(self.norm0(x), self.patch))  # (N, L, D)
        x = self.norm1(x.transpose(1, 2)).transpose(1, 2) + self.positions
        x = self.blocks(self.token(x))[:, -len(self.positions) :]
        return self.head(each_token(self.norm, x).flatten(1) if self.flat else self.norm(x.mean(1)))


def patches(x: Tensor, size: int) -> Tensor:
    """The squares of an image, row by row, channel by channel: (N, C, H, W) -> (N, H W / size^2, C size^2)."""
    n, channels, height, width = x.shape
    grid = x.reshape(n, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * size**2)
