"""Methods are told apart by everybody: colors, line styles, names."""

import importlib.util
import itertools
from collections import Counter

import numpy as np
import pytest

from cnlib import plots
from cnlib.experiments import EXPERIMENTS
from cnlib.plots.style import FAMILIES, SPARE, SUFFIXES

INKS = {name: ink for name, (ink, _) in FAMILIES.items()} | {ink: ink for ink in SPARE}
# Severe color blindness, on linear RGB: Machado, Oliveira and Fernandes (2009).
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "usual": np.eye(3),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def linear(ink):
    c = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    t = XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("name", INKS)
def test_text_in_a_methods_color_is_readable(name):
    card, ink = (linear(c) @ XYZ[1] for c in (plots.CARD, INKS[name]))
    assert (card + 0.05) / (ink + 0.05) >= 4.5


@pytest.mark.parametrize("vision", VISION)
def test_families_are_told_apart_by_the_color_blind(vision):
    seen = {name: lab(np.array(VISION[vision]) @ linear(ink)) for name, ink in INKS.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 12, (a, b)


def test_relatives_share_a_color_and_differ_in_line_and_name():
    places, controls = ("channels", "patches"), ("em", "random", "one", "shuffled", "frozen", "unheard")
    names = ["-".join(["cn", *part]) for n in (0, 1) for part in itertools.combinations(places + controls, n)]
    styles = [plots.style_of(name) for name in [*names, *(f"cn-{a}-{b}" for a in places for b in controls)]]
    assert {s.color for s in styles} == {plots.color("cn")}
    for what in ("line", "name"):
        assert set(Counter(getattr(s, what) for s in styles).values()) == {1}


@pytest.mark.parametrize(
    ("method", "line", "name"),
    [
        ("bn", "-", "BN"),
        ("mn-em", "-.", "MN (EM)"),
        ("mn-random", "--", "MN, random contexts"),
        ("cn+", "-.", "CN+"),
        ("cn-random", "--", "CN, random contexts"),
        ("cn-one", ":", "CN, one context"),
        ("none", "-", "no norm"),
        ("cn-channels", SUFFIXES["channels"][0], "CN on the image"),
        ("cn-patches-random", (0, (5, 1, 5, 4, 3.7, 1.6)), "CN on patches, random contexts"),
        ("toy", "-", "toy"),
        ("toy-random", "--", "toy, random contexts"),
    ],
)
def test_the_parts_of_a_name_give_line_and_text(method, line, name):
    assert plots.style_of(method)[1:] == (line, name)
    assert plots.name_of(method) == name


def test_parts_nobody_knows_are_written_as_they_are():
    assert plots.name_of("bn-masked") == "BN-masked" and plots.color("bn-masked") == plots.color("bn")
    assert plots.name_of("pre-activation") == "pre-activation"
    assert plots.color("toy") == plots.color("toy-random") in SPARE


def test_joined_lines_are_those_that_matplotlib_draws():
    mpl = pytest.importorskip("matplotlib")
    from cnlib.plots.style import DASHES

    patterns = [mpl.rcParamsDefault[f"lines.{name}_pattern"] for name in ("dashed", "dashdot", "dotted")]
    assert [*map(list, DASHES.values())] == patterns


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_method_of_an_experiment_has_a_style_of_its_own(experiment):
    styles = [plots.style_of(method) for method in EXPERIMENTS[experiment].methods]
    assert len({*styles}) == len(styles)
    assert len({style.name for style in styles}) == len(styles)


@pytest.mark.skipif(importlib.util.find_spec("cnlib.norm.registry") is None, reason="no registry of norms yet")
def test_every_layer_has_a_color_and_a_name_of_its_own():
    from cnlib.norm.registry import NORMS

    styles = [plots.style_of(name) for name in NORMS]
    assert len({s.color for s in styles}) == len({s.name for s in styles}) == len(styles)


def test_figures_are_cards_and_shown_once():
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.colors import to_hex

    fig, _ = plots.figure()
    assert not plt.fignum_exists(getattr(fig, "number", -1)) and plt.get_fignums() == []
    assert to_hex(fig.get_facecolor()) == plots.CARD
