"""Models whose norm layers are slots: a slot takes a factory, ``factory(num_features) -> nn.Module``."""

from cnlib.models.convnet import ConvNet

__all__ = ["ConvNet"]
