"""Guesses are of one network, at the pictures that it was not trained on."""

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cnlib.data.digits import digits_at_16
from cnlib.training.records import read_lines, unpack
from studies import guesses


@pytest.mark.parametrize("side", ["right", "left"])
def test_guesses_are_made_written_and_scored(tmp_path, capsys, side):
    guesses.ship("digits-16", side, epochs=2, out=tmp_path)
    (kept,) = read_lines(tmp_path / f"digits-16-{side}.jsonl")
    data = digits_at_16()
    train, test = unpack(kept["train"]), unpack(kept["test"])
    assert len(train) == len(data.train_labels[::2]) and len(test) == len(data.test_labels)
    assert kept["right"]["train"] == np.mean(train == data.train_labels[::2])
    assert kept["right"]["test"] == np.mean(test == data.test_labels) > 0.15
    assert kept["data"] == data.checksum and kept["config"]["epochs"] == 2
    assert f"right on {kept['right']['train']:.1%} of {len(train)} training" in capsys.readouterr().out


def test_a_set_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(typer.BadParameter, match="no data set 'nonsense'"):
        guesses.ship("nonsense", out=tmp_path)
    with pytest.raises(typer.BadParameter, match="'top': expected left or right"):
        guesses.ship("digits", "top", out=tmp_path)
    with pytest.raises(typer.BadParameter, match="an image of at least 8 pixels"):
        guesses.ship("digits", out=tmp_path)  # halves of 8 pixels
    with pytest.raises(typer.BadParameter, match="epochs"):
        guesses.ship("digits-16", epochs=0, out=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_a_file_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(guesses.ship)
    monkeypatch.setattr("cnlib.data.load", lambda name: pytest.fail("data were asked for"))
    found = CliRunner().invoke(app, ["--out", str(tmp_path / "file")])
    assert found.exit_code == 2 and "is a file: expected" in " ".join(found.output.replace("│", "").split())
