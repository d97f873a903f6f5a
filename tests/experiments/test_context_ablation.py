"""The ablation of contexts is what its names say, and every declared contrast has its runs and its readings."""

import numpy as np
import pytest

from cnlib import results
from cnlib.experiments import EXPERIMENTS
from cnlib.experiments.context_ablation import EVEN, FOUND, PRIMARY, STARTED
from cnlib.results import contrasts
from cnlib.sweeps import sweep
from cnlib.training.loop import fetch
from cnlib.training.worth import RATES
from studies import labels

WORTH = EXPERIMENTS["context_ablation"]
CONFIGS = {name: [*WORTH.configs(name, "reduced").values()] for name in WORTH.sweeps}


def test_a_name_says_place_source_number_and_rate():
    for name in WORTH.methods:
        c = WORTH.config(name, profile="reduced")
        if c.norm != "cn":
            assert c.contexts == "none" and c.corruption == 0
            continue
        place, rest = ("input", name[12:]) if name.startswith("cn-channels-") else ("conv3", name[3:])
        source, *numbers = rest.split("-")
        assert c.placement == (place,) and c.contexts == {"pixels": "gmm"}.get(source, source)
        assert c.encoder == ("embedder" if place == "input" else "linear")
        assert [float(n) for n in numbers] == [c.num_contexts, c.corruption][: len(numbers)]
        assert len(numbers) == 2 or c.corruption == 0


def test_methods_differ_in_their_contexts_and_layer_only():
    plain = WORTH.config("bn", profile="reduced").to_dict()
    told = {"method", "norm", "placement", "contexts", "num_contexts", "corruption", "encoder", "options"}
    for name in WORTH.methods:
        other = WORTH.config(name, profile="reduced").to_dict()
        assert {key for key in plain if plain[key] != other[key]} <= told
    assert dict(WORTH.config("gated-4-hard").options) == {"balance": 0.01, "hard": True}
    assert not WORTH.config("mode-4").options
    for name in STARTED:
        plain = dict(WORTH.config(name.removesuffix("-kmeans")).options)
        assert dict(WORTH.config(name).options) == plain | {"kmeans": True}


def test_quality_is_forty_cells_at_most_the_most_telling_first():
    cells = CONFIGS["quality"]
    assert len(cells) % 3 == 0 and len(cells) // 3 <= 40
    assert [c.method for c in cells[:6]] == ["bn", *(c.method for c in cells[1:6])]
    first = [c for c in cells if c.dataset == "cifar10" and c.placement == ("input",) and c.contexts == "label"]
    for count in (2, 10):
        assert {c.corruption for c in first if c.num_contexts == count} == set(RATES)
    assert {c.corruption for c in cells if c.dataset == "cifar100" and c.contexts == "label"} == set(RATES)
    assert {(c.width, c.epochs, c.train_size, c.test_size, c.flip) for c in cells} == {(0.25, 10, 10240, 2000, True)}


@pytest.mark.parametrize("claim", PRIMARY)
def test_every_declared_contrast_has_its_runs(claim):
    asked = PRIMARY[claim]
    every = {WORTH.record_name(c): c for configs in CONFIGS.values() for c in configs}.values()
    chosen = [c for c in every if all(getattr(c, name) == value for name, value in asked.where.items())]
    assert set(asked.where) == {"dataset"} and asked.pairs
    for pair in asked.pairs.values():
        for method, reading in zip(pair, asked.readings, strict=True):
            assert sorted(c.seed for c in chosen if c.method == method) == [0, 1, 2], (claim, method)
            assert reading in READINGS or (method == "bn" and reading.startswith("test_bayes"))


READINGS = ("test_reestimated", "test_shuffled_reestimated")


def test_both_domains_are_equal_in_number_and_not_mirrored():
    learned = [c for c in CONFIGS["learned"] if c.dataset == EVEN]
    assert {c.method for c in learned} >= {"bn", "cn-domain", *FOUND}
    assert not any(c.flip for c in CONFIGS["learned"] + CONFIGS["other-data"] if c.dataset == EVEN)
    assert {c.dataset for c in CONFIGS["other-data"]} == {"tiny_imagenet32", EVEN}
    data = fetch("digits+inverse-digits").subset(200, 100)
    assert np.bincount(data.train_domains).tolist() == [100, 100] and len(data.classes) == 10
    try:
        data = fetch(EVEN).subset(10240, 2000)
    except (ValueError, ConnectionError, ImportError, OSError):
        pytest.skip("needs MNIST and SVHN in $CNLIB_DATA")
    assert np.bincount(data.train_domains).tolist() == [5120, 5120] and len(data.classes) == 10
    assert np.bincount(data.test_domains).tolist() == [1000, 1000] and data.name == EVEN


def test_every_sweep_runs(tmp_path):
    for name in WORTH.sweeps:
        few = dict(list(WORTH.configs(name, "smoke").items())[-1:])
        assert set(sweep(few, tmp_path, progress=False).values()) <= {"finished", "recorded"}
    runs = results.load(tmp_path)
    assert {run.status for run in runs} == {"finished"} and len(runs) == 3


def test_a_contrast_is_made_of_its_two_readings(tmp_path, monkeypatch):
    """From names in `PRIMARY` to a number, as the chapter does it."""
    configs = {
        name: c
        for name, c in WORTH.configs("quality", "smoke", seeds=2).items()
        if c.method in ("bn", "cn-channels-label-2")
    }
    sweep(configs, tmp_path, progress=False)
    runs = results.load(tmp_path)
    for module in (labels, contrasts):
        monkeypatch.setattr(module, "LABELS", tmp_path)
    labels.ship(["digits+inverse-digits"], 100)
    asked = PRIMARY["2 contexts from the label, 0% corrupted, minus Bayes' rule"]
    found = results.contrast(runs, asked.pairs, asked.readings)
    by = {(run.config.method, run.config.seed): run.final for run in runs}
    expected = [
        by["cn-channels-label-2", s]["test_reestimated_accuracy"] - by["bn", s]["test_bayes_2_0_reestimated_accuracy"]
        for s in (0, 1)
    ]
    assert found.mean.mean == pytest.approx(np.mean(expected))
