"""The command line: what it runs, what it says, and its exit codes."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from cnlib import cli, data, results, sweeps
from cnlib.experiments import EXPERIMENTS
from cnlib.training import read, train


def cnlib(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return done.output


@pytest.mark.parametrize("command", [[], ["run"], ["sweep"], ["report"], ["bench"], ["data"], ["data", "fetch"]])
def test_every_command_has_help(command):
    assert "Usage:" in cnlib(*command, "--help")


def test_run_records_once_and_names_the_file_by_its_configuration(tmp_path):
    command = ["run", "convnet", "--method", "cn-channels", "--lr", 5e-3]
    text = cnlib(*command, "--seed", 1, "--out", tmp_path, "--threads", 1)
    name = "smoke-digits-cn-channels-lr=0.005-s1"
    config = read(tmp_path / f"{name}.jsonl").config
    assert "1 finished" in text and name in text
    assert (config.placement, config.encoder, config.lr, config.seed) == (("input",), "embedder", 5e-3, 1)
    assert "1 recorded" in cnlib(*command, "--seed", 1, "--out", tmp_path, "--threads", 1)


def test_a_record_of_another_configuration_is_kept_and_the_run_reported_as_failed(tmp_path):
    config = EXPERIMENTS["convnet"].config("bn", profile="smoke")
    train(replace(config, epochs=1), tmp_path / f"{EXPERIMENTS['convnet'].record_name(config)}.jsonl")
    before = next(tmp_path.glob("*.jsonl")).read_bytes()
    text = cnlib("run", "convnet", "--norm", "bn", "--out", tmp_path, "--threads", 1, code=1)
    assert "1 failed" in text and "another configuration (epochs: 1, not 2)" in text and "Traceback" not in text
    assert before == next(tmp_path.glob("*.jsonl")).read_bytes()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "vgg"], f"expected one of {next(iter(EXPERIMENTS))}"),
        (["run", "convnet", "--norm", "xn"], "expected one of bn, mn"),
        (["run", "convnet", "--profile", "huge"], "expected one of smoke"),
        (["run", "convnet", "--set", "depth=3"], "field of the configuration"),
        (["run", "convnet", "--set", "epochs=-1"], "expected a number above 0"),
        (["run", "convnet", "--seed", "-1"], "Invalid value for '--seed'"),
        (["run", "convnet", "--threads", "0"], "Invalid value for '--threads'"),
        (["run", "convnet", "--out", __file__], "is a file"),
        (["sweep", "table-1", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["sweep", "table-1", "--seeds", "-1"], "Invalid value for '--seeds'"),
        (["sweep", "table-1", "--out", __file__], "is a file"),
        *((["run", "convnet", "--device", d], "expected one of cpu, cuda, mps") for d in ("abacus", "tpu", "meta")),
        (["run", "convnet", "--device", "cuda:99"], "cannot be used here"),
        (["sweep", "table-xi"], f"expected one of {next(iter(next(iter(EXPERIMENTS.values())).sweeps))}"),
        (["sweep", "table-v", "--only", "nothing*"], "no cell of table-v"),
        (["sweep", "long"], "no cell of long at profile smoke matches '*'; it has cells at narrow"),
        (["sweep", "table-v", "--until", "soon"], "8min"),
        (["report", "--table", "icdm_table_99"], "there are french_table_1"),
        (["report", "--records", "convnet"], "no folder"),
        (["report", "--records", "."], "no records in"),
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
    assert lines[0] == "smoke-digits-bn-s0: recorded"
    assert "smoke-digits-cn-s0" in lines[1] and "about" in lines[1] and "in all about" in lines[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_names_a_cell_before_it_times_it(tmp_path, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("no images")

    monkeypatch.setattr(sweeps.preview.__globals__["data"], "load", fails)
    pieces = sweeps.preview(EXPERIMENTS["convnet"].configs("table-1", "smoke"), tmp_path)
    first = EXPERIMENTS["convnet"].record_name(EXPERIMENTS["convnet"].config("bn", profile="smoke"))
    assert next(pieces) == f"{first}: ", "printed before anything is loaded"
    text = "".join(pieces)
    assert text.startswith("cannot be timed: ZeroDivisionError: no images\n") and text.count("no images") == 1


def test_dry_run_without_the_data_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(data, "SOURCES", {})
    cells = ("--profile", "reduced", "--only", "*cifar10-[bc]n-*", "--seeds", 3)
    asked, load = [], data.load
    monkeypatch.setattr(data, "load", lambda name: asked.append(name) or load(name))
    text = cnlib("sweep", "table-1", *cells, "--out", tmp_path, "--dry-run")
    assert text.count("no data set 'cifar10'") == 1 and "12 runs that cannot be timed" in text
    assert asked == ["cifar10"]


def test_dry_run_says_what_would_fail(tmp_path):
    configs = EXPERIMENTS["convnet"].configs("table-1", "smoke")
    bn, cn, one = (next(n for n, c in configs.items() if c.method == method) for method in ("bn", "cn", "cn-one"))
    train(replace(configs[bn], epochs=1), tmp_path / f"{bn}.jsonl")
    (tmp_path / f"{cn}.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    (tmp_path / f"{one}.jsonl").touch()
    text = cnlib("sweep", "table-1", "--out", tmp_path, "--threads", 1, "--dry-run")
    said = dict(line.split(": ", 1) for line in text.splitlines()[:-1])
    assert "would fail: " in said[bn] and "another configuration (epochs: 1, not 2)" in said[bn]
    assert "would fail: " in said[cn] and "not a record of a run" in said[cn]
    assert said[one].startswith("about ")


def test_sweep_stops_in_time_and_goes_on(tmp_path):
    command = ["sweep", "table-1", "--only", "*-bn-*", "--out", tmp_path, "--threads", 1]
    assert "1 not started" in cnlib(*command, "--until", "0s", code=3)
    assert "1 finished" in cnlib(*command)


def test_ctrl_c_keeps_what_was_finished(tmp_path):
    if sys.platform == "win32":
        pytest.skip("no SIGINT there")
    command = [sys.executable, "-m", "cnlib", "run", "convnet", "--norm", "bn", "--profile", "book"]
    command += ["--set", "epochs=400", "--out", str(tmp_path), "--threads", "1"]
    # a shell's background job ignores SIGINT, and so would its children
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, preexec_fn=restore, **pipes)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130 and "goes on from there" in error, error
    run = read(next(tmp_path.glob("*.jsonl")))
    assert run.status == "unfinished" and len(run.epochs["epoch"]) >= 1


STOPS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))
except BaseException as error:
    raise ImportError("swallowed") from error
"""


