"""Figures: drawn from records, readable by everybody, and labeled with what they show."""

import itertools

import numpy as np
import pytest

from cnlib import plots
from cnlib.experiments import convnet
from cnlib.results import Difference, Interval
from cnlib.training import Config
from cnlib.training.records import Run

pytest.importorskip("matplotlib")
SOLID = {name: ink for name, (ink, line, _) in plots.STYLES.items() if line == "-"}
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


def runs(methods=("bn", "cn"), seeds=3, epochs=6):
    random = np.random.default_rng(0)
    extra = {m: {"norm": m} for m in ("bn", "gn")} | {
        m: convnet.METHODS[m] for m in ("mn", "mn-em", "mn-random", "cn-one", "cn-random")
    }
    extra["cn"] = {"norm": "cn", "contexts": "gmm"}
    return [
        Run(
            f"{m}-s{s}",
            Config(seed=s, dataset="cifar10", train_size=8000, profile="reduced", **extra[m]),
            {},
            {
                "epoch": np.arange(1, epochs + 1),
                "test_accuracy": 0.5 + 0.02 * np.arange(epochs) + random.normal(0, 0.01, epochs),
            },
            "finished",
        )
        for m in methods
        for s in range(seeds)
    ]


def texts(figure):
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


@pytest.mark.parametrize("name", SOLID)
def test_text_in_a_methods_color_is_readable(name):
    card, ink = (linear(c) @ XYZ[1] for c in (plots.CARD, SOLID[name]))
    assert (card + 0.05) / (ink + 0.05) >= 4.5


@pytest.mark.parametrize("vision", VISION)
def test_methods_are_told_apart_by_the_color_blind(vision):
    seen = {name: lab(np.array(VISION[vision]) @ linear(ink)) for name, ink in SOLID.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 12, (a, b)


def test_relatives_share_a_color_and_differ_in_style():
    for family in ("cn", "mn"):
        members = [style for name, style in plots.STYLES.items() if name.split("-")[0].rstrip("+") == family]
        assert len({m[0] for m in members}) == 1 and len({m[1] for m in members}) == len(members) > 1


def test_convergence_labels_curves_units_and_provenance():
    fig = plots.convergence(runs(), title="Accuracy")
    ax = fig.axes[0]
    found = texts(fig)
    assert {"BN", "CN", "Accuracy", "epoch", "test accuracy (%)"} <= set(found)
    assert "reduced profile · cifar10, 8,000 training images · 3 seeds" in found
    assert len(ax.lines) == 2 and len(ax.collections) == 2
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), 100 * np.mean([r.epochs["test_accuracy"] for r in runs()[:3]], axis=0)
    )


def test_convergence_of_the_error_of_chosen_methods_with_one_seed():
    fig = plots.convergence(runs(seeds=1), "test_error", methods=["cn"])
    assert "test error (%)" in texts(fig) and "BN" not in texts(fig)
    assert not fig.axes[0].collections and fig.axes[0].lines[0].get_ydata()[-1] < 50
    two = plots.convergence(runs(seeds=2))
    assert len(two.axes[0].lines) == 6 and not two.axes[0].collections
    with pytest.raises(ValueError, match="no runs"):
        plots.convergence(runs(), methods=["mn"])


