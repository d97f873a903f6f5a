"""What `toy.py` says in one file is enough: it is trained, killed, resumed, shared, named and compared with print."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toy
from typer.testing import CliRunner

from cnlib import cli, data, results
from cnlib.experiments import EXPERIMENTS
from cnlib.results import papers
from cnlib.sweeps import estimate, sweep
from cnlib.training import Trainer, read, records, train

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
READ = """
import sys
from cnlib.training import checkpoint, read
from pathlib import Path
run, path = read(sys.argv[1]), Path(sys.argv[1])
assert "toy" not in sys.modules and run.headline == "test_dark_confidence", run.headline
state = checkpoint.load(path.with_suffix(".pt"))
print(run.config.method, len(run.epochs["epoch"]), sorted(state["generators"]))
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch, one_thread):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


def test_it_is_a_small_file():
    assert len(Path(toy.__file__).read_text(encoding="utf-8").splitlines()) < 100


def test_the_sweep_trains_once_and_records_every_test_set(folder):
    configs = TOY.configs("toy", "smoke")
    assert list(configs)[:3] == [f"smoke-digits+dark-{method}-s0" for method in ("bn", "cn-maps", "token")]
    assert dict(configs["smoke-digits+dark-bn-s1"].options) == {"hidden": 6, "weight": 0.2}
    assert set(sweep(configs, folder).values()) == {"finished"}
    assert set(sweep(configs, folder).values()) == {"recorded"}
    assert set(results.by_method(results.load(folder))) == {"bn", "token", "cn-maps"}
    runs = {method: read(folder / f"smoke-digits+dark-{method}-s0.jsonl") for method in ("bn", "token", "cn-maps")}
    tests = {"test", "test_dark", "test_dark_as_light", "test_parity"}
    for method, run in runs.items():
        known = {key.removesuffix("_accuracy") for key in run.epochs if key.endswith("accuracy")}
        assert known == tests | {"train"} | ({"test_plus"} if method == "cn-maps" else set())
        assert run.final["best_test_dark_confidence"] == run.curve("test_dark_confidence").max()
        assert 0 <= run.curve("train_agreement").min() <= run.curve("train_agreement").max() <= 1
        # the context alone differs, and only those see it that are told
        assert (run.curve("test_dark_loss")[-1] != run.curve("test_dark_as_light_loss")[-1]) == (method != "bn")
        assert run.curve("test_parity_loss")[-1] < run.curve("test_dark_loss")[-1]
    assert runs["bn"].provenance["data"] == data.load("digits+dark").checksum != data.load("digits").checksum


def test_the_two_streams_are_of_unequal_length():
    config = TOY.config("cn-maps", profile="smoke")
    trainer = toy.Adapt(config, data.load("digits+dark").subset(300, 120), torch.device("cpu"))
    assert len(trainer.train) == 200 and len(trainer.dark) == 100
    batches = list(trainer.batches())
    assert len(batches) == trainer.epoch_steps() == 5
    assert all(light.ids.unique().tolist() == [0] and dark.ids.unique().tolist() == [1] for light, dark in batches)
    assert all(not torch.equal(*dark.views) and torch.equal(dark.x, dark.views[0]) for _, dark in batches)
    assert batches[0][0].x.shape == (40, 1, 10, 12)


def test_killed_inside_an_epoch_it_goes_on_bit_for_bit(tmp_path):
    config, record = TOY.config("cn-maps", profile="smoke"), tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", KILLED, str(record), json.dumps(config.to_dict())]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8")
    assert done.returncode == -9 and len(read(record).epochs["epoch"]) == 1, done.stderr
    alone = subprocess.run([sys.executable, "-c", READ, str(record)], capture_output=True, encoding="utf-8")
    assert alone.stdout.strip() == "cn-maps 1 ['dark_generator', 'generator']", alone.stderr
    resumed, whole = train(config, record), train(config)
    assert any(line["type"] == "resume" for line in records.read_lines(record))
    for key, curve in whole.epochs.items():
        assert "second" in key or np.array_equal(curve, resumed.epochs[key], equal_nan=True), key
    torch.testing.assert_close(whole.model.state_dict(), resumed.model.state_dict(), rtol=0, atol=0)


