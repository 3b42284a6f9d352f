"""The picture is drawn, whatever the counts are; how it looks, people judge."""

import struct

import pytest

from fastlora.recipes.mnist.picture import draw_picture


@pytest.mark.parametrize(
    ("on", "off", "losses"),
    [
        ([100] * 10, [3] * 10, [1.0, 0.1]),
        ([0] * 10, [0] * 10, [0.0]),
        ([12, 0, 980, 1010, 5, 6, 7, 8, 9, 0], None, [2.5] * 300),
    ],
)
def test_a_png_of_1800_by_720_is_written(tmp_path, on, off, losses):
    draw_picture(tmp_path / "mnist.png", [3] * 10, on, off, 9, losses)
    content = (tmp_path / "mnist.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1800, 720)
