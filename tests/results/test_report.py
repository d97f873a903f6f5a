"""Printed cells find our runs, and verdicts say what the intervals say."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnlib import results
from cnlib.experiments import EXPERIMENTS
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
    [((0.62, 0.63, 0.61), "reproduced"), ((0.42, 0.43, 0.41), "not reproduced"), ((0.5, 0.6, 0.4), "within noise")],
)
def test_the_verdict_is_on_the_difference_from_bn_on_equal_seeds(cn, verdict):
    runs = seeds("bn", 0.52, 0.53, 0.51) + seeds("cn", *cn) + seeds("cn-random", 0.9, 0.9)
    cells = results.reproduction(runs, ["french_table_1"])
    cell = one(cells, dataset="cifar10", model="CN", epoch=100)
    assert cell.verdict == verdict and cell.profile == "reduced" and cell.command.endswith("--profile reduced")
    assert cell.ours.mean == pytest.approx(100 * np.mean(cn)) and cell.ours_gap.best.n == 3
    assert cell.gap == pytest.approx(87.11 - 86.90)
    assert one(cells, dataset="cifar10", model="BN", epoch=100).verdict == "baseline"
    assert one(cells, dataset="cifar10", model="MN", epoch=100).verdict == "not yet run"


@pytest.mark.parametrize("end, verdict", [((0.0, 0.0, 0.0), "reproduced"), ((-0.5, -0.25, 0.0), "within noise")])
def test_a_verdict_needs_the_running_best_and_the_last_epochs(end, verdict):
    cn = seeds("cn", 0.62, 0.63, 0.61)
    for seed, change in enumerate(end):
        cn[seed].epochs["test_accuracy"][-1] += change
    cell = one(
        results.reproduction(seeds("bn", 0.52, 0.53, 0.51) + cn, ["french_table_1"]),
        dataset="cifar10", model="CN", epoch=100,
    )  # fmt: skip
    assert (cell.verdict, cell.ours_gap.late.contains_zero) == (verdict, verdict == "within noise")
    early = one(results.reproduction(cn, ["french_table_1"]), dataset="cifar10", model="CN", epoch=25)
    assert early.label == "cifar10 CN, epoch 25 (ours: 3 of 10)" and cell.label == "cifar10 CN, epoch 100"


def test_a_printed_tie_is_not_reproduced_by_a_difference():
    runs = [
        replace(r, config=replace(r.config, dataset="cifar100"))
        for r in seeds("bn", *[0.5] * 3) + seeds("mn", *[0.4] * 3)
    ]
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar100", model="MN", epoch=75)
    assert cell.gap == pytest.approx(-0.02) and cell.ours_gap.shown and cell.verdict == "not reproduced"


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
    assert plus.ours.mean == pytest.approx(30) and plus.gap == pytest.approx(88.09 - 86.90)
    assert fifth.ours.mean == pytest.approx(70) and fifth.late.mean == pytest.approx(70 - 10 / 3)  # CN on the image


def test_the_largest_profile_counts_and_a_baseline_is_judged_at_the_papers_size():
    runs = seeds("bn", 0.5, 0.5) + seeds("bn", 0.868, 0.87, 0.869, profile="paper")
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="BN", epoch=100)
    assert cell.profile == "paper" and cell.verdict == "reproduced"
    runs = seeds("bn", 0.80, 0.81, 0.805, profile="paper")
    cell = one(results.reproduction(runs, ["french_table_1"]), dataset="cifar10", model="BN", epoch=100)
    assert cell.verdict == "not reproduced"


def test_the_rate_printed_wrongly_is_read_as_meant():
    runs = seeds("cn-channels", 0.6, 0.6)
    runs = [replace(r, config=replace(r.config, dataset="cifar100")) for r in runs]
    cells = results.reproduction(runs, ["icdm_table_6"])
    assert one(cells, dataset="cifar100", lr=0.001, weight_decay=1e-4).published == 62.01


def test_a_run_of_another_configuration_fills_no_cell():
    runs = seeds("bn", 0.5, 0.5, flip=False)
    assert {c.verdict for c in results.reproduction(runs, ["french_table_1"])} == {"not yet run"}


def test_rows_of_text():
    row = results.to_text(results.reproduction(seeds("bn", 0.5, 0.6) + seeds("cn", 0.6, 0.7), ["french_table_1"])).iloc[
        11
    ]
    assert row["cell"] == "cifar10 CN, epoch 100" and row["printed - BN"] == "+0.21"
    assert row["ours - BN"] == "+10.0 ± 0.0" and row["last three"] == "61.7 ± 63.5"
    assert row["verdict"] == "reproduced (reduced)"


def test_the_report_is_what_it_was_before_the_engine_was_rebuilt():
    """The records of version 0.1, read through new names and tables, give the numbers they gave."""
    pandas = pytest.importorskip("pandas")
    before = pandas.read_csv(Path(__file__).parent / "report_0.1.csv")
    old = [r for r in results.load("convnet") if r.provenance["commit"] in ("6740f97", "6a3be56", "f6941c0")]
    assert len(old) == 214
    now = pandas.read_csv(io.StringIO(results.to_numbers(results.reproduction(old)).to_csv(index=False)))
    new = ~before["table"].isin(CONVNET.printed)  # no experiment had these tables
    assert (now["verdict"][new] == "not yet run").all() and now["printed"][new].equals(before["printed"][new])
    for name in before.columns:
        found, expected = now[name.replace("minus_bn", "gap")][~new], before[name][~new]
        if name.endswith("half"):  # Student's t had four decimals
            np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=name)
        else:
            pandas.testing.assert_series_equal(found, expected, check_names=False, check_exact=True)
