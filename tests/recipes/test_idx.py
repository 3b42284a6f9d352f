"""IDX files, whole and broken."""

import gzip

import pytest
import torch

from fastlora.recipes.idx import DigitsError, read_idx


def idx(shape, content, kind=0x08):
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


SIX = idx([1, 2, 3], bytes([0, 1, 2, 253, 254, 255]))


@pytest.fixture
def written(tmp_path):
    """A function that writes a file and returns its path."""

    def write(content, name="images"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_a_whole_file_is_read_in_row_order(written, name):
    path = written(gzip.compress(SIX) if name.endswith(".gz") else SIX, name)
    assert read_idx(path, 3).equal(torch.tensor([[[0, 1, 2], [253, 254, 255]]], dtype=torch.uint8))


def test_what_is_read_may_be_written_to(written):
    read_idx(written(SIX), 3).add_(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends inside its header"),
        (SIX[:3], "ends inside its header"),
        (SIX[:10], "ends inside its header"),
        (b"\x1f\x8b" + SIX[2:], "must start with two zero bytes, as IDX files do; it starts with 1f8b"),
        (idx([1, 2, 3], bytes(24), kind=0x0D), "must hold unsigned bytes .* its type is 0x0d"),
        (idx([6], bytes(6)), r"must have 3 dimension\(s\); it has 1"),
        (SIX[:-1], r"the 6 bytes that its shape \[1, 2, 3\] asks for; got 5"),
        (SIX + b"\0", r"must end after the 6 bytes that its shape \[1, 2, 3\] asks for; it goes on"),
        (idx([0, 28, 28], b""), r"at least one element; its shape is \[0, 28, 28\]"),
        (idx([2**32 - 1] * 3, bytes(100)), "asks for; got 100"),
    ],
)
def test_a_broken_file_says_what_is_wrong(written, content, message):
    for path in (written(content), written(gzip.compress(content), "images.gz")):
        with pytest.raises(DigitsError, match=message) as error:
            read_idx(path, 3)
        assert str(error.value).startswith(f"{path}: must")


@pytest.mark.parametrize("size", [0, 5, 20, -9, -1])
def test_a_truncated_gzip_file_is_refused(written, size):
    path = written(gzip.compress(SIX)[:size], "images.gz")
    with pytest.raises(DigitsError, match=f"^{path}: must be"):
        read_idx(path, 3)


def test_a_gzip_file_with_a_damaged_checksum_is_refused(written):
    content = bytearray(gzip.compress(SIX))
    content[-8] ^= 1
    with pytest.raises(DigitsError, match="must be a whole gzip file; CRC check failed"):
        read_idx(written(content, "images.gz"), 3)


def test_a_gzip_file_with_damaged_content_is_refused(written):
    content = bytearray(gzip.compress(bytes(range(256)) * 9))
    content[12:20] = b"\xff" * 8
    with pytest.raises(DigitsError, match="must be a whole gzip file"):
        read_idx(written(content, "images.gz"), 3)


def test_a_plain_file_named_gz_is_refused(written):
    with pytest.raises(DigitsError, match="must be a whole gzip file; Not a gzipped file"):
        read_idx(written(SIX, "images.gz"), 3)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "images", 3)
