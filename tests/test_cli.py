"""The command line: what it runs, what it says, and its exit codes."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from cnlib import cli, data, results
from cnlib.training import read


def cnlib(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return done.output


@pytest.mark.parametrize("command", [[], ["run"], ["sweep"], ["report"], ["bench"], ["data"], ["data", "fetch"]])
def test_every_command_has_help(command):
    assert "Usage:" in cnlib(*command, "--help")


def test_run_records_once_and_names_the_file_by_its_configuration(tmp_path):
    command = ["run", "convnet", "--norm", "cn", "--lr", 5e-3, "--placement", "input", "--set", "encoder=embedder"]
    text = cnlib(*command, "--seed", 1, "--out", tmp_path, "--threads", 1)
    name = "smoke-digits-cn-input-lr0.005-wd0.0001-s1"
    config = read(tmp_path / f"{name}.jsonl").config
    assert "1 finished" in text and name in text
    assert (config.placement, config.encoder, config.lr, config.seed) == (("input",), "embedder", 5e-3, 1)
    assert "1 recorded" in cnlib(*command, "--seed", 1, "--out", tmp_path, "--threads", 1)


def test_a_record_of_another_configuration_is_kept_and_the_run_reported_as_failed(tmp_path):
    common = ["run", "convnet", "--norm", "bn", "--out", tmp_path, "--threads", 1]
    cnlib(*common)
    before = next(tmp_path.glob("*.jsonl")).read_bytes()
    assert "1 failed" in cnlib(*common, "--set", "epochs=3", code=1)
    assert before == next(tmp_path.glob("*.jsonl")).read_bytes()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "vgg"], "expected one of convnet"),
        (["run", "convnet", "--norm", "xn"], "expected one of bn, mn"),
        (["run", "convnet", "--profile", "huge"], "expected one of smoke"),
        (["run", "convnet", "--set", "depth=3"], "field of the configuration"),
        (["run", "convnet", "--set", "epochs=-1"], "expected a number above 0"),
        (["run", "convnet", "--device", "abacus"], "cannot be used here"),
        (["sweep", "table-xi"], "expected one of table-1"),
        (["sweep", "table-v", "--only", "nothing*"], "no cell of table-v"),
        (["sweep", "table-v", "--until", "soon"], "8min"),
        (["report", "--table", "icdm_table_99"], "there are french_table_1"),
    ],
)
def test_wrong_usage_says_what_was_expected(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = " ".join(cnlib(*arguments, code=2).replace("│", " ").split())
    assert said in text and not any(tmp_path.iterdir())


@pytest.mark.parametrize("text, minutes", [("90s", 1.5), ("8min", 8), ("1h30min", 90), ("0.5h", 30)])
def test_durations(text, minutes):
    assert cli.duration(text) == minutes


def test_dry_run_names_and_times_the_cells_and_writes_nothing(tmp_path):
    cnlib("run", "convnet", "--norm", "bn", "--out", tmp_path, "--threads", 1)
    before = sorted(tmp_path.iterdir())
    text = cnlib("sweep", "table-1", "--only", "*-[bc]n-*", "--out", tmp_path, "--threads", 1, "--dry-run")
    lines = text.splitlines()
    assert lines[0] == "smoke-digits-bn-all-lr0.001-wd0.0001-s0: recorded"
    assert "smoke-digits-cn-conv3" in lines[1] and "about" in lines[1] and "in all about" in lines[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_without_the_data_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(data, "SOURCES", {})
    cells = ("--profile", "reduced", "--only", "*cifar10-bn*", "--seeds", 3)
    text = cnlib("sweep", "table-1", *cells, "--out", tmp_path, "--dry-run")
    assert text.count("no data set 'cifar10'") == 1 and "3 runs that cannot be timed" in text


def test_sweep_stops_in_time_and_goes_on(tmp_path):
    command = ["sweep", "table-1", "--only", "*-bn-*", "--out", tmp_path, "--threads", 1]
    assert "1 not started" in cnlib(*command, "--until", "0s", code=3)
    assert "1 finished" in cnlib(*command)


def test_ctrl_c_keeps_what_was_finished(tmp_path):
    if sys.platform == "win32":
        pytest.skip("no SIGINT there")
    command = [sys.executable, "-m", "cnlib.cli", "run", "convnet", "--norm", "bn", "--profile", "book"]
    command += ["--set", "epochs=400", "--out", str(tmp_path), "--threads", "1"]
    # a shell's background job ignores SIGINT, and so would its children
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, preexec_fn=restore, **pipes)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from there" in error, error
    run = read(next(tmp_path.glob("*.jsonl")))
    assert run.status == "unfinished" and len(run.epochs["epoch"]) >= 1


def test_report_has_a_row_for_every_printed_number():
    rows = list(csv.DictReader(io.StringIO(cnlib("report", "--format", "csv").rpartition("\n")[0])))
    rows = [row for row in rows if row["table"] in results.tables()]
    assert len(rows) == sum(len(results.published(name).rows) for name in results.tables())
    assert {row["verdict"].split(" (")[0] for row in rows} <= set(results.VERDICTS)
    assert "| table | cell |" in cnlib("report", "--table", "french_table_2", "--format", "markdown")


def test_data_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    arrays = {f"{s}_{k}": v for s in ("train", "test") for k, v in (("images", images), ("labels", labels))}
    data.write_folder(tmp_path / "mine", arrays, ("a", "b"))
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in cnlib("data", "list").splitlines()[1:]}
    assert listed["mine"] == listed["digits"] == "here" and listed["cifar10"] == "to be fetched"
    assert "4 + 4 images of 8x8x1" in cnlib("data", "fetch", "mine")
    assert "4 files as converted" in cnlib("data", "verify", "mine", "digits")
    with open(tmp_path / "mine" / "test_labels.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert "changed since conversion" in cnlib("data", "verify", "mine", code=1)
    assert "no data set 'nonsense'" in cnlib("data", "fetch", "nonsense", code=1)


def test_bench_runs_in_the_repository_only(tmp_path, monkeypatch):
    import cnlib as package

    monkeypatch.setattr(package, "__file__", str(tmp_path / "cnlib" / "__init__.py"))
    assert "in the repository" in cnlib("bench", "train", code=2)
    assert Path(cli.__file__).parents[1].joinpath("benchmarks").is_dir()
