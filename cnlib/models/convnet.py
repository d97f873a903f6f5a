"""The CIFAR ConvNet of the mixture and context normalization papers (ICDM paper, Table IV)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from cnlib.norm import BatchNorm, Place

Factory = Callable[[int], nn.Module]
WIDTHS = {"conv1": (64, 5), "conv2": (128, 5), "conv3": (128, 5), "conv4": (256, 3)}  # name: channels, kernel


class ConvNet(nn.Sequential):
    """conv 5x5 (64), conv 5x5 (128), conv 5x5 (128), conv 3x3 (256), average pool, linear.

    (N, in_channels, H, W) -> (N, num_classes). Each convolution is followed by a norm layer and ReLU, the first
    three by a max pool. Layers are called conv1, norm1, relu1, pool1, ... ; `norm` makes these norm layers. Two more
    are empty places: norm0 on the image, where CN-Channels goes, and norm5 on the logits.
    width: factor on all channel counts (1.0: Table IV). image_size: (height, width), or one number for both, to check
    the input. bias: of the convolutions; a norm layer's own shift makes it redundant, so it is off unless you take
    norms away.

    Table IV prints max pools of kernel 3, stride 2, pad 0 that map 32 to 16 to 8 to 4. Without padding 32 maps to 15;
    the printed sizes are true when a last, partial window counts (``ceil_mode``, Caffe's rule), which we use: no
    padding, as printed. The final average is over all positions left (4x4 at 32x32 inputs), so 8x8 and 28x28
    images work too.
    Source: ICDM paper, Table IV, after Kalayeh & Shah (2019).
    """

    SLOTS: ClassVar[dict[str, str]] = {
        "input": "norm0",
        **{name: f"norm{name[-1]}" for name in WIDTHS},
        "logits": "norm5",
    }

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        width: float = 1.0,
        norm: Factory = BatchNorm,
        bias: bool = False,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if width <= 0 or min(num_classes, in_channels) < 1 or min(size) < 8:
            raise ValueError(
                f"ConvNet: num_classes={num_classes}, in_channels={in_channels}, image_size={image_size}, "
                f"width={width}: expected positive numbers, and an image of at least 8 pixels for three pools"
            )
        self.expected = (in_channels, *size)
        self.norm0 = Place(in_channels)
        channels = in_channels
        for i, (name, (out, kernel)) in enumerate(WIDTHS.items(), start=1):
            out = max(1, round(out * width))
            self.add_module(name, nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias))
            self.add_module(f"norm{i}", norm(out))
            self.add_module(f"relu{i}", nn.ReLU())
            if i < len(WIDTHS):
                self.add_module(f"pool{i}", nn.MaxPool2d(3, stride=2, ceil_mode=True))
            channels = out
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, num_classes)
        self.norm5 = Place(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != self.expected:
            raise ValueError(f"ConvNet: input is {tuple(x.shape)}, expected (N, {', '.join(map(str, self.expected))})")
        return super().forward(x)
