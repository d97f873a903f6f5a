"""A run killed with SIGKILL and started again is the uninterrupted run: same record, same weights, bit for bit."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cnlib
from cnlib.training import Busy, Config, checkpoint, read, records, train

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SMALL = {"width": 0.0625, "epochs": 3, "batch_size": 64, "train_size": 200, "test_size": 100, "flip": True, "crop": 1}
METHODS = {
    "cn": {"norm": "cn", "contexts": "one", "num_contexts": 1},
    "mn": {"norm": "mn"},  # draws from torch's global generator in its first batch
}

KILLS = {  # each session dies later than the one before
    "cn": [("step", 5), ("checkpoint", 1)],  # inside epoch 2; after checkpoint 2, before its line
    "mn": [("replace", 2), ("replace", 3), ("step", 1)],  # before checkpoint 1; before line 1; inside epoch 2
}


pytestmark = pytest.mark.usefixtures("one_thread")


def timeless(path):
    """The record without what a clock wrote, and without the lines that say it was resumed."""
    rows = [row for row in records.read_lines(path) if row["type"] != "resume"]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


@pytest.fixture
def checkpoints(monkeypatch):
    """{record's stem: [path of a copy of each checkpoint]}: `train` removes them when it has finished."""
    kept, save = {}, checkpoint.save

    def keep(path, state):
        save(path, state)
        copies = kept.setdefault(path.stem, [])
        copies.append(path.with_name(f"{path.name}.{len(copies)}"))
        copies[-1].write_bytes(path.read_bytes())

    monkeypatch.setattr(checkpoint, "save", keep)
    return kept


def test_killed_at_several_moments(tmp_path, checkpoints):
    configs = {method: Config(**SMALL, **arguments) for method, arguments in METHODS.items()}
    records_of = {method: (tmp_path / f"{method}.jsonl", tmp_path / f"{method}-killed.jsonl") for method in METHODS}
    jobs = [
        (str(records_of[method][1]), configs[method].to_dict(), moment, count)
        for method in METHODS
        for moment, count in KILLS[method]
    ]
    short = Config(**SMALL | {"epochs": 1})
    jobs.append((str(tmp_path / "late.jsonl"), short.to_dict(), "unlink", 1))  # the record is whole
    helper = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    result = subprocess.run(helper, input=json.dumps(jobs), capture_output=True, encoding="utf-8")
    assert json.loads(result.stdout or "[]") == [-9] * len(jobs), result.stderr
    for method, (whole, killed) in records_of.items():
        assert read(killed).status == "unfinished"
        train(configs[method], killed)
        train(configs[method], whole)
        assert timeless(killed) == timeless(whole)
        assert any(row["type"] == "resume" for row in records.read_lines(killed))
        first, second = (checkpoint.load(checkpoints[path.stem][-1]) for path in (whole, killed))
        for part in ("model", "optimizer", "rng"):
            torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    late = tmp_path / "late.jsonl"
    content = late.read_bytes()
    assert late.with_suffix(".pt").exists() and train(short, late).status == "finished" and late.read_bytes() == content


def test_a_finished_run_is_returned_not_repeated(tmp_path):
    config = Config(**SMALL | {"epochs": 1})
    path = tmp_path / "run.jsonl"
    train(config, path)
    content = path.read_bytes()
    run = train(config, path)
    assert run.status == "finished" and path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl"]


def test_a_finished_run_is_returned_from_where_nothing_can_be_written(tmp_path, monkeypatch):
    config = Config(**SMALL | {"epochs": 1})
    train(config, tmp_path / "run.jsonl")
    monkeypatch.setattr(checkpoint, "locked", None)  # root may write everywhere: so look whether it tries
    assert train(config, tmp_path / "run.jsonl").status == "finished"


def test_another_configuration_in_the_way(tmp_path, checkpoints):
    config = Config(**SMALL | {"epochs": 1})
    train(config, tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match="run.jsonl records another configuration .lr: 0.001, not 0.005"):
        train(replace(config, lr=5e-3), tmp_path / "run.jsonl")
    checkpoints["run"][0].rename(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt records another configuration .epochs: 1, not 2"):
        train(replace(config, epochs=2), tmp_path / "other.jsonl")


def test_other_data_in_the_way(tmp_path, checkpoints):
    config, path = Config(**SMALL | {"epochs": 2}), tmp_path / "run.jsonl"
    data = cnlib.data.load("digits")
    other = replace(data, train_images=np.ascontiguousarray(data.train_images[:, ::-1]))
    train(config, path)

    def refused():
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"other data: checksum {data.checksum}, and digits has {other.checksum}"):
            train(config, path, data=other)
        assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    refused()  # a whole record
    assert train(config, path, data=data).status == "finished"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    refused()  # a record without its checkpoint
    path.with_suffix(".pt").write_bytes(checkpoints["run"][0].read_bytes())
    refused()
    path.unlink()
    refused()  # a checkpoint alone
    assert train(config, path, data=data).status == "finished"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"type": "header", "provenance": {}}', "it lacks 'config'"),
        ('{"type": "header", "config": {}}', "it lacks 'provenance'"),
        ('{"type": "header", "config": 3, "provenance": {}}', "not iterable"),
        ('{"type": "header", "config": {"colour": 1}, "provenance": {}}', "unknown fields.*colour"),
        ('{"type": "header", "config": {"lr": -1}, "provenance": {}}', "lr=-1"),
        ('{"type": "header", "config": {}, "provenance": {}}\n[1, 2]', "line 2 is no object"),
        ("[1, 2]", "line 1 is no object"),
        ('{"type": "epoch"}', "does not start with a header"),
    ],
)
def test_files_that_are_no_records(lines, message, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(lines + "\n", encoding="utf-8")
    for use in (read, lambda path: train(Config(**SMALL), path)):
        with pytest.raises(ValueError, match=f"{path}: not a record of a (training )?run .*{message}"):
            use(path)
    assert path.read_text(encoding="utf-8") == lines + "\n"


def test_an_empty_record_is_none(tmp_path):
    path = tmp_path / "run.jsonl"
    path.touch()
    with pytest.raises(ValueError, match="run.jsonl is empty"):
        read(path)
    assert train(Config(**SMALL | {"epochs": 1}), path).status == read(path).status == "finished"


def test_truncated_files(tmp_path, checkpoints):
    config = Config(**SMALL | {"epochs": 2})
    path, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    train(config, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # a copy cut short in line 3
    assert len(records.read_lines(path)) == 2 and read(path).status == "unfinished"
    saved = checkpoints["whole"][-1].read_bytes()
    path.with_suffix(".pt").write_bytes(saved)
    train(config, path)
    assert timeless(path) == timeless(whole)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)
    path.write_bytes(b"".join(lines[:2]))
    path.with_suffix(".pt").write_bytes(saved[:5000])
    with pytest.raises(ValueError, match="run.pt is damaged.*remove it to start this run again"):
        train(config, path)


def test_two_processes_on_one_run(tmp_path):
    pytest.importorskip("fcntl")
    with checkpoint.locked(tmp_path / "run.jsonl"), pytest.raises(Busy, match="another process"):
        train(Config(**SMALL), tmp_path / "run.jsonl")
    assert not any(tmp_path.iterdir())


def test_a_lock_removed_by_its_holder_is_no_lock(tmp_path, monkeypatch):
    """The holder removes the file after another process has opened it and before that one locks it."""
    fcntl = pytest.importorskip("fcntl")
    flock, record, calls = fcntl.flock, tmp_path / "run.jsonl", []

    def late(file, how):
        calls.append(1)
        if len(calls) == 1:
            record.with_suffix(".lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with checkpoint.locked(record), pytest.raises(Busy), checkpoint.locked(record):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="run.lock cannot be locked .*No locks.*record on another one") as caught:
        train(Config(**SMALL), tmp_path / "run.jsonl")
    assert not isinstance(caught.value, Busy)


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
    assert len(read(path).epochs["epoch"]) == 1 and checkpoint.load(path.with_suffix(".pt"))
    assert not list(tmp_path.glob(".*"))
    assert train(config, path).status == "finished"
