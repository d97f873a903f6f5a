"""Experiments are configurations; a sweep runs what is missing and survives what fails."""

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cnlib import results
from cnlib.experiments import EXPERIMENTS, convnet
from cnlib.sweeps import estimate, sweep
from cnlib.training import TASKS, Run, Trainer, check, checkpoint, loop, read, train

CONVNET = EXPERIMENTS["convnet"]


@pytest.mark.parametrize("profile", CONVNET.profiles)
def test_profiles_change_sizes_only(profile):
    sizes = {"profile", "dataset", "width", "epochs", "batch_size", "train_size", "test_size", "flip", "compile"}
    for method in CONVNET.methods:
        smoke, other = (CONVNET.config(method, profile=p).to_dict() for p in ("smoke", profile))
        assert {key for key in smoke if smoke[key] != other[key]} <= sizes


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_a_configuration_knows_its_method(experiment):
    assert [experiment.config(name, profile="paper").method for name in experiment.methods] == [*experiment.methods]


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_configuration_passes_the_check(experiment):
    for profile in experiment.profiles:
        for method in experiment.methods:
            check(experiment.config(method, profile=profile), TASKS)


def test_methods_are_bn_mn_cn_and_their_controls():
    chosen = {name: CONVNET.config(name, profile="paper") for name in CONVNET.methods}
    assert {c.norm for c in chosen.values()} == {"bn", "mn", "cn"}
    assert all(c.batch_size == 256 and c.optimizer == "rmsprop" for c in chosen.values())
    assert {name for name, c in chosen.items() if c.placement == ("input",)} == {n for n in chosen if "channels" in n}
    assert all(c.placement == ("conv3",) for name, c in chosen.items() if "channels" not in name)
    assert (chosen["cn-random"].contexts, chosen["cn-one"].num_contexts) == ("random", 1)
    assert chosen["mn-random"].contexts == "random"
    assert chosen["mn"].contexts == chosen["cn"].contexts == "gmm" and chosen["mn-em"].contexts == "none"
    assert CONVNET.config("bn", lr=5e-3).lr == 5e-3
    with pytest.raises(ValueError, match="profile 'huge': expected one of smoke"):
        CONVNET.config("bn", profile="huge")
    with pytest.raises(ValueError, match="sweep 'table-x': expected one of table-1"):
        CONVNET.configs("table-x")


def test_the_paper_profile_is_what_the_papers_print():
    table = CONVNET.configs("table-v", "paper")
    assert len(table) == 2 * 4 * 5 * 3  # data sets, rates, methods and controls, seeds
    for config in table.values():
        assert (config.epochs, config.batch_size, config.width, config.train_size) == (100, 256, 1.0, None)
        assert (config.placement, config.encoder) == ((("input",), "embedder") if config.norm == "cn" else FRENCH)
        assert (config.lr, config.weight_decay) in {(r["lr"], r["weight_decay"]) for r in RATES}
    first = CONVNET.configs("table-1", "paper")
    assert {config.dataset for config in first.values()} == {"cifar10", "cifar100", "tiny-imagenet"}
    assert all((config.placement, config.encoder) == FRENCH for config in first.values())
    assert {name for name, c in first.items() if c.norm == "bn" and c.dataset != "tiny-imagenet"} < set(table)


FRENCH, RATES = (("conv3",), "linear"), convnet.RATES


@pytest.mark.parametrize("table", [t for e in EXPERIMENTS.values() for t in e.printed])
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_every_printed_cell_has_a_run_in_the_paper_profile(experiment, table):
    """So that "not yet run" is a matter of time, never of a cell that nothing can fill."""
    if table not in experiment.printed:
        pytest.skip("another experiment's table")
    runs = [as_if_run(n, c) for s in experiment.sweeps for n, c in experiment.configs(s, "paper").items()]
    cells = results.reproduction(runs, [table])
    assert len(cells) == len(results.published(table).rows)
    assert all(cell.ours and cell.ours.n == 3 and cell.profile == "paper" for cell in cells)
    baseline = experiment.printed[table].baseline
    assert all((cell.gap is None) == (cell.row["model"] == baseline or table in NOTHING_PRINTED) for cell in cells)


NOTHING_PRINTED = {"icdm_table_8"}  # for the baseline: it "collapsed"


def as_if_run(name, config):
    both = ("test_source", "test_target", "test_source_as_target", "test_target_as_source")
    tests = ("test", "test_plus", *(f"test_{part}" for part in config.dataset.split("+")), *both)
    weighted = ("weighted_precision", "weighted_recall", "weighted_f1")
    metrics = ("accuracy", "top5", "f1", "their_precision", "their_recall", *weighted)
    epochs = {f"{test}_{metric}": np.linspace(0, 1, config.epochs) for test in tests for metric in metrics}
    return Run(name, config, {}, epochs, "finished")


def test_all_seeds_of_a_setting_come_before_the_next_setting():
    names = list(CONVNET.configs("table-1", "reduced", seeds=2))
    assert [name.removeprefix("reduced-cifar10-") for name in names[:2]] == [
        "bn-s0",
        "mn-s0",
    ]
    each = 2 * len(convnet.FRENCH)
    assert all("cifar10-" in name for name in names[:each]) and all(
        "cifar100-" in name for name in names[each : 2 * each]
    )
    assert {name.split("-")[1] for name in names[2 * each :]} == {"tiny_imagenet32"}
    assert set(CONVNET.configs("table-2", "reduced")) < set(CONVNET.configs("table-1", "reduced"))


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_a_record_name_stands_for_one_configuration(experiment):
    seen = {}
    for sweep_name in experiment.sweeps:
        for profile in experiment.profiles:
            for name, config in experiment.configs(sweep_name, profile).items():
                assert seen.setdefault(name, config) == config


