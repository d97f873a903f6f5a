"""What `toy.py` says in one file is enough: it is trained, killed, resumed, named and compared with printed numbers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from cnlib import results
from cnlib.experiments import EXPERIMENTS, estimate, sweep
from cnlib.results import papers
from cnlib.training import Config, read, records, train
from cnlib.training.config import CHOICES

TOY = toy.EXPERIMENT
KILLED = """
import json, os, signal, sys
import toy, torch
from cnlib.training import Config, train
torch.set_num_threads(1)
step, calls = toy.Adapt.step, []
def dying(self, batch):
    calls.append(1)
    if len(calls) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
toy.Adapt.step = dying
train(Config.from_dict(json.loads(sys.argv[2])), sys.argv[1])
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


def test_the_sweep_trains_once_and_records_every_test_set(folder):
    configs = TOY.configs("toy", "smoke")
    assert list(configs)[1] == "smoke-digits-cn-maps-middle-lr0.001-wd0.0001-s0"
    assert dict(configs["smoke-digits-bn-all-lr0.001-wd0.0001-s1"].options) == {"hidden": 6, "weight": 0.2}
    assert set(sweep(configs, folder).values()) == {"finished"}
    assert set(sweep(configs, folder).values()) == {"recorded"}
    run = read(folder / "smoke-digits-cn-maps-middle-lr0.001-wd0.0001-s0.jsonl")
    assert run.config.method == "cn-maps" and set(results.by_method(results.load(folder))) == {"bn", "cn-maps"}
    tests = [f"{name}{plus}_accuracy" for name in ("test", "test_dark", "test_dark_as_light") for plus in ("", "_plus")]
    assert set(tests) == {key for key in run.epochs if key.endswith("accuracy") and key.startswith("test")}
    assert run.curve("test_dark_loss")[-1] != run.curve("test_dark_as_light_loss")[-1]  # the context alone differs
    assert run.curve("test_dark_plus_loss")[-1] == run.curve("test_dark_as_light_plus_loss")[-1]  # CN+ is given none
    assert estimate(run.config) > 0


def test_killed_inside_an_epoch_it_goes_on_bit_for_bit(tmp_path):
    config, record = TOY.config("cn-maps", profile="smoke"), tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", KILLED, str(record), json.dumps(config.to_dict())]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == -9 and len(read(record).epochs["epoch"]) == 1, done.stderr
    resumed, whole = train(config, record), train(config)
    assert any(line["type"] == "resume" for line in records.read_lines(record))
    for key, curve in whole.epochs.items():
        assert "second" in key or np.array_equal(curve, resumed.epochs[key], equal_nan=True), key
    torch.testing.assert_close(whole.model.state_dict(), resumed.model.state_dict(), rtol=0, atol=0)


def test_printed_cells_are_filled(folder, tmp_path, monkeypatch):
    head = "# made up\ndataset,model,metric,value\n"
    rows = "light,Net+BN,accuracy,50\nlight,Net+CN-Maps,accuracy,60\ndark,Net+BN,accuracy,\ndark,Net+CN-Maps,f1,60\n"
    (tmp_path / "toy_table_1.csv").write_text(head + rows)
    (tmp_path / "toy_table_2.csv").write_text(
        head + "dark,Net+BN,f1,70\ndark,Net+BN,accuracy,50\ndark,Net+CN-Maps,f1,60\n"
    )
    monkeypatch.setattr(papers, "PUBLISHED", tmp_path)
    runs = results.load(folder)
    for run in runs:  # percent correct, so that the verdicts are known
        for name, cn in (("test_accuracy", 0.9), ("test_dark_f1", 0.6), ("test_dark_as_light_f1", 0.8)):
            run.epochs[name] = np.full(3, 0.7 if run.config.norm == "bn" else cn) + 0.01 * run.config.seed
    cells = {(c.table[-1], c.row["dataset"], c.row["model"], c.row["metric"]): c for c in results.reproduction(runs)}
    found = {key: (c.gap, c.ours_gap and round(c.ours_gap.best.mean), c.verdict) for key, c in cells.items()}
    assert found == {
        ("1", "light", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("1", "light", "Net+CN-Maps", "accuracy"): (10, 20, "reproduced"),
        ("1", "dark", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("1", "dark", "Net+CN-Maps", "f1"): (None, -10, "baseline"),  # no such number is printed for the baseline
        ("2", "dark", "Net+BN", "f1"): (None, None, "baseline"),
        ("2", "dark", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("2", "dark", "Net+CN-Maps", "f1"): (-10, 10, "not reproduced"),  # f1 beside f1, not the last row
    }
    assert results.as_rows([*cells.values()])[0][6] == "printed - Net+BN"
    assert cells["2", "dark", "Net+CN-Maps", "f1"].label == "dark Net+CN-Maps, f1"


def test_choices_are_the_tables_themselves():
    assert "toy" in CHOICES["model"] and "domain" in CHOICES["contexts"] and "adapt" in CHOICES["task"]
    with pytest.raises(ValueError, match="task='sort': expected one of classify, adapt"):
        Config(task="sort")


def test_an_option_that_nobody_takes_is_an_error():
    config = replace(TOY.config("bn", profile="smoke"), options={"unheard": 6, "weight": 0.1})
    with pytest.raises(ValueError, match="options: no unheard; toy takes hidden, adapt takes weight"):
        train(config)


def test_options_override_one_by_one_and_stand_in_the_name():
    config = TOY.config("bn", profile="smoke", options={"hidden": 5}, epochs=1)
    assert dict(config.options) == {"hidden": 5, "weight": 0.2}
    assert TOY.record_name(config) == "smoke-digits-bn-all-lr0.001-wd0.0001-epochs=1-hidden=5-s0"
