"""The wide residual network of AdaMatch, WRN-d-k (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from cnlib.norm import Place

Factory = Callable[[int], nn.Module]
GROUPS = (16, 32, 64)  # channels at k = 1


class Block(nn.Module):
    """norm, activation, conv 3x3, norm, activation, conv 3x3, plus the input: (N, C, H, W) -> (N, D, H', W').

    Where channels differ the input goes through a 1x1 convolution, after the first norm and activation, which both
    ways share then. `stride` is of the first convolution and of that one.
    """

    def __init__(self, channels: int, out: int, stride: int, slope: float, norm: Factory) -> None:
        super().__init__()
        self.slope = slope
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = None if channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(x), self.slope)
        x = x if self.shortcut is None else self.shortcut(y)
        y = self.conv1(y)
        return x + self.conv2(F.leaky_relu(self.norm2(y), self.slope))


class WideResNet(nn.Module):
    """conv 3x3 (16), three groups of (depth - 4) / 6 blocks of 16k, 32k, 64k channels, norm, mean, linear.

    (N, in_channels, H, W) -> (N, num_classes). The second and third group begin with stride 2. WRN-28-2 is depth 28,
    width 2: 1,467,610 weights for ten classes and three channels. It is built as in the Keras example of AdaMatch. That
    of AdaMatch's own program has as many, and two differences that no option makes here: convolutions start with
    variance 2 / fan-out, and the 1x1 convolutions of the second and third group get their input as it is, before norm
    and activation.

    width         k, at least 1. image_size: (height, width), or one number for both, to check the input
    slope         of the activation below 0: 0.1 in AdaMatch's program, 0 (ReLU) in the Keras example
    bn_momentum, bn_eps  of its norm layers where they have these: torch's meaning, so AdaMatch's 0.999 is 0.001 here,
                  and Keras' 0.99 is 0.01
    norm          makes the norm layers; by default torch's batch norm, whose numbers are ours at two thirds of the time

    Convolutions have no bias and start normal with variance 2 / fan-in (He et al. 2015); the linear layer starts after
    Glorot, with bias 0. Slots: "input", an empty place on the image, and "all", every norm layer.
    Raises ValueError for a depth that is not 6 n + 4 and sizes that do not fit.
    Source: Zagoruyko & Komodakis (2016), with the norm before each convolution (He et al. 2016).
    """

    SLOTS: ClassVar[dict[str, str]] = {"input": "norm0", "all": "*norm[123]"}

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        width: float = 2.0,
        depth: int = 28,
        slope: float = 0.1,
        bn_momentum: float = 0.001,
        bn_eps: float = 1e-5,
        norm: Factory = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet: depth={depth}: expected 6 n + 4 for n of 1 or more, such as 10, 16 or 28")
        # below 1 there would be 4 or 8 channels, where torch 2.11 on a CPU writes beyond its memory (channels_last)
        if width < 1 or min(num_classes, in_channels, *size) < 1:
            raise ValueError(
                f"WideResNet: num_classes={num_classes}, in_channels={in_channels}, image_size={image_size}, "
                f"width={width}: expected positive numbers, and a width of at least 1"
            )
        self.expected, self.slope = (in_channels, *size), slope
        self.norm0 = Place(in_channels)
        self.conv = nn.Conv2d(in_channels, GROUPS[0], 3, padding=1, bias=False)
        blocks, channels = [], GROUPS[0]
        for group, base in enumerate(GROUPS):
            out = max(1, round(base * width))
            for i in range((depth - 4) // 6):
                blocks.append(Block(channels, out, 2 if group and not i else 1, slope, norm))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.norm3 = norm(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif hasattr(module, "running_mean"):
                module.momentum, module.eps = bn_momentum, bn_eps  # type: ignore[assignment]
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images x (N, C, H, W) of the size it was made for; ValueError for others."""
        if x.ndim != 4 or x.shape[1:] != self.expected:
            raise ValueError(
                f"WideResNet: input is {tuple(x.shape)}, expected (N, {', '.join(map(str, self.expected))})"
            )
        x = self.blocks(self.conv(self.norm0(x)))
        return self.linear(F.leaky_relu(self.norm3(x), self.slope).mean((2, 3)))
