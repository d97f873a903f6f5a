"""A sweep: what fails says why in a line, and the rest goes on; a dry run looks at what the run would look at."""

from dataclasses import replace

import pytest

from cnlib.experiments import EXPERIMENTS
from cnlib.sweeps import recorded, sweep
from cnlib.training import Trainer, loop, train


def tiny(**changes):
    return replace(EXPERIMENTS["convnet"].config("bn", profile="smoke"), **{"epochs": 1} | changes)


def test_what_is_in_the_way_of_a_run(tmp_path, capsys):
    """Every kind of record, and of checkpoint: `recorded` says what becomes of it, and the sweep does so."""
    config = tiny()
    train(config, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "begun.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "damaged.jsonl").write_bytes(b"[1, 2]\n")
    (tmp_path / "torn.pt").write_bytes(b"no checkpoint")
    train(tiny(lr=2e-3), tmp_path / "conflict.jsonl")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    names = ("whole", "begun", "empty", "absent", "damaged", "torn", "conflict")
    assert [recorded(config, tmp_path / f"{name}.jsonl") for name in names[:4]] == [True, False, False, False]
    said = {"damaged": "not a record of a run", "torn": "torn.pt is damaged", "conflict": "lr: 0.002, not 0.001"}
    for name, message in said.items():
        with pytest.raises(ValueError, match=message):
            recorded(config, tmp_path / f"{name}.jsonl")
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    ends = ["recorded", "finished", "finished", "finished", "failed", "failed", "failed"]
    assert sweep(dict.fromkeys(names, config), tmp_path) == dict(zip(names, ends, strict=True))
    errors = capsys.readouterr().err.splitlines()
    for (name, message), error in zip(said.items(), errors, strict=True):
        assert error.startswith(f"error: {name}: ") and message in error
    for name in said:
        assert all(before[file] == (tmp_path / file).read_bytes() for file in before if file.startswith(name))


@pytest.mark.parametrize("error", [ConnectionError("no route"), ImportError("install it"), OSError("disk full")])
def test_data_that_cannot_be_loaded_are_asked_for_once(error, tmp_path, capsys, monkeypatch):
    asked, load = [], loop.load_data

    def unreachable(name):
        asked.append(name)
        if name == "cifar10":
            raise error
        return load(name)

    monkeypatch.setattr(loop, "load_data", unreachable)
    configs = {"a": tiny(dataset="cifar10"), "b": tiny(), "c": tiny(dataset="cifar10", seed=1)}
    assert sweep(configs, tmp_path) == {"a": "failed", "b": "finished", "c": "failed"}
    assert asked.count("cifar10") == 1
    assert capsys.readouterr().err.splitlines() == [f"error: a: {error}", "error: c: as above"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.jsonl"]


def test_other_errors_keep_their_traceback(tmp_path, capsys, monkeypatch):
    def wrong(self, batch):
        raise ArithmeticError("a fault of ours")

    monkeypatch.setattr(Trainer, "step", wrong)
    assert sweep({"a": tiny()}, tmp_path) == {"a": "failed"}
    error = capsys.readouterr().err
    assert error.startswith("error: a: ArithmeticError\nTraceback") and "ArithmeticError: a fault of ours" in error


def test_a_file_system_without_locks_is_no_busy_run(tmp_path, capsys, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert sweep({"a": tiny()}, tmp_path) == {"a": "failed"}
    assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", ".x", "a\n", "x" * 201])
def test_no_record_leaves_the_folder(name, tmp_path):
    with pytest.raises(ValueError, match="cannot name a record"):
        sweep({"a": tiny(), name: tiny()}, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_time_that_is_shorter_than_an_epoch_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_too_late", lambda lines, until: len(lines) > 1)
    assert sweep({"a": tiny(epochs=2)}, tmp_path, minutes=1e-4) in ({"a": "unfinished"}, {"a": "not started"})
    assert "a does not get on: an epoch took" in capsys.readouterr().err
