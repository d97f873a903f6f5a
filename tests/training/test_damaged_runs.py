"""Files that are not as they were written: found, and refused in a sentence that names the file; nothing is lost."""

import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from cnlib import storage
from cnlib.results.runs import RUNS
from cnlib.training import Config, Trainer, checkpoint, loop, read, records, train
from cnlib.training.lines import checksum_line

SMALL = Config(width=0.0625, epochs=2, batch_size=64, train_size=128, test_size=64)
HEADER = {"type": "header", "config": Config(epochs=2).to_dict(), "provenance": {}}
EPOCHS = [{"type": "epoch", "epoch": number, "train_loss": 1.0, "seconds": 1.5} for number in (1, 2)]
FINAL = {"type": "final", "status": "finished"}


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "run.jsonl"
    records.write_lines(path, [HEADER, *EPOCHS, FINAL])
    return path


@pytest.mark.parametrize("value", [True, "0.5", [[0.5]], {"a": 0.5}])
def test_what_no_record_can_hold_is_refused_before_it_is_written(value, tmp_path, monkeypatch):
    """After an epoch that is recorded: it can be read, and the run goes on from it."""
    monkeypatch.setattr(Trainer, "scores", lambda self, confusion: {"x": value} if self.epoch else {})
    with pytest.raises(ValueError, match="run, epoch 2: test_x=.*: expected a number, null or a list of them"):
        train(SMALL, tmp_path / "run.jsonl")
    assert read(tmp_path / "run.jsonl").epochs["epoch"].tolist() == [1]
    monkeypatch.undo()
    assert train(SMALL, tmp_path / "run.jsonl").status == "finished"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The bytes of record and checkpoint of a run that was stopped after its first epoch."""
    folder, mp = tmp_path_factory.mktemp("begun"), pytest.MonkeyPatch()
    mp.setattr(loop, "_too_late", lambda lines, until: len(lines) > 1)
    train(SMALL, folder / "run.jsonl")
    mp.undo()
    return (folder / "run.jsonl").read_bytes(), (folder / "run.pt").read_bytes()


def flipped(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_flipped_bit_of_a_finished_record_is_found(record):
    content = record.read_bytes()
    old = b"".join((json.dumps(line) + "\n").encode() for line in (HEADER, *EPOCHS, FINAL))
    for whole in (content, old + checksum_line(old)):  # the second: a record of format 1 that was given its checksum
        record.write_bytes(whole)
        assert read(record).status == "finished"
        for bit in range(8 * len(whole)):
            record.write_bytes(flipped(whole, bit))
            with pytest.raises(ValueError, match="run.jsonl"):
                read(record)


def test_a_damaged_line_is_named_where_it_cannot_be_read(record):
    whole = record.read_bytes()
    for old, new, message in (
        (b'"epoch": 2', b'"epoch" 2', "run.jsonl, line 3 is not JSON"),
        (b'"final"', b'"header"', r"run.jsonl: not a record of a run \(line 4 is a second header"),
        # still JSON: that something has changed is known, and not where
        (b'"train_loss": 1.0', b'"train_loss": 1.5', r"run.jsonl is damaged: .*each of the 4 can be read"),
        (b'"sha256": "', b'"sha256": "x', r"run.jsonl is damaged: .*each of the 4 can be read"),
    ):
        assert old in whole
        record.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read(record)


def test_flipped_bits_of_recorded_runs_are_found(tmp_path):
    draw = random.Random(0)
    for path in draw.sample(sorted(RUNS.glob("*/*.jsonl")), 5):
        content = path.read_bytes()
        for bit in draw.sample(range(8 * len(content)), 40):
            (tmp_path / path.name).write_bytes(flipped(content, bit))
            with pytest.raises(ValueError, match=re.escape(path.stem)):
                read(tmp_path / path.name)


def test_every_recorded_run_has_its_checksum():
    for path in RUNS.glob("*/*.jsonl"):
        *lines, last = path.read_bytes().splitlines(keepends=True)
        assert last == checksum_line(b"".join(lines)), f"{path} has no checksum, or another"


def test_a_record_of_an_older_version_is_read_without_a_checksum(record):
    record.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *EPOCHS, FINAL)), encoding="utf-8")
    assert read(record).status == "finished"


def test_a_record_cut_at_every_byte_is_refused_or_unfinished(record):
    content = record.read_bytes()
    for size in range(1, len(content)):
        record.write_bytes(content[:size])
        try:
            assert read(record).status == "unfinished"
        except ValueError as error:
            assert str(record) in str(error)


A, B, C, D = (json.dumps(line) for line in (HEADER, *EPOCHS, FINAL))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([A, B, C, D, A, B, C, D], "line 5 is a second header"),
        ([A, A, B, C, D], "line 2 is a second header"),
        ([A, B, B, C, D], "line 3 is epoch 1: expected 2"),
        ([A, C, D], "line 2 is epoch 2: expected 1"),
        ([A, C, B, D], "line 2 is epoch 2"),
        ([A, B, D], "finished after 1 of 2"),
        ([A, B, C, D, C], "line 5 follows the final line"),
        ([A, B, C, D, D], "line 5 follows the final line"),
        ([A, "", B, C, D], "line 2 is not JSON"),
        ([A, B.replace("1.5", "NaN"), C, D], "line 2 is not JSON"),
        ([A, B.replace("1.5", "-Infinity"), C, D], "line 2 is not JSON"),
        ([A, B.replace("1.5", "1e999"), C, D], "line 2 is not JSON .1e999 is no finite"),
        ([A, B.replace("1.5", "9" * 5000), C, D], "line 2 is not JSON"),
        ([A, B.replace("1.5", "1" + "0" * 400), C, D], "too large"),
        ([A, B.replace("1.5", "[" * 100_000), C, D], "line 2 is not JSON"),
        ([A, B.replace("1.5", '1.5, "epoch": 1'), C, D], "line 2 is not JSON .a key is there twice"),
        ([A, B.replace("1.5", '"1.5"'), C, D], "line 2: seconds='1.5': expected a number"),
        ([A, B.replace("1.5", "true"), C, D], "line 2: seconds=True"),
        ([A, B.replace("1.5", '{"a": 1}'), C, D], "line 2: seconds="),
        ([A, B.replace('"epoch": 1', '"epoch": 1.0'), C, D], "line 2 is epoch 1.0"),
        ([A, B.replace('"epoch"', '"age"', 1), C, D], "line 2 is of type 'age'|is no object|of type"),
        ([A, '{"type": "resume", "after_epoch": 3}', B, C, D], "line 2 resumes after epoch 3: expected 0"),
        ([A, B, C, '{"type": "final", "status": "fine"}'], "line 4: status 'fine'"),
        ([A, B, C, '{"type": "final"}'], "lacks 'status'"),
        ([A.replace('"provenance": {}', '"provenance": 3'), B, C, D], "line 1: expected an object"),
        ([A[:-1] + ', "format": 3}', B, C, D], "line 1 is of format 3"),
        ([A[:-1] + ', "format": 2}', B, C, D], "its checksum is missing"),
        (['{"type": 3}'], "line 1 is no object with a type"),
    ],
)
def test_lines_that_are_no_record(lines, message, record):
    content = "".join(f"{line}\n" for line in lines)
    record.write_text(content, encoding="utf-8")
    for use in (read, lambda path: train(Config(epochs=2), path)):
        with pytest.raises(ValueError, match=f"{record}.*({message})"):
            use(record)
    assert record.read_text(encoding="utf-8") == content


def test_a_flipped_bit_of_a_checkpoint_is_found_or_harmless(begun, tmp_path):
    content, path = begun[1], tmp_path / "run.pt"
    path.write_bytes(content)
    whole, found = checkpoint.load(path), 0
    draw = random.Random(0)
    ends = [*range(8 * (len(content) - 200), 8 * len(content), 7)]  # the table of contents
    for bit in [*draw.sample(range(8 * len(content)), 60), *ends[:: max(1, len(ends) // 60)]]:
        path.write_bytes(flipped(content, bit))
        try:
            state = checkpoint.load(path)
        except ValueError as error:
            assert str(path) in str(error) and "remove it to start this run again" in str(error)
            found += 1
        else:
            assert str(state) == str(whole)
    assert found > 40


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def changed(**values):
    return lambda state: state | values


def in_lines(old, new):
    return lambda state: state | {"lines": state["lines"].replace(old, new, 1)}


def in_model(change):
    def apply(state):
        name = next(iter(state["model"]))
        return state | {"model": state["model"] | {name: change(state["model"][name])}}

    return apply


def in_groups(**values):
    def apply(state):
        optimizer = state["optimizer"]
        return state | {"optimizer": optimizer | {"param_groups": [g | values for g in optimizer["param_groups"]]}}

    return apply


def one_generator(name, value):
    return lambda state: state | {"generators": {name: value}}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {},
        lambda state: None,
        lambda state: 3,
        lambda state: "text",
        lambda state: torch.zeros(3),
        lambda state: state["model"],
        *map(without, ("lines", "epoch", "model", "optimizer", "generators", "rng", "contexts")),
        *(changed(epoch=value) for value in (-1, 0, 2, 99, 1.0, float("nan"), True, None, "1", 10**30)),
        *(changed(steps=value) for value in (-1, 1.5, float("nan"))),
        *(changed(lines=value) for value in ("", "[]", "{}", "[1]", "[NaN]", "[" * 100_000, '[{"type": "epoch"}]', 3)),
        in_lines('"epoch": 1', '"epoch": 2'),
        in_lines('"seconds": ', '"seconds": 1e999, "other": '),
        in_lines('"train_loss": ', '"epoch": 1, "train_loss": '),
        *(changed(model=value) for value in (None, {}, [], {"conv1.weight": torch.zeros(1)}, {3: 4})),
        *(changed(optimizer=value) for value in (None, {}, {"state": {}, "param_groups": []}, {"state": 1})),
        lambda state: state | {"optimizer": state["optimizer"] | {"state": {0: {"square_avg": torch.zeros(2)}}}},
        *(changed(average=value) for value in (3, "x", {"conv1.weight": torch.zeros(1)})),
        *(changed(steps=value) for value in (99, 10**9)),
        in_model(torch.Tensor.double),
        in_model(torch.Tensor.long),
        in_model(lambda weight: weight * math.nan),
        *(in_groups(lr=value) for value in ("x", math.nan, -1.0, None)),
        in_groups(weight_decay=0.5),
        *(changed(best=value) for value in (3, {"value": "x"}, {"value": 1.0})),
        *(changed(contexts=value) for value in (None, [], {"train_ids": 3}, {"train_ids": torch.zeros(3)})),
        *(changed(generators=value) for value in (None, {}, [])),
        one_generator("run_epoch", torch.zeros(16, dtype=torch.uint8)),
        one_generator("generator", torch.zeros(7, dtype=torch.uint8)),
        one_generator("generator", torch.zeros(5056, dtype=torch.uint8)),
        one_generator("generator", torch.zeros(16)),
        one_generator("generator", 3),
        *(changed(rng=value) for value in (None, {}, {"cpu": torch.zeros(3, dtype=torch.uint8)}, {"cpu": 1})),
    ],
)
def test_what_loads_and_is_no_checkpoint(change, begun, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(begun[1])
    torch.save(change(torch.load(path, weights_only=True)), path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{path}.*remove it to start this run again"):
        train(SMALL, tmp_path / "run.jsonl")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "best",
    [
        lambda best: {},
        lambda best: best | {"value": math.nan},
        lambda best: best | {"epoch": 99},
        lambda best: best | {"epoch": 0},
        lambda best: best | {"model": {"x": torch.zeros(1)}},
    ],
)
def test_a_best_epoch_that_cannot_be(best, tmp_path, monkeypatch):
    config, path = replace(SMALL, validation=50, patience=5), tmp_path / "run.jsonl"
    with monkeypatch.context() as stopped:
        stopped.setattr(loop, "_too_late", lambda lines, until: len(lines) > 1)
        train(config, path)
    state = torch.load(path.with_suffix(".pt"), weights_only=True)
    torch.save(state | {"best": best(state["best"])}, path.with_suffix(".pt"))
    with pytest.raises(ValueError, match="remove it to start this run again"):
        train(config, path)


def test_a_run_begun_on_another_kind_of_device_goes_on(begun, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(begun[1])
    state = checkpoint.load(path)
    cuda = torch.zeros(16, dtype=torch.uint8)
    state |= {"generators": dict.fromkeys(state["generators"], cuda), "rng": state["rng"] | {"cuda": cuda}}
    checkpoint.save(path, state)
    assert train(SMALL, tmp_path / "run.jsonl").status == "finished"


def test_what_a_killed_process_left_is_cleared(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = [f".run.{kind}.{ended.pid}{token}.tmp" for kind in ("jsonl", "pt") for token in ("", ".0a1b2c3d")]
    others = [f".run.jsonl.{os.getppid()}.tmp", f".run2.jsonl.{ended.pid}.tmp", ".run.jsonl.tmp", "run2.lock"]

    def leave():
        for name in [*dead, *others, "run.lock"]:
            (tmp_path / name).touch()

    for _ in ("begun", "finished"):
        leave()
        train(SMALL, tmp_path / "run.jsonl")
        assert {path.name for path in tmp_path.iterdir()} == {"run.jsonl", *others}


def test_no_link_is_followed(tmp_path, monkeypatch):
    target = tmp_path / "mine.txt"
    target.write_text("mine", encoding="utf-8")
    (tmp_path / "run.lock").symlink_to(target)
    with pytest.raises(OSError, match="is a link.*run.lock"):
        train(SMALL, tmp_path / "run.jsonl")
    monkeypatch.setattr(storage.secrets, "token_hex", lambda size: "0")  # even where the name is guessed
    (tmp_path / f".run.jsonl.{os.getpid()}.0.tmp").symlink_to(target)
    with pytest.raises(FileExistsError):
        records.write_lines(tmp_path / "run.jsonl", [HEADER])
    assert target.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
@pytest.mark.parametrize("kind", ["record", "checkpoint", "arrays"])
def test_a_full_disk_is_one_sentence_and_the_old_file_is_kept(kind, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    write = {
        "record": lambda: records.write_lines(path, [HEADER]),
        "checkpoint": lambda: checkpoint.save(path, {"a": torch.zeros(100_000)}),
        "arrays": lambda: storage.write_npz(path, {}, {"a": np.zeros(100_000)}),
    }[kind]
    opening = os.open
    monkeypatch.setattr(os, "open", lambda name, flags, mode=0o777: opening("/dev/full", os.O_WRONLY))
    with pytest.raises(OSError, match=f"No space left.*what was there is kept.*{path}"):
        write()
    assert path.read_text(encoding="utf-8") == "old" and [*tmp_path.iterdir()] == [path]


def test_sigterm_says_what_is_kept(tmp_path, monkeypatch):
    whole = Trainer.run_epoch

    def stop(self):
        if self.epoch == 1:
            os.kill(os.getpid(), loop.signal.SIGTERM)
        return whole(self)

    monkeypatch.setattr(Trainer, "run_epoch", stop)
    with pytest.raises(KeyboardInterrupt, match="finished epochs are in .*run.jsonl: the same call goes on from there"):
        train(SMALL, tmp_path / "run.jsonl")
    assert len(read(tmp_path / "run.jsonl").epochs["epoch"]) == 1
    assert loop.signal.getsignal(loop.signal.SIGTERM) is loop.signal.SIG_DFL


@pytest.mark.parametrize("field", ["method", "norm", "contexts", "profile", "dataset"])
@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", "a\n", "../", "a\0"])
def test_names_that_lead_elsewhere(field, name):
    with pytest.raises(ValueError, match=field):
        Config(**{field: name})
