"""A run shared by two processes is the run of one: same weights, same record; and an error in one ends both."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cnlib.training import Config, Trainer, checkpoint, distributed, loop, read, records, train

# 63 images a batch: the two parts differ in size. Two test batches: a whole one each. SGD, because on 8x8 images the
# bias of norm3 is without effect: RMSprop would divide the rounding error that is its gradient by its own size.
SMALL = {
    "width": 0.0625,
    "epochs": 3,
    "batch_size": 63,
    "train_size": 200,
    "test_size": 100,
    "precision": "fp64",
    "optimizer": "sgd",
    "lr": 0.05,
}
CONFIGS = {
    "bn": Config(**SMALL, flip=True, crop=1),
    "mn": Config(**SMALL, norm="mn", contexts="random"),
    "mn-em": Config(**SMALL, norm="mn"),
    "cn": Config(**SMALL, norm="cn", contexts="random"),
}
ONE_EPOCH = Config(**SMALL | {"epochs": 1})


def join(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)


def share(rank, folder):
    """Every run of these tests, in one of two processes; each writes to a folder of its own, to see who does."""
    join(rank, folder)
    mine = folder / str(rank)
    result = {}
    for name, config in CONFIGS.items():
        result[name] = train(config, mine / f"{name}.jsonl").model.state_dict()
    too_late = loop._too_late  # in the first process alone: its clock decides
    loop._too_late = lambda lines, _: rank == 0 and len(lines) > 1
    result["stopped"] = train(CONFIGS["mn-em"], mine / "resumed.jsonl").status
    loop._too_late = too_late
    if rank == 0:
        (mine / "kept.pt").write_bytes((mine / "resumed.pt").read_bytes())
    result["resumed"] = train(CONFIGS["mn-em"], mine / "resumed.jsonl").model.state_dict()
    result["again"] = train(CONFIGS["mn-em"], mine / "resumed.jsonl").status
    try:
        train(CONFIGS["bn"], mine / "resumed.jsonl")
    except ValueError as error:
        result["in the way"] = str(error)
    with torch.random.fork_rng():
        distributed.reseed(0, 1)
        result["random"] = torch.rand(3)
    torch.save(result, folder / f"{rank}.pt")
    Trainer.step = failing(rank, "raised")
    for name, config in (("different", Config(**SMALL, seed=rank)), ("raised", ONE_EPOCH)):
        try:
            train(config)
        except SystemExit as end:
            (folder / f"{name}-{rank}.txt").write_text(str(end), encoding="utf-8")


def failing(rank, how):
    """`Trainer.step`, which fails in the second process at its third call."""
    step, calls = Trainer.step, []

    def wrapper(self, batch):
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("no such number")
        return step(self, batch)

    return wrapper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    mp.spawn(share, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def shared(folder):
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_what_one_does(shared, folder, name):
    whole = train(CONFIGS[name])
    torch.testing.assert_close(shared[0][name], shared[1][name], rtol=0, atol=0)
    torch.testing.assert_close(shared[0][name], dict(whole.model.state_dict()), rtol=0, atol=1e-6)
    recorded = read(folder / "0" / f"{name}.jsonl")
    assert recorded.provenance["processes"] == 2 and recorded.status == "finished"
    assert recorded.epochs.keys() == whole.epochs.keys()
    for key, values in whole.epochs.items():
        if "second" not in key:
            torch.testing.assert_close(torch.tensor(recorded.epochs[key]), torch.tensor(values), rtol=1e-6, atol=1e-6)


def test_one_process_writes(folder):
    assert {path.name for path in (folder / "0").iterdir()} == {
        *(f"{name}.jsonl" for name in (*CONFIGS, "resumed")),
        "kept.pt",
    }
    assert not (folder / "1").exists()


def test_resumed_is_uninterrupted(shared, folder):
    for result in shared:
        assert (result["stopped"], result["again"]) == ("unfinished", "finished")
        torch.testing.assert_close(result["resumed"], result["mn-em"], rtol=0, atol=0)
    lines, whole = (records.read_lines(folder / "0" / f"{name}.jsonl") for name in ("resumed", "mn-em"))
    assert lines.pop(2)["type"] == "resume"
    for line, other in zip(lines, whole, strict=True):
        assert all(line[key] == other[key] for key in other if "second" not in key)


def test_one_process_goes_on_where_two_stopped(folder, tmp_path):
    kept = folder / "0" / "kept.pt"
    assert [line["type"] for line in json.loads(checkpoint.load(kept)["lines"])] == ["header", "epoch"]
    (tmp_path / "run.pt").write_bytes(kept.read_bytes())
    run, whole = train(CONFIGS["mn-em"], tmp_path / "run.jsonl"), read(folder / "0" / "mn-em.jsonl")
    assert run.status == "finished"
    torch.testing.assert_close(*(torch.tensor(r.epochs["test_loss"]) for r in (run, whole)), rtol=1e-6, atol=1e-6)


def test_an_error_all_share_leaves_the_processes_alive(shared):
    assert all("another configuration" in result["in the way"] for result in shared)


def test_random_numbers_differ_between_processes(shared):
    assert not torch.equal(shared[0]["random"], shared[1]["random"])


def test_different_configurations_are_refused(folder):
    for rank in range(2):
        message = (folder / f"different-{rank}.txt").read_text(encoding="utf-8")
        assert f"process {rank} of 2 failed" in message and "another configuration: seed" in message


def test_an_error_in_one_process_ends_all(folder):
    first, second = ((folder / f"raised-{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
    assert "process 0 of 2 ends because another one did" in first and "start the same command again" in first
    assert "process 1 of 2 failed and ends, and the others with it: ArithmeticError: no such number" in second


def killed(rank, folder):
    join(rank, folder)
    Trainer.step = failing(rank, "killed")
    train(ONE_EPOCH, folder / "run.jsonl")


def test_a_killed_process_ends_all(tmp_path):
    code = "import pathlib, test_distributed as t; t.killed({}, pathlib.Path({!r}))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(rank, str(tmp_path))],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(2)
    ]
    # torch's own patience with a lost process is half an hour: here it must not come to that
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -9], errors
    assert "process 0 of 2 ends because another one did" in errors[0]


def test_torchrun_shares_a_command(tmp_path):
    """The command line as a user starts it; nothing in it speaks of processes."""
    command = "-m cnlib.cli run convnet --norm bn --set train_size=128 --set epochs=1 --threads 1 --out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, *command.split(), str(tmp_path)], capture_output=True, encoding="utf-8", env=os.environ, timeout=600
    )
    assert result.returncode == 0, result.stderr
    (record,) = tmp_path.glob("*.jsonl")
    run = read(record)
    assert run.status == "finished" and run.provenance["processes"] == 2
    assert len(re.findall("finished", result.stdout)) <= 2, "each process printed what one should"


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.setattr(dist, "all_gather_object", None)
    monkeypatch.setattr(dist, "broadcast_object_list", None)
    assert distributed.from_all(3) == [3] and distributed.from_leader(lambda: 4) == 4
    assert distributed.start("cpu") == torch.device("cpu") and distributed.leader()