def test_labels_of_curves_that_end_together_do_not_overlap():
    methods = ("bn", "mn", "mn-em", "mn-random", "cn-one", "cn-random", "gn")
    fig = plots.convergence([r for r in runs(methods, epochs=3)])
    fig.canvas.draw()
    names = {plots.name_of(m) for m in methods}
    boxes = [t.get_window_extent() for t in fig.axes[0].texts if t.get_text() in names]
    assert len(boxes) == len(methods)
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    assert all(box.y0 >= 0 and box.y1 <= fig.bbox.y1 for box in boxes)


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("limits", [(1e-4, 1.0), (1.0, 1e-4)])
def test_labels_stand_at_the_height_of_their_curves_on_any_axis(scale, limits):
    fig, ax = plots.figure(height=2.4)
    ax.set(yscale=scale, ylim=limits, xlim=(0, 1))
    ends = {"a": 1e-3, "b": 0.3, "c": 0.9, "beyond": 50.0}
    ends = ends if scale == "log" else {k: y for k, y in ends.items() if k != "c"}
    plots.label_ends(ax, [(1.0, y, name, "k", "-") for name, y in ends.items()])
    fig.canvas.draw()
    labels = {t.get_text(): t for t in ax.texts if t.get_text()}
    shown = {k: ax.transData.transform((1, min(y, 1.0)))[1] for k, y in ends.items()}
    boxes = {k: t.get_window_extent() for k, t in labels.items()}
    assert sorted(labels, key=lambda k: boxes[k].y0) == sorted(labels, key=shown.get)
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not a.overlaps(b)
    for name in ("a", "b"):  # no neighbor pushes these: they stand where the curve ends
        assert abs(boxes[name].y0 + boxes[name].height / 2 - shown[name]) < 0.1 * ax.bbox.height


def test_a_curve_that_ends_in_no_number_is_refused():
    with pytest.raises(ValueError, match=r"\['lost'\] end in no number"):
        plots.label_ends(plots.figure()[1], [(1.0, float("nan"), "lost", "k", "-"), (1.0, 1.0, "found", "k", "-")])


def test_curves_draw_mean_range_and_labels():
    fig, ax = plots.figure()
    x, values = [1, 10, 100], np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 9.0]])
    plots.curves(ax, x, {"ours": (values, "#0b5c9e", "o--")}, xscale="log", yscale="log", xlabel="step")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 3, 6])
    assert ax.lines[0].get_linestyle() == "--" and ax.lines[0].get_marker() == "o"
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (1, 9) and {"ours", "step"} <= set(texts(fig))


@pytest.mark.parametrize(
    ("metric", "factor", "label"),
    [
        ("test_accuracy", 100, "test accuracy (%)"),
        ("train_top5", 100, "training top-5 accuracy (%)"),
        ("test_plus_f1", 100, "test F1 (%)"),
        ("train_loss", 1, "training cross-entropy (nats)"),
        ("train_seconds", 1, "training seconds"),
        ("images_per_second", 1, "images per second"),
    ],
)
def test_units(metric, factor, label):
    assert plots.quantity(metric) == (factor, label)


def test_intervals_histograms_and_images_draw():
    values = {"bn": Interval(0.6, 0.01, 3), "cn-random": Interval(0.58, float("nan"), 1)}
    fig = plots.intervals(values, "test accuracy (%)", reference={"bn": 62.0})
    assert {"60.0 ± 1.0", "58.0", "CN, random contexts", "published"} <= set(texts(fig))
    fig = plots.histograms({"bn": np.zeros(5), "before": np.zeros(5)}, "activation")
    assert {"BN", "before", "activation", "density"} <= set(texts(fig))
    fig = plots.images(np.zeros((12, 4, 4, 1), np.uint8), list("abcdefghijkl"), columns=5)
    assert len(fig.axes) == 15 and "l" in texts(fig)


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


def one():
    return Interval(0.01, float("nan"), 1)


def test_figures_are_cards_and_shown_once():
    import matplotlib.pyplot as plt

    fig, _ = plots.figure()
    assert not plt.fignum_exists(getattr(fig, "number", -1)) and plt.get_fignums() == []
    from matplotlib.colors import to_hex

    assert to_hex(fig.get_facecolor()) == plots.CARD


def test_tables_are_html_and_keep_an_interval_on_one_line():
    pytest.importorskip("IPython")
    found = plots.table(["method", "accuracy"], [["BN & co", "59.5 ± 2.8 %"]]).data
    assert "<th>accuracy</th>" in found and "59.5\u00a0±\u00a02.8\u00a0%" in found and "BN\u00a0&amp;\u00a0co" in found
    assert 'tabindex="0"' in found  # the box is within the keyboard's reach
