"""Printed cells find our runs, and verdicts say what the intervals say."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnlib import results
from cnlib.experiments import EXPERIMENTS
from cnlib.results.report import _power, _verdict
from cnlib.training.records import Run

CONVNET = EXPERIMENTS["convnet"]


def run(method, accuracy, seed=0, profile="reduced", **setting):
    config = CONVNET.config(method, seed, profile, **setting)
    curve = np.full(config.epochs, accuracy)
    curve[-1] -= 0.1
    plus = {"test_plus_accuracy": curve / 2} if config.norm == "cn" else {}
    return Run(CONVNET.record_name(config), config, {}, {"test_accuracy": curve, **plus}, "finished")


def seeds(method, *accuracies, **setting):
    return [run(method, a, s, **setting) for s, a in enumerate(accuracies)]


def one(cells, **where):
    (cell,) = [c for c in cells if all(c.row.get(key) == value for key, value in where.items())]
    return cell


def test_without_runs_every_cell_is_not_yet_run_and_says_how():
    cells = results.reproduction([])
    assert {cell.verdict for cell in cells} == {"not yet run"} and all(cell.ours is None for cell in cells)
    assert one(cells, dataset="cifar10", model="CN", epoch=25).command.startswith("cnlib sweep table-1 --profile paper")


@pytest.mark.parametrize(
    "cn, verdict",
    [
        ((0.5221, 0.5322, 0.5120), "inside"),  # 0.2 to 0.22 points above BN; 0.21 are printed
        ((0.62, 0.63, 0.61), "outside"),
        ((0.42, 0.43, 0.41), "outside"),
        ((0.5, 0.6, 0.4), "undecided"),
    ],
)
def test_the_verdict_is_where_the_printed_difference_lies(cn, verdict):
    runs = seeds("bn", 0.52, 0.53, 0.51) + seeds("cn", *cn) + seeds("cn-random", 0.9, 0.9)
    cells = results.reproduction(runs, ["french_table_1"])
    cell = one(cells, dataset="cifar10", model="CN", epoch=100)
    assert cell.verdict == verdict and cell.profile == "reduced" and cell.command.endswith("--profile reduced")
    assert cell.ours.mean == pytest.approx(100 * np.mean(cn)) and cell.ours_gap.best.n == 3
    assert cell.gap == pytest.approx(87.11 - 86.90)
    assert one(cells, dataset="cifar10", model="BN", epoch=100).verdict == "baseline"
    assert one(cells, dataset="cifar10", model="MN", epoch=100).verdict == "not yet run"


@pytest.mark.parametrize(
    "end, verdict", [((0.0, 0.0, 0.0), "inside"), ((-0.5, -0.25, 0.0), "undecided"), ((-0.3, -0.3, -0.3), "undecided")]
)
def test_without_a_reestimated_reading_the_running_best_and_the_last_epochs_decide_together(end, verdict):
    cn = seeds("cn", 0.5221, 0.5322, 0.5120)
    for seed, change in enumerate(end):
        cn[seed].epochs["test_accuracy"][-1] += change
    cell = one(
        results.reproduction(seeds("bn", 0.52, 0.53, 0.51) + cn, ["french_table_1"]),
        dataset="cifar10", model="CN", epoch=100,
    )  # fmt: skip
    assert cell.verdict == verdict and cell.reestimated is None
    early = one(results.reproduction(cn, ["french_table_1"]), dataset="cifar10", model="CN", epoch=25)
    assert early.label == "cifar10 CN, epoch 25 (ours: 3 of 10)" and cell.label == "cifar10 CN, epoch 100"


def test_the_reestimated_reading_decides_where_it_is_recorded():
    runs = seeds("bn", 0.52, 0.53, 0.51) + seeds("cn", 0.62, 0.63, 0.61)
    for r in runs:
        r.final["test_reestimated_accuracy"] = 0.6 + 0.01 * r.config.seed
    for r, gain in zip(runs[3:], (0.0020, 0.0021, 0.0022), strict=True):
        r.final["test_reestimated_accuracy"] += gain
    cells = results.reproduction(runs, ["french_table_1"])
    cell = one(cells, dataset="cifar10", model="CN", epoch=100)
    assert cell.verdict == "inside" and cell.ours_gap.reestimated.mean == pytest.approx(0.21)
    assert cell.ours_gap.best.mean == pytest.approx(10) and cell.reestimated.mean == pytest.approx(61.21)
    assert cell.runs == "reduced-cifar10-cn - reduced-cifar10-bn"
    assert one(cells, dataset="cifar10", model="CN", epoch=75).ours_gap.reestimated is None  # of the last epoch only
    runs[3].final.clear()  # of two seeds then
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="CN", epoch=100)
    assert cell.ours_gap.reestimated.n == 2 and cell.ours_gap.best.n == 3
    assert results.to_text([cell])["seeds"][0] == "2 of 3"  # the verdict rests on two


def test_cn_plus_is_compared_with_cn_and_needs_statistics_that_fit_it():
    runs = seeds("bn", 0.5, 0.5, 0.5) + seeds("cn", 0.6, 0.6, 0.6)
    cell = one(results.reproduction(runs, ["french_table_2"]), dataset="cifar10")
    assert cell.verdict == "not yet run" and cell.ours is not None and cell.gap == pytest.approx(88.09 - 87.11)
    for seed, r in enumerate(runs[3:]):
        r.final |= {"test_reestimated_accuracy": 0.6, "test_plus_reestimated_accuracy": 0.59 + 0.001 * seed}
    cell = one(results.reproduction(runs, ["french_table_2"]), dataset="cifar10")
    assert cell.verdict == "outside" and cell.ours_gap.reestimated.mean == pytest.approx(-0.9)
    assert cell.runs == "reduced-cifar10-cn"


def test_the_power_is_that_of_scipys_noncentral_t():
    stats = pytest.importorskip("scipy.stats")
    runs = seeds("bn", *[0.5] * 3) + seeds("cn", 0.52, 0.53, 0.54)
    runs = [replace(r, config=replace(r.config, dataset="cifar100")) for r in runs]
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar100", model="CN", epoch=100)
    t, shift = stats.t.ppf(0.975, 2), cell.gap / (1 / np.sqrt(3))
    expected = stats.nct.sf(t, 2, shift) + stats.nct.cdf(-t, 2, shift)
    assert cell.power == pytest.approx(expected, abs=1e-6) and 0.05 < cell.power < 1
    drawn = np.random.default_rng(0).normal(cell.gap, 1, (20_000, 3))
    share = (np.abs(drawn.mean(1)) / (drawn.std(1, ddof=1) / np.sqrt(3)) > t).mean()
    assert cell.power == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(("gap", "spread", "least"), [(10.0, 0.01, 0.999), (10.0, 0.5, 0.8), (0.01, 1.0, 0.05)])
def test_the_power_of_two_seeds_is_a_number_however_large_the_gap(gap, spread, least):
    half = results.interval([10 - spread, 10 + spread]).half
    assert least <= _power(gap, [results.Interval(0.0, half, 2)]) <= min(1.0, least + 0.2)


@pytest.mark.parametrize("n", [1, 3])
def test_an_interval_that_is_not_a_number_leaves_nothing_out(n):
    nothing = results.Interval(np.nan if n > 1 else 1.0, np.nan, n)
    assert _verdict(4.0, results.Difference(nothing, nothing)) == "undecided"
    far = results.Interval(1.0, 0.1, 3)
    assert _verdict(4.0, results.Difference(far, nothing)) == "undecided"
    assert _verdict(4.0, results.Difference(far, far)) == "outside"
    assert _verdict(-4.0, results.Difference(far, far)) == "outside"


def test_a_printed_tie_is_excluded_by_a_difference_and_confirmed_within_a_point():
    runs = [
        replace(r, config=replace(r.config, dataset="cifar100"))
        for r in seeds("bn", *[0.5] * 3) + seeds("mn", *[0.4] * 3)
    ]
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar100", model="MN", epoch=75)
    assert cell.gap == pytest.approx(-0.02) and cell.ours_gap.shown and cell.verdict == "outside"
    for r, accuracy in zip(runs[3:], (0.498, 0.5, 0.501), strict=True):
        r.epochs["test_accuracy"][:] = accuracy
        runs[r.config.seed].epochs["test_accuracy"][:] = 0.5
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar100", model="MN", epoch=75)
    assert not cell.ours_gap.shown and cell.verdict == "inside"


def test_runs_that_diverged_are_left_out_and_counted():
    bad = replace(run("bn", 0.1, seed=3), status="diverged")
    cells = results.reproduction([*seeds("bn", 0.5, 0.5), bad], ["french_table_1"])
    cell = one(cells, dataset="cifar10", model="BN", epoch=100)
    assert cell.ours.n == 2 and cell.diverged == 1 and results.to_text([cell])["seeds"][0] == "2, 1 diverged"


def test_every_recorded_seed_counts_also_beyond_the_profiles_number():
    accuracies = np.linspace(0.5, 0.6, CONVNET.seeds["reduced"] + 4)
    cells = results.reproduction(seeds("bn", *accuracies), ["french_table_1"])
    assert one(cells, dataset="cifar10", model="BN", epoch=100).ours.n == len(accuracies)


def test_the_running_best_and_the_last_three_epochs_stand_side_by_side():
    runs = seeds("bn", 0.5, 0.5) + seeds("cn", 0.6, 0.6) + seeds("cn-channels", 0.7, 0.7)
    cells = results.reproduction(runs)
    french = one([c for c in cells if c.table == "french_table_1"], dataset="cifar10", model="CN", epoch=100)
    plus = one([c for c in cells if c.table == "french_table_2"], dataset="cifar10", model="CN+")
    rate = {"lr": 0.001, "weight_decay": 1e-4}
    fifth = one([c for c in cells if c.table == "icdm_table_5"], dataset="cifar10", model="CN", **rate)
    assert french.ours.mean == pytest.approx(60) and french.late.mean == pytest.approx(60 - 10 / 3)
    assert plus.ours.mean == pytest.approx(30) and plus.gap == pytest.approx(88.09 - 87.11)
    assert fifth.ours.mean == pytest.approx(70) and fifth.late.mean == pytest.approx(70 - 10 / 3)  # CN on the image


def test_the_largest_profile_counts_and_a_baseline_is_judged_at_the_papers_size():
    runs = seeds("bn", 0.5, 0.5) + seeds("bn", 0.868, 0.87, 0.869, profile="paper")
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="BN", epoch=100)
    assert cell.profile == "paper" and cell.verdict == "inside"
    runs = seeds("bn", 0.80, 0.81, 0.805, profile="paper")
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="BN", epoch=100)
    assert cell.verdict == "outside"


def test_a_larger_profile_waits_for_its_third_seed():
    few, enough = ([0.5, 0.51, 0.52], [0.7, 0.71]), ([0.5, 0.51, 0.52], [0.7, 0.71, 0.72])
    for (small, large), profile in ((few, "reduced"), (enough, "paper"), (([0.5], [0.7]), "paper")):
        runs = seeds("bn", *small) + seeds("bn", *large, profile="paper")
        cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="BN", epoch=100)
        assert cell.profile == profile


def test_the_rate_printed_wrongly_is_read_as_meant():
    runs = seeds("cn-channels", 0.6, 0.6)
    runs = [replace(r, config=replace(r.config, dataset="cifar100")) for r in runs]
    cells = results.reproduction(runs, ["icdm_table_6"])
    assert one(cells, dataset="cifar100", lr=0.001, weight_decay=1e-4).published == 62.01


def test_a_smaller_data_set_stands_for_the_printed_one_and_is_named():
    runs = [replace(r, config=replace(r.config, dataset="tiny_imagenet32")) for r in seeds("bn", 0.5, 0.6)]
    cells = results.reproduction(runs, ["french_table_1"])
    cell = one(cells, dataset="tiny-imagenet", model="BN", epoch=25)
    assert cell.label == "tiny-imagenet BN, epoch 25 (ours: tiny_imagenet32, 3 of 10)" and cell.ours.n == 2
    at_full_size = [replace(r, config=replace(r.config, profile="paper")) for r in runs]
    assert not any(c.ours for c in results.reproduction(at_full_size, ["french_table_1"]))


def test_a_run_of_another_configuration_fills_no_cell():
    runs = seeds("bn", 0.5, 0.5, flip=False)
    assert {c.verdict for c in results.reproduction(runs, ["french_table_1"])} == {"not yet run"}


def test_rows_of_text():
    row = results.to_text(results.reproduction(seeds("bn", 0.5, 0.6) + seeds("cn", 0.6, 0.7), ["french_table_1"])).iloc[
        11
    ]
    assert row["cell"] == "cifar10 CN, epoch 100" and row["printed - BN"] == "+0.21"
    assert row["ours - BN"] == "+10.0 ± 0.0" and row["last three - BN"] == "+10.0 ± 0.0"
    assert row["verdict"] == "outside (reduced)" and row["re-estimated"] == ""


def test_a_reading_that_is_no_number_excludes_nothing():
    runs = seeds("bn", 0.52, 0.53, 0.51) + seeds("cn", 0.52, 0.53, 0.51)
    for one_run in runs[3:]:
        one_run.epochs["test_accuracy"][:] = np.nan
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="CN", epoch=100)
    assert cell.verdict == "undecided"
    paper = seeds("bn", 0.9, np.nan, 0.9, profile="paper")
    cells = results.reproduction(paper, ["french_table_1"])
    assert one(cells, dataset="cifar10", model="BN", epoch=100).verdict == "baseline"


def test_the_report_is_what_it_was_before_the_engine_was_rebuilt():
    """The records of version 0.1, read through new names and tables, give the numbers they gave: those still here, and
    those that were run again for a reading more, read without it."""
    pandas = pytest.importorskip("pandas")
    before = pandas.read_csv(Path(__file__).parent / "report_0.1.csv")
    commits = ("6740f97", "6a3be56", "f6941c0", "481b311", "d384511")
    old = [
        replace(r, final={key: value for key, value in r.final.items() if "reestimated" not in key})
        for r in results.load("convnet")
        if r.provenance["commit"] in commits
    ]
    now = pandas.read_csv(io.StringIO(results.to_numbers(results.reproduction(old)).to_csv(index=False)))
    # what CN+ is compared with has changed, the rule, and some settings were run again
    kept = ~before["table"].isin(["french_table_2", "icdm_table_6"]) & (now["ours_n"] == before["ours_n"])
    kept &= before["table"].isin(CONVNET.printed)  # the others had no experiment
    kept &= now["ours_gap_n"].fillna(0) == before["ours_minus_bn_n"].fillna(0)
    assert kept.sum() >= 18  # Table V beyond its first rates
    for name in before.columns.drop("verdict"):
        found, expected = now[name.replace("minus_bn", "gap")][kept], before[name][kept]
        if name.endswith("half"):  # Student's t had four decimals
            np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=name)
        else:
            pandas.testing.assert_series_equal(found, expected, check_names=False, check_exact=True)
