"""Recorded benchmarks."""

import pytest

from cnlib import results
from cnlib.results import benchmarks
from cnlib.training.records import write_lines


@pytest.mark.parametrize(("machine", "part"), [(m, p) for m, parts in results.machines().items() for p in parts])
def test_every_record_in_the_package_says_where_it_comes_from(machine, part):
    rows = results.measured(part, machine)
    assert rows and all({"commit", "torch", "device", "threads"} <= set(row["provenance"]) for row in rows)
    assert "dirty" not in str(rows[0]["provenance"]["commit"])
    text = (benchmarks.BENCHMARKS / f"{machine}-{part}.jsonl").read_text(encoding="utf-8")
    assert "/work" not in text and "/home" not in text and "/tmp" not in text


def test_every_part_is_recorded_on_two_cores():
    assert set(results.machines()["cpu-x86_64-2-threads"]) == set(benchmarks.PARTS)


def test_rows_carry_the_provenance_and_unknown_parts_and_machines_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tmp_path)
    write_lines(
        tmp_path / "gpu-a-train.jsonl", [{"type": "header", "provenance": {"threads": 1}}, {"type": "train", "x": 2}]
    )
    assert results.machines() == {"gpu-a": ["train"]}
    assert results.measured("train", "gpu-a") == [{"x": 2, "provenance": {"threads": 1}}]
    with pytest.raises(ValueError, match="recorded: gpu-a: train.*--only cost --record"):
        results.measured("cost", "gpu-a")
    with pytest.raises(ValueError, match="no benchmark 'speed': there are layers"):
        results.measured("speed")