def shared(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for method in ("bn", "cn-maps"):
        run = train(TOY.config(method, profile="smoke", precision="fp64"), folder / str(rank) / f"{method}.jsonl")
        torch.save(run.model.state_dict(), folder / f"{method}-{rank}.pt")


def test_two_processes_train_what_one_does(tmp_path):
    mp.spawn(shared, (tmp_path,), nprocs=2)
    for method in ("bn", "cn-maps"):
        whole = train(TOY.config(method, profile="smoke", precision="fp64"))
        first, second = (torch.load(tmp_path / f"{method}-{rank}.pt") for rank in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(first, dict(whole.model.state_dict()), rtol=0, atol=1e-6)
        recorded = read(tmp_path / "0" / f"{method}.jsonl")
        assert recorded.provenance["processes"] == 2
        for key, values in whole.epochs.items():
            if "second" not in key:
                np.testing.assert_allclose(recorded.epochs[key], values, rtol=1e-6, atol=1e-6, err_msg=key)


def test_a_dry_run_times_it(tmp_path):
    assert estimate(TOY.config("cn-maps", profile="smoke")) > 0
    done = CliRunner().invoke(cli.app, ["sweep", "toy", "--out", str(tmp_path), "--threads", "1", "--dry-run"])
    lines = done.output.splitlines()
    assert done.exit_code == 0 and all(": about " in line for line in lines[:6]) and "in all about" in lines[-1]
    assert not [*tmp_path.iterdir()]


def test_the_estimate_sees_a_cut_of_the_run(monkeypatch):
    seen = []

    def run_epoch(self):
        seen.append((len(self.train), len(self.dark), len(self.tests["test"].split), self.config.train_size))
        return {"train_seconds": 2.0, "eval_seconds": 1.0}

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    assert estimate(TOY.config("bn", profile="smoke")) == pytest.approx(3 * (2.0 * 300 / 80 + 1.0 * 120 / 40))
    assert seen[0][2:] == (40, 80) and sum(seen[0][:2]) == 80


def test_printed_cells_are_filled(folder, tmp_path, monkeypatch):
    head = "# made up\ndataset,model,metric,value\n"
    rows = "light,Net+BN,accuracy,50\nlight,Net+CN-Maps,accuracy,60\ndark,Net+BN,accuracy,\ndark,Net+CN-Maps,f1,60\n"
    (tmp_path / "toy_table_1.csv").write_text(head + rows, encoding="utf-8")
    (tmp_path / "toy_table_2.csv").write_text(
        head + "dark,Net+BN,f1,70\ndark,Net+BN,accuracy,50\ndark,Net+CN-Maps,f1,60\n", encoding="utf-8"
    )
    monkeypatch.setattr(papers, "PUBLISHED", tmp_path)
    runs = results.load(folder)
    for run in runs:  # percent correct, so that the verdicts are known
        for name, cn in (("test_accuracy", 0.9), ("test_dark_f1", 0.6), ("test_dark_as_light_f1", 0.8)):
            value = (0.7 if run.config.norm == "bn" else cn) + 0.01 * run.config.seed
            run.epochs[name] = np.full(3, value)
            reading, _, metric = name.rpartition("_")
            run.final[f"{reading}_reestimated_{metric}"] = value
    cells = {(c.table[-1], c.row["dataset"], c.row["model"], c.row["metric"]): c for c in results.reproduction(runs)}
    found = {key: (c.gap, c.ours_gap and round(c.ours_gap.best.mean), c.verdict) for key, c in cells.items()}
    assert found == {
        ("1", "light", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("1", "light", "Net+CN-Maps", "accuracy"): (10, 20, "outside"),
        ("1", "dark", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("1", "dark", "Net+CN-Maps", "f1"): (None, -10, "baseline"),  # no such number is printed for the baseline
        ("2", "dark", "Net+BN", "f1"): (None, None, "baseline"),
        ("2", "dark", "Net+BN", "accuracy"): (None, None, "baseline"),
        ("2", "dark", "Net+CN-Maps", "f1"): (-10, 10, "outside"),  # f1 beside f1, not the last row
    }
    assert results.to_text([*cells.values()]).columns[6] == "printed - Net+BN"
    assert cells["2", "dark", "Net+CN-Maps", "f1"].label == "dark Net+CN-Maps, f1"


def test_an_option_that_nobody_takes_is_an_error():
    config = TOY.config("bn", profile="smoke", options={"unheard": 6})
    with pytest.raises(ValueError, match="options: no unheard; toy takes hidden, told, adapt takes weight"):
        train(config)


def test_options_override_one_by_one_and_stand_in_the_name():
    config = TOY.config("bn", profile="smoke", options={"hidden": 5}, epochs=1)
    assert dict(config.options) == {"hidden": 5, "weight": 0.2}
    assert TOY.record_name(config) == "smoke-digits+dark-bn-epochs=1-hidden=5-s0"
