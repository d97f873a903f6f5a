"""Splits on the device: statistics, order, augmentation."""

import numpy as np
import torch

from cnlib.training.batches import Split, moments

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(50)
PLAIN = (torch.zeros(3), torch.ones(3))


def split(statistics=PLAIN, **arguments):
    return Split(IMAGES, LABELS, statistics, torch.device("cpu"), **arguments)


def generator():
    return torch.Generator().manual_seed(1)


def test_moments_are_those_of_the_pixels():
    mean, std = moments(IMAGES)
    np.testing.assert_allclose(mean, IMAGES.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, IMAGES.std((0, 1, 2)), rtol=1e-6)
    assert moments(np.full((3, 2, 2, 1), 9, np.uint8))[1].item() == 1


def test_batches_are_normalized_channels_last_views():
    x = torch.cat([b.x for b in split(moments(IMAGES)).ordered(16)])
    assert x.shape == (50, 3, 6, 6)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    batch = next(split().ordered(16)).x
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert next(split(channels_last=False).ordered(16)).x.is_contiguous()


def test_shuffled_takes_each_image_once_and_another_order_each_epoch():
    data, random = split(ids=torch.arange(50) * 2), generator()
    first = list(data.shuffled(16, random, flip=False, crop=0))
    again = list(data.shuffled(16, random, flip=False, crop=0))
    labels = torch.cat([b.labels for b in first])
    assert [len(b.labels) for b in first] == [16, 16, 16] and len(labels.unique()) == 48
    assert not torch.equal(labels, torch.cat([b.labels for b in again]))
    for batch in first:  # everything about an image travels together
        expected = torch.from_numpy(IMAGES)[batch.labels].permute(0, 3, 1, 2).float()
        assert torch.equal(batch.x, expected) and torch.equal(batch.ids, batch.labels * 2)
    assert len(next(split().shuffled(500, generator(), False, 0)).labels) == 50


def test_flip_mirrors_about_half_of_the_images():
    batch = next(split().shuffled(50, generator(), flip=True, crop=0))
    plain = torch.from_numpy(IMAGES)[batch.labels].permute(0, 3, 1, 2).float()
    same = (batch.x == plain).flatten(1).all(1)
    mirrored = (batch.x == plain.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 10 < int(mirrored.sum()) < 40


def test_crop_shifts_over_a_black_border():
    data = split(border=2)
    batch = next(data.shuffled(50, generator(), flip=False, crop=2))
    padded = torch.nn.functional.pad(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float(), (2, 2, 2, 2))
    seen = set()
    for x, label in zip(batch.x, batch.labels, strict=True):
        fits = [(i, j) for i in range(5) for j in range(5) if torch.equal(x, padded[label, :, i : i + 6, j : j + 6])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 10
    torch.testing.assert_close(next(data.ordered(50)).x, next(split().ordered(50)).x)  # tests see the whole image
