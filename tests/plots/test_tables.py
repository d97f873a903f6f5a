"""Tables as HTML."""

import pytest

from cnlib import plots

pd = pytest.importorskip("pandas")
pytest.importorskip("IPython")


def test_tables_are_html_and_keep_an_interval_on_one_line():
    found = plots.table(["method", "accuracy"], [["BN & co", "59.5 ± 2.8 %"]]).data
    assert "<th>accuracy</th>" in found and "59.5\u00a0±\u00a02.8\u00a0%" in found and "BN\u00a0&amp;\u00a0co" in found
    # the box is within the keyboard's reach
    assert 'tabindex="0"' in found


def test_a_data_frame_and_its_heading_and_rows_are_one_table():
    head, rows = ["", "seeds", ""], [["BN", 3, None], ["CN", 5, "+0.1 ± 0.2"]]
    frame = pd.DataFrame(rows, columns=head, index=["not", "shown"])
    assert plots.table(frame).data == plots.table(head, rows).data
    assert "<td>3</td>" in plots.table(frame).data and "None" not in plots.table(frame).data


def test_missing_numbers_are_empty_and_long_entries_whole():
    sentence = "a sentence of more than forty characters, which is " + "very " * 20 + "long"
    found = plots.table(pd.DataFrame({"number": [1.5, float("nan")], "any": [pd.NA, 1], "text": ["", sentence]})).data
    assert "<td>1.5</td>" in found and "nan" not in found.lower() and "NA" not in found and sentence in found


def test_two_headings_or_none_are_refused():
    with pytest.raises(TypeError, match="a data frame, or a heading and rows"):
        plots.table(["method"])
    with pytest.raises(TypeError, match="got DataFrame and rows"):
        plots.table(pd.DataFrame({"method": ["BN"]}), [["CN"]])
