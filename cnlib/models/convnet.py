"""The CIFAR ConvNet of the mixture and context normalization papers (ICDM paper, Table IV)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from cnlib.norm import BatchNorm

Factory = Callable[[int], nn.Module]
WIDTHS = {"conv1": (64, 5), "conv2": (128, 5), "conv3": (128, 5), "conv4": (256, 3)}  # name: channels, kernel
SLOTS = ("input", *WIDTHS)


class ConvNet(nn.Sequential):
    """conv 5x5 (64), conv 5x5 (128), conv 5x5 (128), conv 3x3 (256), average pool, linear.

    (N, in_channels, H, W) -> (N, num_classes). Each convolution is followed by a norm layer and ReLU, the first
    three by a max pool. Layers are called conv1, norm1, relu1, pool1, ... ; `slots` puts another norm layer after
    a convolution ("conv1" .. "conv4") or one on the image ("input": CN-Channels); the rest are made by `norm`.
    width: factor on all channel counts (1.0: Table IV). image_size: height and width, used to check the input.
    bias: of the convolutions; a norm layer's own shift makes it redundant, so it is off unless you take norms away.

    Table IV prints max pools of kernel 3, stride 2, pad 0 that map 32 to 16 to 8 to 4. Without padding 32 maps to 15;
    the printed sizes are true when a last, partial window counts (``ceil_mode``, Caffe's rule), which we use: no
    padding, as printed. The final average is over all positions left (4x4 at 32x32 inputs), so 8x8 and 28x28
    images work too. Convolutions and the linear layer draw their weights before any norm layer is made: with equal
    seeds they start equal, whatever the norm.
    Source: ICDM paper, Table IV, after Kalayeh & Shah (2019).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        norm: Factory = BatchNorm,
        slots: Mapping[str, Factory] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        slots = dict(slots or {})
        if unknown := sorted(set(slots) - set(SLOTS)):
            raise ValueError(f"ConvNet has no norm slot {', '.join(unknown)}: its slots are {', '.join(SLOTS)}")
        if width <= 0 or min(num_classes, in_channels) < 1 or image_size < 8:
            raise ValueError(
                f"ConvNet: num_classes={num_classes}, in_channels={in_channels}, image_size={image_size}, "
                f"width={width}: expected positive numbers, and an image of at least 8 pixels for three pools"
            )
        self.in_channels, self.image_size = in_channels, image_size
        convolutions, channels = {}, in_channels
        for name, (out, kernel) in WIDTHS.items():
            out = max(1, round(out * width))
            convolutions[name] = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
            channels = out
        linear = nn.Linear(channels, num_classes)
        if "input" in slots:
            self.norm0 = slots["input"](in_channels)
        for i, (name, convolution) in enumerate(convolutions.items(), start=1):
            self.add_module(name, convolution)
            self.add_module(f"norm{i}", slots.get(name, norm)(convolution.out_channels))
            self.add_module(f"relu{i}", nn.ReLU())
            if i < len(convolutions):
                self.add_module(f"pool{i}", nn.MaxPool2d(3, stride=2, ceil_mode=True))
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = linear

    @staticmethod
    def slot(name: str) -> str:
        """The name of the layer in a slot: "norm3" for "conv3", "norm0" for "input"."""
        return f"norm{SLOTS.index(name)}"

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(f"ConvNet: input is {tuple(x.shape)}, expected (N, {', '.join(map(str, expected))})")
        return super().forward(x)
