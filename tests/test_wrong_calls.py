"""Every command and option with values that nobody should give: an exit code, a sentence, no traceback, and an end."""

import signal
from contextlib import contextmanager

import pytest

pytest.importorskip("typer")
import typer
from typer.testing import CliRunner

import cnlib
from cnlib import cli
from studies import command

LIMIT = 60  # seconds for a call, on a busy machine: those that hung did so for good
RUN, SWEEP, DATA = ["run", "convnet", "--norm", "bn"], ["sweep", "table-1"], ["data"]
DRY = [*RUN, "--dry-run"]

NO_TEXT = ("", " ", "nonsense", "a b", "é", "\u2028", "x" * 5000, "\udcff", "../../x", "/", "-", "%s", "{0}", "[", "*")
NO_INT = ("", "abc", "1.5", "1e3", "nan", "inf", "-1", "1" * 5000, "0x10", "None")
NO_RATE = ("", "abc", "nan", "inf", "-inf", "-1", "1e999", "0x10", "1,5", "None")
NO_NUMBER = ("", "abc", "nan", "inf", "-inf", "-1", "1e999", "-1e999", "1,5", "None", "1" * 5000, "1j", "{}")
NO_TIME = ("", "soon", "8", "-8min", "8 min", "1e3s", "nan", "inf", "8min1h", "1min1min", "\u0668min s")
NO_FOLDER = ("", " ", __file__, f"{__file__}/x", "/dev/null", "/dev/null/x", "x" * 5000, "a\0b")
NO_DEVICE = ("", "abacus", "CPU", "cuda:99", "cuda:-1", "cuda:x", "cpu:x", "cpu:", "cuda:99999999999999999999", "meta")
HUGE = "1" + "0" * 30

OPTIONS = {
    "--method": NO_TEXT,
    "--norm": ("xn", "BN", "bn,mn"),
    "--dataset": (*NO_TEXT, "digits+", "+", "digits+nonsense", "digits+../x", "x" * 300 + "+digits"),
    "--lr": (*NO_RATE, "0", "1e300"),
    "--weight-decay": (*NO_RATE, "1e300"),
    "--placement": ("", ",", "conv3,", "conv3,conv3"),
    "--seed": (*NO_INT, HUGE),
    "--profile": NO_TEXT,
    "--threads": (*NO_INT, "0", "1025", "100000", HUGE),
    "--device": NO_DEVICE,
    "--out": NO_FOLDER,
    "--until": NO_TIME,
    "--set": (
        *(
            "",
            "=",
            "=3",
            "epochs",
            "nonsense=3",
            "depth=3",
            "lr 3",
            " epochs=3",
            "seed=3",
            "method=bn",
            "profile=paper",
        ),
        *(f"epochs={value}" for value in (*NO_NUMBER, "1.5", "0", HUGE, "True", "[1]", "'3'", "(" * 500 + ")" * 500)),
        *(f"num_contexts={value}" for value in (*NO_NUMBER, "1.5", "0", "1001", "100000", HUGE)),
        *(f"width={value}" for value in (*NO_NUMBER, "0", "17", "1e9", "True")),
        *(f"{key}={value}" for key in ("batch_size", "train_size", "test_size") for value in ("0", "-1", "x", HUGE)),
        *(f"{key}={value}" for key in ("crop", "warmup", "validation", "patience") for value in ("-1", "x", HUGE)),
        *(f"average={value}" for value in ("1", "-1", "nan", "x")),
        *(f"{key}=nonsense" for key in ("norm", "contexts", "optimizer", "schedule", "precision", "task", "model")),
        *(
            "flip=1",
            "compile=maybe",
            "norm=3",
            "contexts=one",
            "dataset=",
            "dataset=../x",
            "placement=",
            "placement=conv3,conv3",
        ),
        *("options=3", "options={[]: 1}", "options={'a': [1]}", "options={'lr': 1}", "options={1: 1}", "lr=1e999"),
    ),
}
GIVEN_TWICE = (["--lr", "1", "--set", "lr=2"], ["--set", "epochs=1", "--set", "epochs=2"], ["--seed", "1", "--seed"])

