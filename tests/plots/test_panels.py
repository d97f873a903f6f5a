"""Panels show numbers, intervals and published values."""

import pytest

from cnlib import plots
from cnlib.results import Contrast, Difference, Estimate, Interval

pytest.importorskip("matplotlib")


def texts(figure):
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def test_intervals_show_mean_half_width_and_published_value():
    values = {"bn": Interval(0.6, 0.01, 3), "cn-random": Interval(0.58, float("nan"), 1)}
    fig = plots.intervals(values, "test accuracy (%)", reference={"bn": 62.0})
    assert {"60.0 ± 1.0", "58.0", "CN, random contexts", "published"} <= set(texts(fig))


def test_differences_draw_both_readings_and_a_shown_one_dark():
    from matplotlib.colors import to_hex

    wide, left = Interval(-0.0001, 0.02, 3), Interval(-0.03, 0.01, 3)
    values = {"shown": Difference(left, left), "not shown": Difference(left, wide), "a seed": Difference(*2 * [one()])}
    fig = plots.differences({"here": values, "there": {"shown": values["shown"]}}, "points")
    found = texts(fig)
    assert {"points", "here", "there", "shown", "not shown", "-3.0 ± 1.0", "+0.0 ± 2.0", "+1.0"} <= set(found)
    assert any("running best" in text and "last three epochs" in text for text in found)
    inks = [to_hex(tick.get_color()) for tick in fig.axes[0].get_yticklabels()]
    assert inks == [plots.INK, plots.MUTED, plots.MUTED]


def test_contrasts_draw_settings_their_mean_and_settings_like_these():
    parts = {"cifar10, image": Estimate(0.01, 0.005, 4, 3), "cifar100, image": Estimate(-0.01, 0.005, 4, 3)}
    found = Contrast(parts, Estimate(0.0, 0.003, 6, 3), Estimate(0.0, 0.01, 1, 2))
    fig = plots.contrasts({"CN minus BN": found, "MN minus BN": found}, "points", margin=1)
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == [
        *parts, "CN minus BN", "over settings like these", *parts, "MN minus BN", "over settings like these"
    ]  # fmt: skip
    assert {"+1.0 ± 1.4", "-1.0 ± 1.4", "+0.0 ± 0.7", "points"} <= set(texts(fig))


def one():
    return Interval(0.01, float("nan"), 1)
