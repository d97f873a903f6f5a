"""What the benchmarks measure is what they say they measure. Nothing here is timed."""

from dataclasses import replace

import pytest
import torch
import typer
from torch import nn

import studies.training as bench
from cnlib.results import measured
from cnlib.training import Config, Trainer
from cnlib.training.records import read_lines, write_lines
from studies import command, layers
from studies.layers import kept_bytes, peak_bytes

CPU = torch.device("cpu")
CONFIG = Config(dataset="random", width=0.0625, flip=True, batch_size=64)


@pytest.fixture
def data():
    pytest.importorskip("torchvision")
    return bench.pictures(128, 64)


def test_both_loops_train_the_same_network_on_the_same_images(data):
    usual, ours = bench.UsualLoop(CONFIG, data, CPU, 0), Trainer(CONFIG, data, CPU)
    theirs, mine = dict(usual.model.named_parameters()), dict(ours.model.named_parameters())
    assert set(theirs) == set(mine)
    for name, parameter in theirs.items():
        torch.testing.assert_close(parameter, mine[name])
    assert usual.optimizer.defaults == ours.optimizer.defaults
    still = bench.UsualLoop(replace(CONFIG, flip=False), data, CPU, 0).loader.dataset
    image = next(ours.train.ordered(1)).x[0]
    torch.testing.assert_close(still[0][0], image, rtol=0, atol=2e-6)
    x = next(ours.train.ordered(64)).x
    torch.testing.assert_close(usual.model(x), ours.model(x), rtol=1e-4, atol=1e-4)


def test_the_usual_loop_is_the_usual_one_and_learns(data):
    loop = bench.UsualLoop(CONFIG, data, CPU, 0)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in loop.model.modules()) == 4
    before = loop.model.linear.weight.detach().clone()
    assert loop.seconds() > 0 and not torch.equal(before, loop.model.linear.weight)


def test_rows_of_the_training_benchmark(data):
    (row,) = bench.throughput(0.0625, 256, 2, CPU, compiled=(False,))
    assert row["images"] == 256 and row["compile_seconds"] == 0
    low, high = row["speedup_range"]
    assert 0 < low <= row["speedup"] <= high
    assert row["usual_images_per_second"][str(row["usual_workers"])] == max(row["usual_images_per_second"].values())


def test_rows_of_the_cost_benchmark():
    rows = {row["method"]: row for row in bench.cost(0.0625, bench.EVERYWHERE, 1, 512, CPU, dataset="digits")}
    assert set(rows) == set(bench.METHODS)
    assert rows["bn"]["time_ratio"] == rows["bn"]["peak_ratio"] == 1
    assert rows["mn"]["contexts_seconds"] > 1e-3 > rows["mn-em"]["contexts_seconds"]
    assert rows["mn-em"]["peak_ratio"] > 1 > rows["none"]["peak_ratio"]


def test_peak_and_kept_bytes_of_a_known_step():
    x = torch.randn(1000, 1000, requires_grad=True)

    def step():
        y = x.detach() * 2
        return y + 1  # two of 4 MB at once

    assert peak_bytes(step, CPU) == pytest.approx(8e6, rel=0.01)
    assert kept_bytes(lambda: (x * 2).exp(), x) == pytest.approx(4e6, rel=0.01)


def test_a_part_writes_its_own_record(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(bench, "run_cost", lambda repeats, device: [{"data": "abc", "repeats": repeats}])
    command.main(only="cost", repeats=2)
    (path,) = (tmp_path / "benchmarks" / "out").glob("cpu-*-threads-cost.jsonl")
    header, row = read_lines(path)
    assert header["provenance"]["data"] == "abc" and row == {"type": "cost", "data": "abc", "repeats": 2}


@pytest.mark.parametrize("norm", ["bn", "cn"])
def test_the_peak_is_of_a_training_step_whatever_was_read_before(norm, data):
    config = replace(CONFIG, norm=norm, method=norm, placement=bench.EVERYWHERE, width=0.25)
    if norm == "cn":
        config = replace(config, contexts="random")
    trainer = Trainer(config, data, CPU)
    for batch in trainer.batches():
        trainer.step(batch)
    before = bench.step_peak(trainer)
    trainer.run_epoch()  # ends with the test sets
    assert bench.step_peak(trainer) == pytest.approx(before, rel=0.02)


def test_one_layer_anew_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "HERE", tmp_path)
    made = [{"layer": "BatchNorm", "time_ratio": 1.0}, {"layer": "ModeNorm", "time_ratio": 4.0}]
    monkeypatch.setattr(command, "_layers", lambda budget, device, names: made)
    command.main(only="layers")
    (path,) = (tmp_path / "out").glob("*-layers.jsonl")
    first = read_lines(path)
    first[0]["provenance"]["commit"] = "before"
    write_lines(path, first)
    monkeypatch.setattr(command, "_layers", lambda budget, device, names: [{"layer": "ModeNorm", "time_ratio": 1.5}])
    command.main(only="layers", layer=["ModeNorm"])
    header, *rows = read_lines(path)
    assert rows == [
        {"type": "layer", "commit": "before", "layer": "BatchNorm", "time_ratio": 1.0},
        {"type": "layer", "layer": "ModeNorm", "time_ratio": 1.5},
    ]
    monkeypatch.setattr("cnlib.results.benchmarks.BENCHMARKS", path.parent)
    read = measured("layers", path.stem.removesuffix("-layers"))
    assert [row["provenance"]["commit"] for row in read] == ["before", header["provenance"]["commit"]]

    def unmeasured(budget, device, names):
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(command, "_layers", unmeasured)
    header["provenance"]["device"] = "another"
    write_lines(path, [header, *rows])
    with pytest.raises(typer.BadParameter, match="another.*measure all layers"):
        command.main(only="layers", layer=["ModeNorm"])
    with pytest.raises(typer.BadParameter, match="--only layers"):
        command.main(only="cost", layer=["ModeNorm"])
    path.unlink()
    with pytest.raises(typer.BadParameter, match="no record"):
        command.main(only="layers", layer=["ModeNorm"])


def test_a_layer_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match="NoNorm: expected some of BatchNorm"):
        layers.run(names=["NoNorm"])


def test_the_summary_has_no_mean_of_what_was_measured_on_one_shape():
    row = {"gradient": "manual", "compiled": True, "kept_bytes": 0, "native_kept_bytes": 0, "peak_ratio": 1.0}
    rows = [{"layer": "BatchNorm", "shape": [2, 3, size, size], "time_ratio": size / 4, **row} for size in (4, 16)]
    rows.append({"layer": "BatchNorm, unguarded", "shape": [2, 3, 4, 4], "time_ratio": 1.25, **row})
    lines = layers.summarize(rows).splitlines()
    # time on both shapes, its mean, kept, "K", peak
    assert [line.split()[-6:-3] for line in lines if "compiled" in line] == [["1.00", "4.00", "2.00"]]
    assert "BatchNorm, unguarded, 2x3x4x4: 1.25" in lines