CALLS = [
    *(["nonsense"], ["--nonsense"], ["run"], ["sweep"], ["data", "fetch"], ["data", "verify"], ["data", "nonsense"]),
    *([*RUN, "extra"], [*RUN, "--nonsense"], [*SWEEP, "extra"], ["report", "extra"], ["data", "list", "extra"]),
    *(["run", text] for text in NO_TEXT),
    *([*RUN, option, value] for option, values in OPTIONS.items() for value in values),
    *([*DRY, option, values[-1]] for option, values in OPTIONS.items()),
    *([*RUN, option] for option in OPTIONS),
    *([*RUN, *twice] for twice in GIVEN_TWICE),
    ["run", "convnet", "--norm", "cn", "--set", "num_contexts=201"],
    *(["sweep", text] for text in NO_TEXT),
    *([*SWEEP, "--seeds", value] for value in (*NO_INT, "0", "101", "1000000000", HUGE)),
    *([*SWEEP, "--seeds", value, "--dry-run"] for value in ("0", "1000000000")),
    *([*SWEEP, "--only", value] for value in ("", "nothing*", "[", "[]", "[!", "*" * 2000 + "x", "x" * 5000)),
    *(
        [*SWEEP, option, value]
        for option in ("--profile", "--threads", "--device", "--out", "--until")
        for value in OPTIONS[option]
    ),
    *(["report", "--records", value] for value in (*NO_FOLDER, "nowhere", "/proc/nowhere", "{empty}", "{damaged}")),
    *(["report", "--table", text] for text in NO_TEXT),
    *(["report", "--format", value] for value in ("", "pdf", "CSV")),
    *(["data", command, text] for command in ("fetch", "verify") for text in NO_TEXT),
    *(["data", "fetch", name] for name in ("digits+digits", "digits+", "+", "a\0b", "nonsense+digits")),
    *(["data", "verify", name] for name in ("mnist+digits", "+", "a\0b")),
]


@contextmanager
def limit(seconds):
    def late(*_):
        raise TimeoutError(f"no end after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "x.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cnlib.data, "SOURCES", {})  # nothing is fetched, whatever is asked for
    return tmp_path


def refused(arguments, here, app=cli.app):
    before = sorted(here.rglob("*"))
    places = {f"{{{name}}}": str(here / name) for name in ("empty", "damaged")}
    with limit(LIMIT):
        done = CliRunner().invoke(app, [places.get(a, a) for a in arguments], env={"COLUMNS": "200"})
    assert isinstance(done.exception, SystemExit) and done.exit_code in (1, 2), (done.exit_code, done.exception)
    assert len(done.output.strip()) > 20 and "Traceback" not in done.output
    assert sorted(here.rglob("*")) == before, "something was written"
    return done.output


@pytest.mark.parametrize("arguments", CALLS, ids=lambda a: ascii(" ".join(a))[1:60])
def test_a_wrong_call_is_refused(arguments, here):
    refused(arguments, here)


@pytest.mark.parametrize("place", ["{file}", "{file}/x", "x" * 5000, "~nobody-of-that-name/x"])
@pytest.mark.parametrize("command", [["list"], ["fetch", "mnist"], ["verify", "mnist"], ["fetch", "mnist+digits"]])
def test_a_wrong_place_of_the_data(command, place, here, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", place.format(file=__file__))
    assert "CNLIB_DATA" in refused([*DATA, *command], here)


BENCH = {
    "--only": ("", "nonsense", "Layers", "layers,train"),
    "--budget": ("", "abc", "0", "-1", "nan", "inf", "1e999", "3601", "1e30"),
    "--repeats": (*NO_INT, "0", "1001", HUGE),
    "--device": (*NO_DEVICE, "mps"),
    "--record": ("extra",),
    "--nonsense": ("1",),
}


@pytest.mark.parametrize("arguments", [[option, value] for option, values in BENCH.items() for value in values])
def test_a_wrong_call_of_the_benchmarks(arguments, here):
    app = typer.Typer()
    app.command()(command.main)
    rest = [] if "--only" in arguments else ["--only", "layers"]
    refused([*rest, *arguments], here, app)
