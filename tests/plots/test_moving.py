"""Figures with a slider: all frames in the page, one of them shown, and a slider that can be read aloud."""

import base64
import re
import struct

import pytest

from cnlib import plots


def drawn(values, width=3.0):
    figures = {}
    for value in values:
        figures[value], ax = plots.figure(1, 1, width=width, height=2)
        ax.plot([0, float(value)])
        ax.set_title(10 * value)
    return figures


def test_one_frame_is_shown_and_all_are_there():
    page = plots.frames("rate <1", drawn(("0.1", "1", "2.5")), start=1).data
    images = re.findall(r"<img [^>]+>", page)
    assert len(images) == 3 and ["hidden" in image for image in images] == [True, False, True]
    pngs = [base64.b64decode(re.search(r'base64,([^"]+)"', image).group(1)) for image in images]
    assert len(set(pngs)) == 3
    # of one size, or the page would jump
    assert len({png[16:24] for png in pngs}) == 1
    width, height = struct.unpack(">II", pngs[0][16:24])
    assert all(f'width="{width}" height="{height}"' in image for image in images)
    assert all(image.count("data:image/png;base64,") == 1 for image in images)
    assert 'alt="rate &lt;1: 2.5"' in images[2] and 'data-value="2.5"' in images[2]
    slider = re.search(r"<input [^>]+>", page).group()
    assert all(part in slider for part in ('max="2"', 'value="1"', 'aria-valuetext="1"'))
    # a label around the slider names it, and what it says stands beside it
    (room,) = re.findall(r"<label>rate &lt;1 <input [^>]+> <output style=\"([^\"]+)\">1</output></label>", page)
    # that of the longest text
    assert "min-width: 3ch" in room
    assert "http" not in page and "<script" not in page


@pytest.mark.parametrize(("values", "start"), [(("1",), 0), (("1", "2"), 2), (("1", "2"), -1)])
def test_no_frame_to_move_to(values, start):
    with pytest.raises(ValueError, match=r"two figures or more.*got \d figures"):
        plots.frames("x", drawn(values), start)


def test_frames_have_one_size():
    with pytest.raises(ValueError, match="of 2 sizes"):
        plots.frames("x", drawn(("1", "2")) | drawn(("3",), width=4))
