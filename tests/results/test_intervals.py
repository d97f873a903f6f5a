"""Mean and interval over seeds, and differences between methods."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from cnlib import results
from cnlib.training import Config
from cnlib.training.records import Run

stats = pytest.importorskip("scipy.stats")


def run(method="bn", seed=0, accuracies=(0.1, 0.5, 0.4)):
    curve = np.array(accuracies)
    epochs = {"epoch": np.arange(1, len(curve) + 1), "test_accuracy": curve, "test_loss": 1 - curve}
    return Run(f"{method}-s{seed}", Config(method=method, seed=seed), {}, epochs, "finished")


@pytest.mark.parametrize("n", [2, 5, 31, 100])
def test_intervals_are_those_of_scipys_t_distribution(n):
    values = np.random.default_rng(0).normal(size=n)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    found = results.interval(values)
    np.testing.assert_allclose([found.low, found.high, found.n], [low, high, n], rtol=1e-9)


def test_without_scipy_several_values_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    assert results.interval([0.5]).mean == 0.5
    with pytest.raises(ModuleNotFoundError, match="needs scipy.*`pip install scipy`"):
        results.interval([0.5, 0.6])


def test_interval_of_one_value_claims_nothing():
    one = results.interval([0.5])
    assert one.n == 1 and np.isnan(one.half) and one.contains_zero
    assert f"{one:.1%}" == "50.0 % (one seed)"
    assert f"{results.Interval(0.712, 0.0035, 3):.2%}" == "71.20 ± 0.35 %"
    assert f"{results.Interval(1.5, 0.25, 3):.2f}" == "1.50 ± 0.25"
    assert f"{results.Interval(1.5, 0.25, 3):+.2f}" == "+1.50 ± 0.25"
    assert not results.Interval(1.0, 0.5, 3).contains_zero and results.Interval(-0.2, 0.5, 3).contains_zero
    with pytest.raises(ValueError, match="at least one value"):
        results.interval([])


def test_final_last_best_and_at_an_epoch():
    runs = [run(seed=0), run(seed=1, accuracies=(0.2, 0.3, 0.6)), run("cn", accuracies=(0.9, 0.8, 0.7))]
    assert results.final(runs, "test_accuracy")["bn"].mean == pytest.approx(0.5)
    assert results.final(runs, "test_accuracy", best=True)["bn"].mean == pytest.approx(0.55)
    assert results.final(runs, "test_accuracy", epoch=2)["bn"].mean == pytest.approx(0.4)
    assert results.final(runs, "test_loss", best=True)["cn"].mean == pytest.approx(0.1)
    assert results.final(runs, "test_accuracy", last=2)["cn"].mean == pytest.approx(0.75)
    assert results.final(runs, "test_accuracy", epoch=2, last=2)["cn"].mean == pytest.approx(0.85)
    assert results.paired(runs, "cn", "bn", "test_accuracy", last=3).n == 1
    with pytest.raises(ValueError, match="has 3 epochs .*not 4"):
        results.final(runs, "test_accuracy", last=4)
    with pytest.raises(ValueError, match="best=True with last=3"):
        results.final(runs, "test_accuracy", best=True, last=3)
    with pytest.raises(ValueError, match="has 3 epochs"):
        results.final(runs, "test_accuracy", epoch=4)
    with pytest.raises(ValueError, match="both 'bn' with seed 0 .lr: 0.005, not 0.001"):
        results.final([run(), replace(run(), config=Config(lr=5e-3))], "test_accuracy")
    with pytest.raises(ValueError, match="has 0 epochs"):
        results.final([run(accuracies=())], "test_accuracy")


@pytest.mark.parametrize("last, shown", [(0.5, True), (-0.2, False), (-2.0, False)])
def test_without_a_reestimated_reading_a_difference_needs_the_best_and_the_last_epochs(last, shown):
    gains = [(0.6, 0.5, last + e) for e in (-0.1, 0.0, 0.1)]
    runs = [run("cn", s, a) for s, a in enumerate(gains)] + [run("bn", s, (0.3, 0.3, 0.3)) for s in range(3)]
    found = results.difference(runs, "cn", "bn")
    assert found.shown == shown and found.best.low > 0
    assert f"{found:+.1%}".startswith("+30.0 ± 0.0 % and ") and found.reestimated is None
    for one in runs[:2] + runs[3:]:
        one.final["test_reestimated_accuracy"] = 0.2 + 0.1 * (one.config.method == "cn") + 0.01 * one.config.seed
    found = results.difference(runs, "cn", "bn")  # of the two seeds that have it
    assert found.shown and found.claims == (found.reestimated,) and found.reestimated.n == 2
    assert f"{found:+.1%}" == "+10.0 ± 0.0 %"


def test_pairing_uses_equal_seeds_only():
    runs = [run("cn", s, (a,)) for s, a in ((0, 0.5), (1, 0.9), (2, 0.7))]
    runs += [run("bn", s, (a,)) for s, a in ((2, 0.6), (0, 0.4), (3, 0.0))]
    difference = results.paired(runs, "cn", "bn", "test_accuracy")
    assert difference.n == 2 and difference.mean == pytest.approx(0.1) and difference.half == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="no runs of mn"):
        results.paired(runs, "mn", "bn", "test_accuracy")
    with pytest.raises(ValueError, match="no seed in common"):
        results.paired([run("cn", 0), run("bn", 1)], "cn", "bn", "test_accuracy")


def test_two_readings_of_the_same_networks_are_compared():
    runs = [run("bn"), *(run("cn", s, (0.2, a, a)) for s, a in enumerate((0.6, 0.3, 0.8)))]
    for cn, plus in zip(runs[1:], (0.3, 0.1, 0.2), strict=True):
        cn.epochs["test_plus_accuracy"] = np.array([0.5, plus, plus])
    pair = ("test_plus_accuracy", "test_accuracy")
    found = results.paired(runs, "cn", "cn", pair)
    expected = results.interval([-0.3, -0.2, -0.6])
    np.testing.assert_allclose([found.mean, found.half, found.n], [expected.mean, expected.half, 3])
    assert results.paired(runs, "cn", "cn", pair[::-1]).mean == pytest.approx(-found.mean)
    # the second reading holds for the second method alone: BN has no CN+
    assert results.paired(runs, "cn", "bn", pair).mean == pytest.approx(0.3 - 0.4)
    with pytest.raises(ValueError, match="bn-s0 records no 'test_plus_accuracy'"):
        results.paired(runs, "cn", "bn", pair[::-1])
    both = results.difference(runs, "cn", "cn", pair)
    assert both.best.mean == pytest.approx(0.5 - (0.6 + 0.3 + 0.8) / 3)
    assert both.late.mean == pytest.approx((0.5 - 0.2) / 3 + 2 / 3 * found.mean)


def test_an_average_over_seeds_mixes_no_settings():
    """Also where no seed is there twice: other rates, sizes, or images under the same name."""
    for change in ({"lr": 5e-3}, {"train_size": 100}, {"epochs": 20}, {"profile": "paper"}):
        mixed = [run(), replace(run(), name="other", config=Config(method="bn", seed=1, **change))]
        with pytest.raises(ValueError, match=f"are both .bn. in other settings .{next(iter(change))}: "):
            results.final(mixed, "test_accuracy")
    images = [replace(run(seed=s), provenance={"data": str(s // 2)}) for s in range(3)]
    assert results.final(images[:2], "test_accuracy")["bn"].n == 2
    with pytest.raises(ValueError, match="data: checksum 1, not 0.: select one setting first"):
        results.final(images, "test_accuracy")


def test_methods_tested_on_other_images_have_no_difference():
    bn, cn = run(), run("cn")
    others = [replace(cn, config=replace(cn.config, **change)) for change in ({"dataset": "mnist"}, {"test_size": 9})]
    named = [replace(one, provenance={"data": one.config.method}) for one in (bn, cn)]
    for runs in ([bn, others[0]], [bn, others[1]], named):
        with pytest.raises(ValueError, match="cn and bn were tested on different images"):
            results.paired(runs, "cn", "bn", "test_accuracy")
        with pytest.raises(ValueError, match="tested on different images"):
            results.difference(runs, "cn", "bn")


def test_an_unfinished_run_has_no_last_epoch():
    runs = [run(), replace(run(seed=1), status="unfinished")]
    for how in ({}, {"best": True}, {"last": 2}):
        with pytest.raises(ValueError, match="bn-s1 is unfinished, after 3 of 10 epochs"):
            results.final(runs, "test_accuracy", **how)
    assert results.final(runs, "test_accuracy", epoch=3)["bn"].n == 2


@pytest.mark.parametrize("how", [{"epoch": -1}, {"epoch": 0}, {"last": 0}, {"last": -1}])
def test_epochs_are_counted_from_one(how):
    ((name, value),) = how.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected 1 or more"):
        results.final([run()], "test_accuracy", **how)


def test_what_is_not_a_number_shows_nothing():
    """As of a loss that is infinite minus infinite in the last epochs, while its running best is a number."""
    clear, nan = results.interval([0.1, 0.11, 0.1]), results.interval([0.1, np.nan])
    assert results.Difference(clear, clear).shown
    assert not any(results.Difference(*pair).shown for pair in ((clear, nan), (nan, clear), (nan, nan)))
    assert not results.Difference(clear, clear, nan).shown
