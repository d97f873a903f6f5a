"""Known facts about the real data sets, wherever $CNLIB_DATA has them."""

import numpy as np
import pytest

import cnlib.data

# name: train, test, images of one class in train (None: not equal), classes
FACTS = {
    "cifar10": (50_000, 10_000, 5_000, 10),
    "cifar100": (50_000, 10_000, 500, 100),
    "mnist": (60_000, 10_000, None, 10),
    "fashion-mnist": (60_000, 10_000, 6_000, 10),
    "svhn": (73_257, 26_032, None, 10),
    "svhn_test10k": (7_000, 3_000, None, 10),
    "tiny-imagenet": (100_000, 10_000, 500, 200),
    "tiny_imagenet32": (100_000, 10_000, 500, 200),
    "daynight_amos": (240, 160, None, 2),
}


def present(name):
    if not (cnlib.data.root() / name).is_dir():
        pytest.skip(f"{name} is not in $CNLIB_DATA")
    return cnlib.data.load(name)


@pytest.mark.parametrize("name", FACTS)
def test_sizes_and_class_counts(name):
    data = present(name)
    train, test, per_class, classes = FACTS[name]
    assert (len(data.train_images), len(data.test_images), len(data.classes)) == (train, test, classes)
    counts = np.bincount(data.train_labels, minlength=classes)
    assert counts.min() > 0 and np.bincount(data.test_labels, minlength=classes).min() > 0
    assert per_class is None or set(counts) == {per_class}


def test_cifar10_channel_statistics():
    images = present("cifar10").train_images
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-4)
    sample = images[:10_000].astype(np.float32) / 255
    np.testing.assert_allclose(sample.std((0, 1, 2)), [0.247, 0.2435, 0.2616], atol=2e-3)


def test_mnist_statistics():
    images = present("mnist").train_images
    assert abs(images.mean() / 255 - 0.1307) < 5e-4


def test_mnist_in_a_blend():
    present("mnist")
    present("cifar100")
    data = cnlib.data.load("cifar100+mnist")
    assert data.train_images.shape == (110_000, 32, 32, 3) and len(data.classes) == 110
    digits = data.train_images[data.train_domains == 1]
    # enlarging keeps the mean; it smooths, so that the deviation of 0.308 falls
    assert abs(digits.mean() / 255 - 0.1309) < 2e-4 and abs(digits[:10_000].std() / 255 - 0.290) < 2e-3
    assert set(np.unique(data.test_labels[data.test_domains == 1])) == set(range(100, 110))
