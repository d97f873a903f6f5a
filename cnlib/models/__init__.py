"""Models: plain modules with norm layers of their own, which `cnlib.convert` swaps.

MODELS names factories, called as ``factory(num_classes, in_channels, image_size, width=..., **options)``, image_size
being (height, width), with the options of the configuration that they name as keywords, each with a default. A model
may say which of its norm layers a short name means, ``SLOTS = {"conv3": "norm3"}``; without, layers are named as in
``named_modules()``. A place that stays empty until a layer is put there is a `cnlib.norm.Place`. A layer is called with
(N, C) or (N, C, *). One row here, or ``MODELS[name] = factory`` in an experiment's file, makes a model a choice.
"""

from collections.abc import Callable

from torch import nn

from cnlib.models.convnet import ConvNet
from cnlib.models.siamese import Siamese
from cnlib.models.vit import ViT
from cnlib.models.wide_resnet import WideResNet

__all__ = ["MODELS", "ConvNet", "Siamese", "ViT", "WideResNet"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "siamese": Siamese,
    "vit": ViT,
    "wide-resnet": WideResNet,
}
