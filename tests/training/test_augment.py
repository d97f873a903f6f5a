"""Views of images: what is drawn, what is kept, and where each pixel comes from."""

import math

import pytest
import torch
from torch.nn import functional as F

from cnlib.training import Config
from cnlib.training.augment import flip, resize, rotate, see, shift, usual_view, zoom


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(n=1, height=9, width=9, channels=3):
    return torch.randint(0, 256, (n, height, width, channels), generator=seeded(5), dtype=torch.uint8)


def ramp(n, size=33):
    """Gray levels that rise to the right in the first channel, downwards in the second."""
    steps = torch.linspace(0, 255, size)
    both = torch.stack((steps.expand(size, size), steps[:, None].expand(size, size)), 2)
    return both.round().to(torch.uint8).expand(n, -1, -1, -1)


@pytest.mark.parametrize("augmentation", [rotate(20.0), zoom(0.3), resize((12, 15)), flip])
def test_types_shapes_and_equal_draws(augmentation):
    x = picture(5, 8, 11)
    first, second, other = (augmentation(x, seeded(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8 and first.shape[0] == 5 and first.shape[3] == 3
    assert torch.equal(first, second)
    resized = first.shape[1:3] == (12, 15)
    assert torch.equal(first, other) == resized


@pytest.mark.parametrize("augmentation", [rotate(0.0), zoom(0.0), resize((8, 11))])
def test_nothing_asked_nothing_done(augmentation):
    assert torch.equal(augmentation(picture(4, 8, 11), seeded()), picture(4, 8, 11))


def test_a_shift_by_more_than_a_mirrored_image_is_refused():
    assert shift(7, "reflect")(picture(2, 8, 11), seeded()).shape == (2, 8, 11, 3)
    assert shift(9)(picture(2, 8, 11), seeded()).shape == (2, 8, 11, 3)
    with pytest.raises(ValueError, match="crop=8: expected less than the side of an image of 8 x 11"):
        shift(8, "reflect")(picture(2, 8, 11), seeded())


def slopes(images):
    """How the two gray levels change a step to the right and a step down in the middle: (N, 2 levels, 2 steps)."""
    x = images[:, 8:25, 8:25].double()
    return torch.stack(((x[:, :, 1:] - x[:, :, :-1]).mean((1, 2)), (x[:, 1:] - x[:, :-1]).mean((1, 2))), 2)


def test_a_rotation_turns_the_slope_and_keeps_its_size():
    x = ramp(200)
    found = slopes(rotate(7.2)(x, seeded())) / slopes(x)[0, 0, 0]
    cos, sin = found[:, 0, 0], found[:, 0, 1]
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(200).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(found[:, 1, 1], cos, atol=0.02, rtol=0)
    torch.testing.assert_close(found[:, 1, 0], -sin, atol=0.02, rtol=0)
    angles = torch.rad2deg(torch.atan2(sin, cos))
    assert 6.8 < float(angles.max()) < 7.4 and -7.4 < float(angles.min()) < -6.8 and abs(float(angles.mean())) < 1


def test_a_zoom_shows_a_share_of_either_axis():
    x = ramp(200)
    found = slopes(zoom(0.2)(x, seeded())) / slopes(x)[0, 0, 0]
    across, down = found[:, 0, 0], found[:, 1, 1]
    for share in (across, down):
        assert 0.78 < float(share.min()) < 0.83 and 1.17 < float(share.max()) < 1.22
    assert abs(float(torch.corrcoef(torch.stack((across, down)))[0, 1])) < 0.2
    assert float(found[:, 0, 1].abs().max()) < 0.02


def test_a_rotation_of_an_image_that_is_not_square():
    """The angle is an angle in pixels, whatever the sides; beyond the border is the mirror image."""
    x = picture(1, 5, 9)

    angle = math.radians(90) * float(2 * torch.rand(1, 1, generator=seeded(3)) - 1)
    found = rotate(90.0)(x, seeded(3))
    rows, columns = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(9.0) - 4, indexing="ij")
    from_column = math.cos(angle) * columns - math.sin(angle) * rows + 4
    from_row = math.sin(angle) * columns + math.cos(angle) * rows + 2
    grid = torch.stack(((from_column + 0.5) / 9 * 2 - 1, (from_row + 0.5) / 5 * 2 - 1), 2)[None]
    planes = x.permute(0, 3, 1, 2).float()
    expected = F.grid_sample(planes, grid, padding_mode="reflection", align_corners=False).round()
    assert (found.permute(0, 3, 1, 2).float() - expected).abs().max() <= 1


def test_an_image_is_enlarged_bilinearly():
    x = picture(2, 4, 4)
    expected = F.interpolate(x.permute(0, 3, 1, 2).float(), size=(9, 9), mode="bilinear").round()
    assert torch.equal(resize((9, 9))(x, seeded()).permute(0, 3, 1, 2).float(), expected)


def test_a_configuration_asks_for_views_in_the_papers_order():
    view = usual_view(Config(flip=True, crop=2, rotate=7.2, zoom=0.2))
    assert [step.__qualname__.split(".")[0] for step in view] == ["flip", "shift", "rotate", "zoom"]
    assert usual_view(Config()) == [] and [*usual_view(Config(flip=True))] == [flip]
    assert see(picture(3), view, seeded()).shape == (3, 9, 9, 3)
    with pytest.raises(ValueError, match="zoom=1: expected less than 1"):
        Config(zoom=1.0)
    with pytest.raises(ValueError, match="rotate=-1: expected 0 or more"):
        Config(rotate=-1)
