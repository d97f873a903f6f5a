"""A run killed with SIGKILL and started again is the uninterrupted run: same record, same weights, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnlib.training import Busy, Config, checkpoint, read, records, train

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SMALL = {"width": 0.0625, "epochs": 3, "batch_size": 64, "train_size": 200, "test_size": 100, "flip": True, "crop": 1}
METHODS = {
    "cn": {"norm": "cn", "contexts": "one", "num_contexts": 1, "inference": "both"},
    "mn": {"norm": "mn"},  # draws from torch's global generator in its first batch
}

KILLS = {  # each session dies later than the one before
    "cn": [("step", 5), ("checkpoint", 1)],  # inside epoch 2; after checkpoint 2, before its line
    "mn": [("replace", 2), ("replace", 3), ("step", 1)],  # before checkpoint 1; before line 1; inside epoch 2
}


@pytest.fixture(autouse=True)
def one_thread():
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


def timeless(path):
    """The record without what a clock wrote, and without the lines that say it was resumed."""
    rows = [row for row in records.read_lines(path) if row["type"] != "resume"]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def weights(path):
    return torch.load(path.with_suffix(".pt"), weights_only=True)


def test_killed_at_several_moments(tmp_path):
    configs = {method: Config(**SMALL, **arguments) for method, arguments in METHODS.items()}
    records_of = {method: (tmp_path / f"{method}.jsonl", tmp_path / f"{method}-killed.jsonl") for method in METHODS}
    jobs = [
        (str(records_of[method][1]), configs[method].to_dict(), moment, count)
        for method in METHODS
        for moment, count in KILLS[method]
    ]
    helper = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    result = subprocess.run(helper, input=json.dumps(jobs), capture_output=True, text=True)
    assert json.loads(result.stdout or "[]") == [-9] * len(jobs), result.stderr
    for method, (whole, killed) in records_of.items():
        assert read(killed).status == "unfinished"
        train(configs[method], killed)
        train(configs[method], whole)
        assert timeless(killed) == timeless(whole)
        assert any(row["type"] == "resume" for row in records.read_lines(killed))
        first, second = weights(whole), weights(killed)
        for part in ("model", "optimizer", "rng"):
            torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)


def test_a_finished_run_is_returned_not_repeated(tmp_path):
    config = Config(**SMALL | {"epochs": 1})
    path = tmp_path / "run.jsonl"
    train(config, path)
    content = path.read_bytes()
    run = train(config, path)
    assert run.status == "finished" and path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl", "run.pt"]


def test_another_configuration_in_the_way(tmp_path):
    config = Config(**SMALL | {"epochs": 1})
    train(config, tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match="another configuration .*lr: 0.005, not 0.001"):
        train(Config(**SMALL | {"epochs": 1, "lr": 5e-3}), tmp_path / "run.jsonl")
    (tmp_path / "run.jsonl").unlink()
    with pytest.raises(ValueError, match="run.pt belongs to another configuration"):
        train(Config(**SMALL | {"epochs": 2}), tmp_path / "run.jsonl")


def test_truncated_files(tmp_path):
    config = Config(**SMALL | {"epochs": 2})
    path, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    train(config, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # a copy cut short in line 3
    assert len(records.read_lines(path)) == 2 and read(path).status == "unfinished"
    path.with_suffix(".pt").write_bytes(whole.with_suffix(".pt").read_bytes())
    train(config, path)
    assert timeless(path) == timeless(whole)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)
    path.write_bytes(b"".join(lines[:2]))
    path.with_suffix(".pt").write_bytes(whole.with_suffix(".pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match="run.pt is damaged.*remove it to start this run again"):
        train(config, path)


def test_two_processes_on_one_run(tmp_path):
    pytest.importorskip("fcntl")
    with checkpoint.locked(tmp_path / "run.jsonl"), pytest.raises(Busy, match="another process"):
        train(Config(**SMALL), tmp_path / "run.jsonl")


def test_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    config, path = Config(**SMALL | {"epochs": 2}), tmp_path / "run.jsonl"
    save, calls = torch.save, []

    def full(state, file):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        train(config, path)
    assert len(read(path).epochs["epoch"]) == 1 and checkpoint.load(path.with_suffix(".pt"), torch.device("cpu"))
    assert not list(tmp_path.glob(".*"))
    assert train(config, path).status == "finished"
