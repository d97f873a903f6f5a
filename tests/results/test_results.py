"""Records, printed tables, intervals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnlib import results
from cnlib.results import recorded
from cnlib.results.intervals import T975
from cnlib.training import Config
from cnlib.training.records import Run, write_lines

NORMS = {"bn": {}, "cn": {"norm": "cn", "contexts": "gmm"}, "cn-random": {"norm": "cn", "contexts": "random"}}


def run(name="bn", seed=0, accuracies=(0.1, 0.5, 0.4), **config):
    curve = np.array(accuracies)
    epochs = {"epoch": np.arange(1, len(curve) + 1), "test_accuracy": curve, "test_loss": 1 - curve}
    return Run(f"{name}-s{seed}", Config(seed=seed, **NORMS.get(name, {}), **config), {}, epochs, "finished")


def write(folder, name, seed, accuracies, profile="reduced", final=True):
    header = {"type": "header", "provenance": {"threads": 1}}
    header["config"] = Config(seed=seed, profile=profile, **NORMS[name]).to_dict()
    rows = [{"type": "epoch", "epoch": i + 1, "test_accuracy": a} for i, a in enumerate(accuracies)]
    ending = [{"type": "final", "status": "finished", "best_test_accuracy": max(accuracies)}] if final else []
    write_lines(folder / f"{name}-s{seed}.jsonl", [header, *rows, *ending])


def test_loading_a_folder_of_records(tmp_path):
    write(tmp_path, "cn-random", 1, [0.1, 0.2])
    write(tmp_path, "bn", 0, [0.3], profile="paper", final=False)
    bn, cn = results.load(tmp_path)
    assert (bn.label, bn.status, bn.provenance) == ("paper", "unfinished", {"threads": 1})
    assert cn.config.method == "cn-random" and cn.final == {"best_test_accuracy": 0.2}
    assert cn.epochs["test_accuracy"].tolist() == [0.1, 0.2]
    assert [r.name for r in results.load(tmp_path, profile="reduced")] == ["cn-random-s1"]
    frame = results.to_frame([bn, cn])
    assert len(frame) == 3 and set(frame["profile"]) == {"paper", "reduced"}


def test_nothing_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/no-such-experiment, nor .*which has convnet"):
        results.load("no-such-experiment")
    with pytest.raises(ValueError, match=rf"no records in {tmp_path}.*\*\.jsonl"):
        results.load(tmp_path)
    write(tmp_path, "bn", 0, [0.3])
    with pytest.raises(ValueError, match=f"of profile 'paper' among the 1 in {tmp_path}"):
        results.load(tmp_path, profile="paper")


def test_a_path_is_a_folder_whatever_the_package_has_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/convnet"):
        results.load(Path("convnet"))
    for name in ("convnet", "mine"):
        write(tmp_path / name, "bn", 0, [0.3])
    assert [len(results.load(path)) for path in (Path("convnet"), "./convnet", "mine")] == [1, 1, 1]
    assert len(results.load("convnet")) > 1


@pytest.mark.parametrize("experiment", results.experiments())
def test_every_run_in_the_package_is_whole_and_says_where_it_comes_from(experiment):
    for path in (recorded.RUNS / experiment).glob("*.jsonl"):
        assert "/work" not in path.read_text() and "/home" not in path.read_text()
    for r in results.load(experiment):
        assert r.status in ("finished", "diverged") and r.label in ("reduced", "paper")
        assert {"cnlib", "commit", "torch", "device", "threads", "data"} <= set(r.provenance)
        assert r.status == "diverged" or len(r.epochs["epoch"]) == r.config.epochs
        assert r.name.endswith(f"-s{r.config.seed}")
        json.dumps(r.config.to_dict())


def test_selecting_by_configuration():
    runs = [run(), run("cn"), run("cn", lr=5e-3, placement=("input",))]
    assert (
        results.select(runs, lr=1e-3) == runs[:2] and results.select(runs, norm="cn", placement=("input",)) == runs[2:]
    )
    with pytest.raises(ValueError, match="rate is no field"):
        results.select(runs, rate=1e-3)


def test_settings_put_bn_beside_each_place_of_cn():
    runs = [run(), run("cn"), run("cn", placement=("input",)), run(lr=5e-3), run("cn", lr=5e-3)]
    groups = results.settings(runs)
    assert {name: [runs.index(r) for r in group] for name, group in groups.items()} == {
        "digits, CN in conv3, lr 0.001, wd 0.0001": [0, 1],
        "digits, CN in input, lr 0.001, wd 0.0001": [0, 2],
        "digits, CN in conv3, lr 0.005, wd 0.0001": [3, 4],
    }
    runs = [run(), run("cn"), run(optimizer="adamw"), run("cn", optimizer="adamw")]
    assert [*results.settings(runs)] == [
        f"digits, CN in conv3, lr 0.001, wd 0.0001, {name}" for name in ("rmsprop", "adamw")
    ]


def test_intervals_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(T975, stats.t.ppf(0.975, np.arange(1, 31)), atol=5e-5)
    values = np.random.default_rng(0).normal(size=5)
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    found = results.interval(values)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-4)
    wide = results.interval(np.random.default_rng(0).normal(size=100))
    exact = stats.t.ppf(0.975, 99) * np.random.default_rng(0).normal(size=100).std(ddof=1) / 10
    assert exact < wide.half < 1.05 * exact


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
def test_a_difference_is_shown_if_the_best_and_the_last_epochs_leave_zero_out_on_one_side(last, shown):
    gains = [(0.6, 0.5, last + e) for e in (-0.1, 0.0, 0.1)]
    runs = [run("cn", s, a) for s, a in enumerate(gains)] + [run("bn", s, (0.3, 0.3, 0.3)) for s in range(3)]
    found = results.difference(runs, "cn", "bn")
    assert found.shown == shown and found.best.low > 0
    assert f"{found:+.1%}".startswith("+30.0 ± 0.0 % and ")


def test_pairing_uses_equal_seeds_only():
    runs = [run("cn", s, (a,)) for s, a in ((0, 0.5), (1, 0.9), (2, 0.7))]
    runs += [run("bn", s, (a,)) for s, a in ((2, 0.6), (0, 0.4), (3, 0.0))]
    difference = results.paired(runs, "cn", "bn", "test_accuracy")
    assert difference.n == 2 and difference.mean == pytest.approx(0.1) and difference.half == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="no runs of mn"):
        results.paired(runs, "mn", "bn", "test_accuracy")
    with pytest.raises(ValueError, match="no seed in common"):
        results.paired([run("cn", 0), run("bn", 1)], "cn", "bn", "test_accuracy")


PRINTED = [  # spot checks, read off the papers
    ("french_table_1", {"dataset": "cifar100", "model": "CN", "epoch": 50}, 61.01),
    ("french_table_1", {"dataset": "tiny-imagenet", "model": "MN", "epoch": 25}, 38.18),
    ("french_table_2", {"dataset": "cifar10"}, 88.09),
    ("french_table_3", {"model": "ViT+CN", "metric": "recall"}, 98.53),
    ("french_table_4", {"dataset": "svhn", "model": "AdaMatch+CN", "metric": "precision"}, 53.83),
    ("icdm_table_5", {"dataset": "cifar10", "model": "MN", "lr": 0.001, "weight_decay": 2e-5}, 87.9),
    ("icdm_table_5", {"dataset": "cifar100", "model": "CN", "lr": 0.005, "weight_decay": 1e-4}, 56.08),
    ("icdm_table_6", {"dataset": "cifar100", "lr": 0.01}, 62.01),
    ("icdm_table_7", {"model": "ViT+CN-Channels", "metric": "top5"}, 99.83),
    ("icdm_table_8", {"dataset": "cifar100+mnist", "model": "ViT+BN", "metric": "top5"}, None),
    ("icdm_table_9", {"dataset": "svhn", "model": "AdaMatch+CN-Channels"}, 43.80),
    ("icdm_table_10", {"dataset": "svhn", "model": "AdaMatch+CN-Channels"}, 23.22),
]


@pytest.mark.parametrize(("name", "where", "value"), PRINTED)
def test_printed_tables(name, where, value):
    assert results.published(name).value(**where) == value


def test_printed_tables_are_complete():
    sizes = {name: len(results.published(name).rows) for name in results.tables()}
    assert sizes == {
        "french_table_1": 36, "french_table_2": 3, "french_table_3": 8, "french_table_4": 16, "icdm_table_5": 24,
        "icdm_table_6": 8, "icdm_table_7": 8, "icdm_table_8": 12, "icdm_table_9": 4, "icdm_table_10": 4,
    }  # fmt: skip
    for name in sizes:
        table = results.published(name)
        assert "Table" in table.source
        assert all(row["value"] is None or 0 < row["value"] < 100 for row in table.rows)


def test_unknown_table_and_ambiguous_value():
    with pytest.raises(ValueError, match="no published table 'icdm_table_99'"):
        results.published("icdm_table_99")
    with pytest.raises(ValueError, match="4 rows have"):
        results.published("icdm_table_5").value(dataset="cifar10", model="BN")


def test_cn_plus_becomes_a_method_of_its_own():
    both = run("cn", 0, inference="both")
    both.epochs["test_plus_accuracy"] = np.array([0.7, 0.8, 0.9])
    (plus,) = results.cn_plus([both, run("bn")])
    assert plus.config.method == "cn+" and plus.epochs["test_accuracy"].tolist() == [0.7, 0.8, 0.9]
    found = results.final([both, plus], "test_accuracy")
    assert found["cn"].mean == pytest.approx(0.4) and found["cn+"].mean == pytest.approx(0.9)
    with pytest.raises(ValueError, match="records no 'test_plus_loss': it has epoch, "):
        results.final([both], "test_plus_loss")
