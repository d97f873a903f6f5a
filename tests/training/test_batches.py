"""Splits on the device: statistics, order, augmentation."""

import numpy as np
import pytest
import torch

from cnlib.training.augment import cutout, flip, jitter, shift
from cnlib.training.batches import Split, moments, wrong_labels

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(50)
PLAIN = (torch.zeros(3), torch.ones(3))


def split(statistics=PLAIN, channels_last=True, **columns):
    return Split(IMAGES, LABELS, statistics, torch.device("cpu"), columns, channels_last)


def generator():
    return torch.Generator().manual_seed(1)


def test_moments_are_those_of_the_pixels():
    mean, std = moments(IMAGES)
    np.testing.assert_allclose(mean, IMAGES.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, IMAGES.std((0, 1, 2)), rtol=1e-6)
    assert moments(np.full((3, 2, 2, 1), 9, np.uint8))[1].item() == 1


def test_wrong_labels_are_other_classes_equally_likely():
    images = np.random.default_rng(1).integers(0, 256, (4000, 2, 2, 1), dtype=np.uint8)
    labels = np.arange(4000) % 4
    found = wrong_labels(images, labels, 4, 0.6, seed=3)
    wrong = found != labels
    assert abs(wrong.mean() - 0.6) < 0.03 and found.dtype == np.int64
    off = np.bincount((found - labels)[wrong] % 4, minlength=4)
    assert off[0] == 0 and abs(off[1:] / off.sum() - 1 / 3).max() < 0.03
    # by image, not by place; at a higher rate the same are wrong, in the same way, and more
    np.testing.assert_array_equal(wrong_labels(images[::-1], labels[::-1], 4, 0.6, 3)[::-1], found)
    more = wrong_labels(images, labels, 4, 0.8, 3)
    assert (more[wrong] == found[wrong]).all() and (more != labels).mean() > 0.75
    assert (wrong_labels(images, labels, 4, 0.0, 3) == labels).all()
    assert (wrong_labels(images, labels, 4, 1.0, 3) != labels).all()
    assert (wrong_labels(images, labels, 4, 0.6, 4) != found).any()


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
    first = list(data.shuffled(16, random))
    again = list(data.shuffled(16, random))
    labels = torch.cat([b.labels for b in first])
    assert [len(b.labels) for b in first] == [16, 16, 16] and len(labels.unique()) == 48
    assert not torch.equal(labels, torch.cat([b.labels for b in again]))
    for batch in first:  # everything about an image travels together
        expected = torch.from_numpy(IMAGES)[batch.labels].permute(0, 3, 1, 2).float()
        assert torch.equal(batch.x, expected) and torch.equal(batch.ids, batch.labels * 2)
    assert len(next(split().shuffled(500, generator())).labels) == 50


def test_flip_mirrors_about_half_of_the_images():
    batch = next(split().shuffled(50, generator(), [[flip]]))
    plain = torch.from_numpy(IMAGES)[batch.labels].permute(0, 3, 1, 2).float()
    same = (batch.x == plain).flatten(1).all(1)
    mirrored = (batch.x == plain.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 10 < int(mirrored.sum()) < 40


def test_crop_shifts_over_a_black_border():
    batch = next(split().shuffled(50, generator(), [[shift(2)]]))
    padded = torch.nn.functional.pad(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float(), (2, 2, 2, 2))
    seen = set()
    for x, label in zip(batch.x, batch.labels, strict=True):
        fits = [(i, j) for i in range(5) for j in range(5) if torch.equal(x, padded[label, :, i : i + 6, j : j + 6])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 10


def test_flips_and_shifts_draw_in_the_order_of_recorded_runs():
    """A recorded run is trained again to the same numbers only while these numbers are drawn in this order."""
    batch = next(split().shuffled(50, generator(), [[flip, shift(1)]]))
    random = generator()
    order = torch.randperm(50, generator=random)
    mirrored = torch.randint(2, (50, 1), generator=random, dtype=torch.bool)[:, 0]
    moved = torch.randint(-1, 2, (2, 50, 1), generator=random)[:, :, 0]
    assert torch.equal(batch.labels, order)
    padded = torch.nn.functional.pad(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float(), (1, 1, 1, 1))
    for i in range(50):
        image = padded[order[i]].flip(2) if mirrored[i] else padded[order[i]]
        rows, columns = (slice(1 + int(m), 7 + int(m)) for m in moved[:, i])
        assert torch.equal(batch.x[i], image[:, rows, columns])


def test_a_part_is_the_part_of_the_whole_batch():
    whole = next(split().shuffled(10, generator(), [[flip, shift(2)]]))
    parts = [next(split().shuffled(10, generator(), [[flip, shift(2)]], (p, 3))) for p in range(3)]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert sum(part.weight for part in parts) == 3


def test_views_of_the_same_images():
    batch = next(split(ids=torch.arange(50)).shuffled(50, generator(), [(), [jitter(0.3), cutout(3)]]))
    plain = torch.from_numpy(IMAGES)[batch.labels].permute(0, 3, 1, 2).float()
    assert torch.equal(batch.x, plain) and batch.x is batch.views[0]
    strong = batch.views[1]
    assert strong.shape == plain.shape and not torch.equal(strong, plain)
    dark = (strong == 0).all(1).sum((1, 2))
    assert dark.min() >= 4 and dark.max() >= 9  # a square of three, or what of it is inside
    assert strong.min() >= 0 and strong.max() <= 255 and torch.equal(strong, strong.round())


def test_reflected_shifts_bring_no_black():
    images = torch.full((20, 4, 4, 1), 7, dtype=torch.uint8)
    assert torch.equal(shift(2, "reflect")(images, generator()), images)
    assert not torch.equal(shift(2)(images, generator()), images)


def test_where_takes_all_that_goes_with_an_image():
    data = split(ids=torch.arange(50) * 2, domains=LABELS % 3)
    part = data.where(domain=1)
    batch = next(part.ordered(50))
    assert len(part) == 17 and batch.labels.tolist() == LABELS[LABELS % 3 == 1].tolist()
    assert torch.equal(batch.ids, 2 * batch.labels) and batch.domains.unique().tolist() == [1]
    assert len(data) == 50 and len(data.where(domain=1, label=4)) == 1
    with pytest.raises(ValueError, match="no image with {'domain': 5}"):
        data.where(domain=5)
    with pytest.raises(ValueError, match="these images have no domain; they have label"):
        split().where(domain=0)


def test_images_need_not_be_square():
    images = IMAGES[:, :, :4]
    data = Split(images, LABELS, PLAIN, torch.device("cpu"))
    batch = next(data.shuffled(50, generator(), [[flip, shift(1), cutout(2)]]))
    assert batch.x.shape == (50, 3, 6, 4)
