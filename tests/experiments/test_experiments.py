"""Experiments are configurations; a sweep runs what is missing and survives what fails."""

import subprocess
import sys
from dataclasses import replace

import pytest

from cnlib.experiments import convnet, sweep
from cnlib.training import checkpoint, read


@pytest.mark.parametrize("profile", convnet.PROFILES)
def test_profiles_change_sizes_only(profile):
    sizes = {"profile", "dataset", "width", "epochs", "batch_size", "train_size", "test_size", "flip"}
    for method in convnet.METHODS:
        smoke, other = (convnet.config(method, profile=p).to_dict() for p in ("smoke", profile))
        assert {key for key in smoke if smoke[key] != other[key]} <= sizes


def test_methods_are_bn_mn_cn_and_their_controls():
    chosen = {name: convnet.config(name, profile="paper") for name in convnet.METHODS}
    assert all(c.method == name for name, c in chosen.items())
    assert {c.norm for c in chosen.values()} == {"bn", "mn", "cn"}
    assert all(c.placement == ("conv3",) and c.batch_size == 256 and c.optimizer == "rmsprop" for c in chosen.values())
    assert (chosen["cn-random"].contexts, chosen["cn-one"].num_contexts) == ("random", 1)
    assert chosen["mn"].contexts == chosen["cn"].contexts == "gmm" and chosen["mn-em"].contexts == "none"
    assert convnet.config("bn", lr=5e-3).lr == 5e-3
    with pytest.raises(ValueError, match="profiles smoke"):
        convnet.config("bn", profile="huge")


def test_every_seed_of_a_method_comes_after_the_seeds_before():
    names = list(convnet.configs("reduced", seeds=2))
    assert names[:3] == ["bn-s0", "mn-s0", "mn-em-s0"] and names[6:8] == ["bn-s1", "mn-s1"] and len(names) == 12


def tiny(**changes):
    return replace(convnet.config("bn", profile="smoke"), epochs=1, **changes)


def test_sweep_skips_resumes_reports_and_goes_on(tmp_path, capsys):
    configs = {"a-s0": tiny(), "b-s0": tiny(lr=2e-3)}
    assert sweep(configs, tmp_path) == {"a-s0": "finished", "b-s0": "finished"}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(sweep(configs, tmp_path).values()) == {"recorded"}
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    lines = (tmp_path / "b-s0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b-s0.jsonl").write_bytes(b"".join(lines[:-1]))  # killed before the last line
    configs = {"broken-s0": tiny(dataset="no-such-set"), "a-s0": tiny(lr=1e-2)} | {"b-s0": configs["b-s0"]}
    assert sweep(configs, tmp_path) == {"broken-s0": "failed", "a-s0": "failed", "b-s0": "finished"}
    captured = capsys.readouterr()
    assert "no data set 'no-such-set'" in captured.err and "another configuration" in captured.err
    assert read(tmp_path / "b-s0.jsonl").status == "finished"


def test_sweep_shares_a_folder_and_stops_in_time(tmp_path):
    pytest.importorskip("fcntl")
    with checkpoint.locked(tmp_path / "a-s0.jsonl"):
        assert sweep({"a-s0": tiny(), "b-s0": tiny()}, tmp_path) == {"a-s0": "busy", "b-s0": "finished"}
    assert sweep({"c-s0": tiny()}, tmp_path, minutes=0) == {"c-s0": "not started"}


def test_the_command(tmp_path):
    pytest.importorskip("typer")
    command = [
        sys.executable,
        "-m",
        "cnlib.experiments.convnet",
        "--out",
        str(tmp_path),
        "--threads",
        "1",
        "--minutes",
        "0",
    ]
    done = subprocess.run([*command, "--profile", "smoke"], capture_output=True, text=True)
    assert done.returncode == 0 and "12 not started" in done.stdout
    wrong = subprocess.run([*command, "--profile", "huge"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "expected one of smoke" in wrong.stderr
