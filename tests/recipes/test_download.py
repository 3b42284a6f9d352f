"""Fetching the full set, with torchvision played by a stand-in."""

import shutil
import sys
import types

import pytest

from fastlora.recipes.digits import SAMPLE, is_folder_of_digits
from fastlora.recipes.mnist.download import DownloadError, download
from fastlora.recipes.mnist.job import read_digits
from fastlora.recipes.mnist.options import MnistOptions


def torchvision(monkeypatch, fetch):
    """Make `torchvision.datasets.MNIST` be `fetch`."""
    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = fetch
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def fetch_sample(root, download):
    assert download
    shutil.copytree(SAMPLE, f"{root}/MNIST/raw")


@pytest.mark.parametrize("data", [None, "elsewhere"])
def test_the_set_is_fetched_into_the_folder_and_read_from_there(monkeypatch, tmp_path, data):
    torchvision(monkeypatch, fetch_sample)
    folder = None if data is None else tmp_path / data
    digits = read_digits(MnistOptions(download=True, data=folder, out=tmp_path / "out"))
    assert is_folder_of_digits(folder or tmp_path / "out" / "data")
    assert len(digits.train.labels) == 4000


def test_files_that_are_there_need_no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    download(SAMPLE)


def test_without_torchvision_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DownloadError, match=r"pip install torchvision. Or put .* give it as --data$"):
        download(tmp_path)


def test_a_torchvision_for_another_torch_is_told_apart_from_none(monkeypatch, tmp_path):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DownloadError, match=r"torchvision::nms does not exist.*build for torch"):
        download(tmp_path)


def test_a_failed_download_is_reported(monkeypatch, tmp_path):
    def fail(root, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    torchvision(monkeypatch, fail)
    with pytest.raises(DownloadError, match=r"could not fetch MNIST into .*: Error downloading"):
        download(tmp_path)
