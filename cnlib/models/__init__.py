"""Models whose norm layers are slots: a slot takes a factory, ``factory(num_features) -> nn.Module``.

A model is called as ``model(num_classes, in_channels, image_size, width=..., slots={slot: factory}, **options)`` with
the options of the configuration that it names as keywords, each with a default. It makes its own norm in every other
slot, raises ValueError for a slot it lacks, and draws its weights before it calls a factory, so that equal seeds start
equal whatever the norm. A layer in a slot is called with (N, C) or (N, C, *). ``model.slot(name)`` is the layer's name
in ``named_modules()``. ``cnlib.training.build.MODELS[name] = model`` makes it a choice.
"""

from cnlib.models.convnet import ConvNet

__all__ = ["ConvNet"]