@pytest.mark.parametrize(
    "changes, rest",
    [
        ({}, ""),
        ({"epochs": 3, "width": 0.5}, "-width=0.5-epochs=3"),
        ({"encoder": "embedder", "lr": 5e-3}, "-encoder=embedder-lr=0.005"),
        ({"train_size": None, "test_size": 50}, "-train_size=None-test_size=50"),
        ({"flip": True, "options": {"bias": True}}, "-flip=True-bias=True"),
        ({"options": {"file": "a/b"}}, "-b3f1a3c6"),
        ({"placement": ("conv1", "conv2")}, "-e8541aa2"),
    ],
)
def test_what_differs_from_the_experiments_own_stands_in_the_name(changes, rest):
    config = CONVNET.config("cn", 2, "smoke", **changes)
    assert CONVNET.record_name(config) == f"smoke-digits-cn{rest}-s2"


@pytest.mark.parametrize("changes", [{"lr": 1e-3 + 1e-12}, {"norm": "gn"}, {"norm": "mn", "contexts": "shuffled"}])
def test_other_rates_and_methods_have_names_of_their_own(changes):
    usual = CONVNET.config("bn", profile="smoke")
    assert CONVNET.record_name(replace(usual, **changes)) != CONVNET.record_name(usual)


def tiny(**changes):
    return replace(CONVNET.config("bn", profile="smoke"), **{"epochs": 1} | changes)


def test_sweep_skips_resumes_reports_and_goes_on(tmp_path, capsys):
    configs = {"a-s0": tiny(), "b-s0": tiny(lr=2e-3)}
    assert sweep(configs, tmp_path) == {"a-s0": "finished", "b-s0": "finished"}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(sweep(configs, tmp_path).values()) == {"recorded"}
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    lines = (tmp_path / "b-s0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b-s0.jsonl").write_bytes(b"".join(lines[:-2]))  # killed before the last line
    configs = {"broken-s0": tiny(dataset="no-such-set"), "a-s0": tiny(lr=1e-2)} | {"b-s0": configs["b-s0"]}
    assert sweep(configs, tmp_path) == {"broken-s0": "failed", "a-s0": "failed", "b-s0": "finished"}
    captured = capsys.readouterr()
    assert "no data set 'no-such-set'" in captured.err and "another configuration" in captured.err
    assert read(tmp_path / "b-s0.jsonl").status == "finished"


def test_sweep_shares_a_folder_and_stops_in_time(tmp_path):
    pytest.importorskip("fcntl")
    with checkpoint.locked(tmp_path / "a-s0.jsonl"):
        assert sweep({"a-s0": tiny(), "b-s0": tiny()}, tmp_path) == {"a-s0": "busy", "b-s0": "finished"}
    assert sweep({"c-s0": tiny()}, tmp_path, minutes=0) == {"c-s0": "not started"}


def test_a_run_stopped_in_time_goes_on_to_the_same_record(tmp_path, monkeypatch):
    config, record = tiny(epochs=6), tmp_path / "a-s0.jsonl"
    minutes_passed = itertools.count(0, 60)
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=minutes_passed.__next__)
    )
    stopped = train(config, record, until=150)
    monkeypatch.undo()
    assert stopped.status == read(record).status == "unfinished" and len(stopped.epochs["epoch"]) == 3
    assert sweep({"a-s0": config}, tmp_path) == {"a-s0": "finished"}
    assert train(config).epochs["train_loss"].tolist() == read(record).epochs["train_loss"].tolist()


def test_the_estimate_scales_two_steps_up_to_the_run(monkeypatch):
    seen = []

    def run_epoch(self):
        seen.append((len(self.train), len(self.tests["test"].split)))
        return {"train_seconds": 2.0, "eval_seconds": 1.0}

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    config = tiny(epochs=20, batch_size=50, train_size=400, test_size=100)
    assert estimate(config) == 20 * (2.0 * 4 + 1.0 * 2) and seen == [(100, 50)] * 2
    with pytest.raises(ValueError, match="validation=500: expected less than the 400 training images"):
        estimate(replace(config, validation=500))


@pytest.mark.parametrize(
    ("name", "method", "option", "steps"), [("adamatch", "bn", "steps", 40), ("blended", "vit", "images", 22)]
)
def test_the_estimate_counts_steps_where_an_option_says_how_many(name, method, option, steps, monkeypatch):
    """Of a run whose epoch is as long as that, with few images and with many."""
    config = EXPERIMENTS[name].config(method, profile="book")
    seen = []

    def run_epoch(self):
        seen.append(self.epoch_steps())
        return {"train_seconds": 3.0 * self.epoch_steps(), "eval_seconds": 0.0}

    monkeypatch.setattr(TASKS[config.task], "run_epoch", run_epoch)
    assert option in dict(config.options)
    assert estimate(config) == config.epochs * steps * 3.0 and seen == [2, 2]
    half = replace(config, train_size=1024)
    assert estimate(half) == estimate(config)
