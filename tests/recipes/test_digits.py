"""The shipped digits, and sets in folders."""

import gzip
import hashlib
import re
import shutil

import pytest
import torch

from fastlora.recipes.digits import SAMPLE, DigitsError, is_folder_of_digits, read_folder

FILES = sorted(path.name for path in SAMPLE.glob("*.gz"))


@pytest.fixture
def folder(tmp_path):
    """A set of digits, plain, that a test may break."""
    for name in FILES:
        (tmp_path / name.removesuffix(".gz")).write_bytes(gzip.decompress((SAMPLE / name).read_bytes()))
    return tmp_path


def test_there_are_400_of_each_to_train_on_and_100_to_test_on(digits):
    assert torch.bincount(digits.train.labels).tolist() == [400] * 10
    assert torch.bincount(digits.test.labels).tolist() == [100] * 10
    assert digits.train.images.shape == (4000, 28, 28)
    assert digits.test.images.shape == (1000, 28, 28)


def test_no_test_digit_is_among_those_to_train_on(digits):
    seen = {bytes(image.flatten().tolist()) for image in digits.train.images}
    assert not any(bytes(image.flatten().tolist()) in seen for image in digits.test.images)


def test_the_ink_is_where_digits_have_it(digits):
    ink = digits.train.images.double().mean(0) / 255
    assert ink[10:18, 10:18].mean() > 0.3
    assert ink[[0, -1]].max() < 0.01
    ones = digits.train.only(1).images.double().mean(0)
    assert ones.amax(1)[6:22].min() > ones.amax(0)[:6].max()  # taller than wide: rows are rows


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 1_200_000


def test_the_files_are_those_of_the_provenance():
    listed = dict(
        re.findall(r"\| (\S+) \| [\d,]+ \| ([0-9a-f]{64}) \|", (SAMPLE / "PROVENANCE.md").read_text())
    )
    for name in FILES:
        content = (SAMPLE / name).read_bytes()
        assert listed[name] == hashlib.sha256(content).hexdigest()
        assert listed[name.removesuffix(".gz")] == hashlib.sha256(gzip.decompress(content)).hexdigest()


def test_rows_are_normalized_as_mnist_is(digits):
    x, labels = digits.test.rows(torch.device("cpu"), torch.float64)
    assert x.shape == (1000, 784)
    assert torch.equal(labels, digits.test.labels)
    torch.testing.assert_close(x * 0.3081 + 0.1307, digits.test.images.flatten(1).double() / 255)


def test_only_keeps_the_images_of_a_digit_with_its_label(digits):
    sevens = digits.test.only(7)
    assert sevens.labels.tolist() == [7] * 100
    assert torch.equal(sevens.images, digits.test.images[digits.test.labels == 7])


@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_is_read_plain_or_gzipped_directly_or_as_torchvision_lays_it_out(
    digits, tmp_path, inner, suffix
):
    place = tmp_path / inner
    place.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = (SAMPLE / name).read_bytes()
        path = place / (name if suffix else name.removesuffix(".gz"))
        path.write_bytes(content if suffix else gzip.decompress(content))
    assert is_folder_of_digits(tmp_path)
    read = read_folder(tmp_path)
    for mine, shipped in zip((*read.train, *read.test), (*digits.train, *digits.test), strict=True):
        assert torch.equal(mine, shipped)


def test_a_missing_file_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert not is_folder_of_digits(folder)
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1-ubyte$"):
        read_folder(folder)


def test_a_file_missing_from_torchvisions_layout_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "new" / "MNIST" / "raw")
    (tmp_path / "new" / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: train-labels-idx1-ubyte$"):
        read_folder(tmp_path / "new")


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold MNIST's four IDX files"):
        read_folder(tmp_path / "nowhere")


def test_images_and_labels_must_count_the_same(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (999).to_bytes(4, "big") + bytes(999))
    with pytest.raises(DigitsError, match="1000 images and 999 labels"):
        read_folder(folder)


def test_a_label_above_nine_is_refused(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(DigitsError, match="labels must be 0 to 9; one is 10"):
        read_folder(folder)


def test_images_of_another_size_are_refused(folder):
    shape = b"".join(n.to_bytes(4, "big") for n in (4000, 14, 56))
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + shape + path.read_bytes()[16:])
    with pytest.raises(DigitsError, match=r"images must be 28 x 28; they are \[14, 56\]"):
        read_folder(folder)


def test_swapped_files_are_refused(folder):
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    images.rename(folder / "kept")
    labels.rename(images)
    (folder / "kept").rename(labels)
    with pytest.raises(DigitsError, match=r"must have 3 dimension\(s\); it has 1"):
        read_folder(folder)
