"""Curves are labeled with what they show."""

import itertools

import numpy as np
import pytest

from cnlib import plots
from cnlib.training import Config
from cnlib.training.records import Run

pytest.importorskip("matplotlib")


def runs(methods=("bn", "cn"), seeds=3, epochs=6):
    random = np.random.default_rng(0)
    return [
        Run(
            f"{m}-s{s}",
            Config(method=m, seed=s, dataset="cifar10", train_size=8000, profile="reduced"),
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
    # no neighbor pushes these: they stand where the curve ends
    for name in ("a", "b"):
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


def test_lines_of_methods_without_a_style_are_drawn_and_labeled():
    fig = plots.convergence(runs(("toy", "cn-patches", "cn-patches-random")))
    assert [line.get_color() for line in fig.axes[0].lines] == [plots.color("toy"), *[plots.color("cn")] * 2]
    assert {"toy", "CN on patches", "CN on patches, random contexts"} <= set(texts(fig))
    fig, ax = plots.figure()
    plots.curves(ax, [1, 2], {"patches": (np.ones((2, 2)), *plots.style_of("cn-patches")[:2])})
    assert ax.lines[0].is_dashed()
    fig.canvas.draw()


@pytest.mark.parametrize(
    ("metric", "factor", "label"),
    [
        ("test_accuracy", 100, "test accuracy (%)"),
        ("train_top5", 100, "training top-5 accuracy (%)"),
        ("val_f1", 100, "validation F1 (%)"),
        ("test_plus_accuracy", 100, "test accuracy under CN+ (%)"),
        ("test_plus_loss", 1, "test cross-entropy under CN+ (nats)"),
        ("swapped_loss", 1, "swapped cross-entropy (nats)"),
        ("train_loss", 1, "training cross-entropy (nats)"),
        ("train_seconds", 1, "training seconds"),
        ("images_per_second", 1, "images per second"),
    ],
)
def test_units(metric, factor, label):
    assert plots.quantity(metric) == (factor, label)
