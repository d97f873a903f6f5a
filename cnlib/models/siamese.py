"""A siamese network: both images of a pair go through one transformer, and their distance is that of its outputs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.models.vit import ViT


class Siamese(nn.Module):
    """Images (N, C, H, W) to points on a sphere, (N, embedding) of Euclidean length 1, by a `ViT` with a mean head.

    A pair is two rows of a batch. Weights are shared by both, and so is a norm layer; only its context may differ.
    num_classes: not used, since nothing is classified. embedding: numbers an image; the other options are those of
    `ViT`, whose places for norm layers this has, too: "input" and "patches".
    Source: Bromley et al. 1993; Hadsell, Chopra, LeCun 2006; ICDM paper, section IV-E, which gives no sizes.
    """

    SLOTS: ClassVar[dict[str, str]] = {slot: f"encoder.{layer}" for slot, layer in ViT.SLOTS.items()}

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = (48, 64),
        width: float = 1.0,
        embedding: int = 32,
        patch: int = 8,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = ViT(
            embedding,
            in_channels,
            image_size,
            width,
            patch=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            hidden=hidden,
            dropout=dropout,
            attention_dropout=dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, embedding), rows of length 1. Raises ValueError for images of another size, as `ViT` does."""
        return F.normalize(self.encoder(x), dim=1)
