"""Records, printed tables, intervals."""

import json
from pathlib import Path

import numpy as np
import pytest

from cnlib import results
from cnlib.results.runs import RUNS
from cnlib.training import Config
from cnlib.training.records import Run, write_lines

NORMS = {"bn": {}, "cn": {"norm": "cn", "contexts": "gmm"}, "cn-random": {"norm": "cn", "contexts": "random"}}


def run(name="bn", seed=0, accuracies=(0.1, 0.5, 0.4), **config):
    curve = np.array(accuracies)
    epochs = {"epoch": np.arange(1, len(curve) + 1), "test_accuracy": curve, "test_loss": 1 - curve}
    return Run(f"{name}-s{seed}", Config(seed=seed, **NORMS.get(name, {}), **config), {}, epochs, "finished")


def write(folder, name, seed, accuracies, profile="reduced", final=True):
    header = {"type": "header", "provenance": {"threads": 1}}
    header["config"] = Config(seed=seed, profile=profile, epochs=len(accuracies), **NORMS[name]).to_dict()
    rows = [{"type": "epoch", "epoch": i + 1, "test_accuracy": a} for i, a in enumerate(accuracies)]
    ending = [{"type": "final", "status": "finished", "best_test_accuracy": max(accuracies)}] if final else []
    write_lines(folder / f"{name}-s{seed}.jsonl", [header, *rows, *ending])


def test_loading_a_folder_of_records(tmp_path):
    write(tmp_path, "cn-random", 1, [0.1, 0.2])
    write(tmp_path, "bn", 0, [0.3], profile="paper", final=False)
    bn, cn = results.load(tmp_path)
    assert (bn.label, bn.status, bn.provenance) == ("paper", "unfinished", {"threads": 1})
    assert cn.config.method == "cn-random" and cn.final == {"best_test_accuracy": 0.2}
    assert cn.epochs["test_accuracy"].tolist() == [0.1, 0.2]
    assert [r.name for r in results.load(tmp_path, profile="reduced")] == ["cn-random-s1"]
    frame = results.to_frame([bn, cn])
    assert len(frame) == 3 and set(frame["profile"]) == {"paper", "reduced"}


def test_nothing_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = f"which has {', '.join(results.experiments())}$"
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/no-such-experiment, nor .*{known}"):
        results.load("no-such-experiment")
    with pytest.raises(ValueError, match=rf"no records in {tmp_path}.*\*\.jsonl"):
        results.load(tmp_path)
    write(tmp_path, "bn", 0, [0.3])
    with pytest.raises(ValueError, match=f"of profile 'paper' among the 1 in {tmp_path}"):
        results.load(tmp_path, profile="paper")


def test_a_path_is_a_folder_whatever_the_package_has_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/convnet"):
        results.load(Path("convnet"))
    for name in ("convnet", "mine"):
        write(tmp_path / name, "bn", 0, [0.3])
    assert [len(results.load(path)) for path in (Path("convnet"), "./convnet", "mine")] == [1, 1, 1]
    assert len(results.load("convnet")) > 1


@pytest.mark.parametrize("experiment", results.experiments())
def test_every_run_in_the_package_is_whole_and_says_where_it_comes_from(experiment):
    for path in (RUNS / experiment).glob("*.jsonl"):
        assert "/work" not in path.read_text(encoding="utf-8") and "/home" not in path.read_text(encoding="utf-8")
    for r in results.load(experiment):
        assert r.status in ("finished", "diverged") and r.label in ("reduced", "narrow", "paper")
        assert {"cnlib", "commit", "torch", "device", "threads", "data"} <= set(r.provenance)
        assert r.status == "diverged" or len(r.epochs["epoch"]) == r.config.epochs
        assert r.name.endswith(f"-s{r.config.seed}")
        json.dumps(r.config.to_dict())


def test_selecting_by_configuration():
    runs = [run(), run("cn"), run("cn", lr=5e-3, placement=("input",))]
    assert (
        results.select(runs, lr=1e-3) == runs[:2] and results.select(runs, norm="cn", placement=("input",)) == runs[2:]
    )
    assert results.select(runs, method=("bn", "cn")) == runs[:2] and results.select(runs, method="cn") == runs[1:2]
    with pytest.raises(ValueError, match="rate is no field"):
        results.select(runs, rate=1e-3)


def test_a_number_at_the_end_is_the_late_reading_or_that_of_the_last_epoch():
    run = Run(
        "r", Config(), {}, {"test_accuracy": np.array([0.1, 0.3])}, "finished", final={"test_shuffled_accuracy": 0.2}
    )
    assert (run.at_end("test_accuracy"), run.at_end("test_shuffled_accuracy")) == (0.3, 0.2)
    assert np.isnan(run.at_end("test_masked_accuracy"))