@pytest.mark.parametrize("package", ["typer", "torch", "numpy", "pandas", "sklearn"])
@pytest.mark.parametrize("module", ["cnlib", "studies"])
def test_ctrl_c_while_packages_load_shows_no_traceback(module, package, tmp_path):
    if sys.platform == "win32":
        pytest.skip("no SIGINT there")
    commands = {"pandas": "report", "sklearn": "data fetch digits", "studies": "--only layers"}
    command = commands.get(package if module == "cnlib" else module, "run convnet --norm bn")
    if module == "studies" and package in ("pandas", "sklearn"):
        pytest.skip("not imported")
    (tmp_path / f"{package}.py").write_text(STOPS, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[1])])
    restore = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-m", module, *command.split()], preexec_fn=restore, **pipes)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


NUMBERS = ("ours", "last_three", "ours_gap", "last_three_gap")


@pytest.mark.parametrize("form", cli.Format)
def test_report_in_an_ascii_locale(form):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "cnlib.cli", "report", "--table", "french_table_2", "--format", form]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "cifar100 CN+" in done.stdout, done.stderr
    assert form != "csv" or done.stdout.isascii()


def test_report_of_a_folder_called_as_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cnlib("run", "convnet", "--norm", "bn", "--out", "convnet", "--threads", 1)
    text = cnlib("report", "--records", "convnet", "--table", "french_table_2", "--format", "csv")
    assert text.endswith("3 not yet run\n"), "the package has these runs, that folder has not"
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["table"] == "french_table_2"]
    assert len(rows) == 3 and all(row[key] == "" for row in rows for key in row if key.startswith("ours_gap"))


def test_report_has_a_row_for_every_printed_number():
    rows = list(csv.DictReader(io.StringIO(cnlib("report", "--format", "csv").rpartition("\n")[0])))
    rows = [row for row in rows if row["table"] in results.tables()]
    assert len(rows) == sum(len(results.published(name).rows) for name in results.tables())
    assert {row["verdict"].split(" (")[0] for row in rows} <= set(results.VERDICTS)
    ours = next(row for row in rows if row["ours_gap_n"] not in ("", "1"))
    numbers = [f"{what}_{part}" for what in NUMBERS for part in ("mean", "half", "n")]
    assert all(np.isfinite(float(ours[key])) for key in ("printed", "printed_gap", *numbers))
    assert ours["profile"] in ("reduced", "narrow", "paper")
    assert "| table" in cnlib("report", "--table", "french_table_2", "--format", "markdown")


def test_data_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    arrays = {f"{s}_{k}": v for s in ("train", "test") for k, v in (("images", images), ("labels", labels))}
    data.write_folder(tmp_path / "mine", arrays, ("a", "b"))
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in cnlib("data", "list").splitlines()[1:]}
    assert listed["mine"] == listed["digits"] == "here" and listed["cifar10"] == "to be fetched"
    assert listed["daynight"] == "to be put there by hand"
    assert "4 + 4 images of 8x8x1" in cnlib("data", "fetch", "mine")
    assert "4 files as converted" in cnlib("data", "verify", "mine", "digits")
    with open(tmp_path / "mine" / "test_labels.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert "changed since conversion" in cnlib("data", "verify", "mine", code=1)
    text = cnlib("data", "fetch", "nonsense", "digits", code=1)
    assert "no data set 'nonsense'" in text and "digits: 1,4" in text
    text = cnlib("data", "verify", "nonsense", "../..", "digits", code=1)
    assert "nonsense does not exist" in text and "plain folder name" in text and "digits: part of" in text
    monkeypatch.setenv("CNLIB_DATA", __file__)
    for command in (["list"], ["fetch", "cifar10"], ["verify", "cifar10"]):
        assert "expected a folder" in cnlib("data", *command, code=2 if command == ["list"] else 1)


@pytest.mark.parametrize(
    "given, passed",
    [
        ("", ""),
        ("all", "--only all"),
        ("train", "--only train"),
        ("--budget 0.01", "--budget 0.01"),
        ("train --repeats 1 --device cuda", "--only train --repeats 1 --device cuda"),
    ],
)
def test_bench_passes_its_options_on(given, passed, monkeypatch):
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command) or done)
    cnlib("bench", *given.split())
    assert commands == [[sys.executable, "-m", "studies", *passed.split()]]


def test_bench_runs_in_the_repository_only(tmp_path, monkeypatch):
    import cnlib as package

    monkeypatch.setattr(package, "__file__", str(tmp_path / "cnlib" / "__init__.py"))
    assert "in the repository" in cnlib("bench", "train", code=2)
    assert Path(cli.__file__).parents[1].joinpath("studies").is_dir()
