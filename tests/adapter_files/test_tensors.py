"""The tensor file: written whole or not at all, and read with suspicion."""

import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastlora import AdapterError
from fastlora.adapter_files.drafts import write_together
from fastlora.adapter_files.layout import Header, serialized
from fastlora.adapter_files.tensors import open_tensors

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


def write(path, **tensors):
    tensors = tensors or {"A": torch.randn(2, 6), "B": torch.randn(5, 2)}
    write_together([(path, serialized(tensors, {"note": "here"}))])
    return tensors


def read(path):
    with open_tensors(path) as file:
        return {key: file.read(key, CPU, header.dtype) for key, header in file.headers.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_what_is_written_is_read(path, dtype):
    A = write(path, A=torch.randn(2, 6).mul(9).to(dtype))["A"]
    with open_tensors(path) as file:
        assert file.headers == {"A": Header((2, 6), dtype)}
        assert file.metadata == {"format": "pt", "note": "here"}
        assert torch.equal(file.read("A", CPU, dtype), A)


def test_strided_and_shared_tensors_are_written_whole(path):
    base = torch.randn(6, 2)
    written = write(path, A=base.t(), B=torch.randn(5, 1).expand(5, 2), same=base)
    found = load_file(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in written.items())


def test_the_file_has_the_permissions_of_any_new_file(path):
    other = path.with_name("other")
    other.touch()
    write(path)
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch, failing):
    write(path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif failing == "replace":
        monkeypatch.setattr(type(path), "replace", fail)
    else:
        monkeypatch.setattr(os, "fdopen", fail)
    with pytest.raises(OSError, match="no space left"):
        write(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writing_where_no_file_can_be_names_the_path(tmp_path):
    with pytest.raises(IsADirectoryError, match="path must be a file"):
        write(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must lie in an existing directory"):
        write(tmp_path / "nowhere" / "adapter.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_not_written(path, value):
    with pytest.raises(AdapterError, match=r"^B must be finite to be saved"):
        write(path, A=torch.zeros(2), B=torch.full((5, 2), value))
    assert not path.exists()


def test_every_truncation_is_refused(path):
    write(path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterError, match=r"adapter.safetensors: must be a whole safetensors file"):
            read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole + b"\0",
        lambda whole: struct.pack("<Q", 1 << 60) + whole[8:],
        lambda whole: whole[:8] + b"X" + whole[9:],
        lambda whole: b"PK\x03\x04" + bytes(300),
        lambda whole: b"\x80\x04" + whole,
        lambda whole: b"{}" * 100,
    ],
    ids=["longer", "huge header", "header not JSON", "zip", "pickle", "text"],
)
def test_a_damaged_or_foreign_file_is_refused(path, damage):
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AdapterError, match="must be a whole safetensors file"):
        read(path)


def test_a_dtype_that_nothing_here_has_is_refused(path):
    save_file({"A": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(AdapterError, match=r"A must be of F16, .*; it is of F8_E4M3"):
        read(path)


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, torch.float32), (1e30, torch.float16)])
def test_values_that_are_not_finite_are_not_read_even_after_conversion(path, value, dtype):
    save_file({"B": torch.full((5, 2), value)}, path)
    with (
        pytest.raises(AdapterError, match=rf"adapter.safetensors: B must be finite in {dtype}"),
        open_tensors(path) as file,
    ):
        file.read("B", CPU, dtype)


def test_a_missing_file_and_a_directory_are_the_systems_own_errors(path):
    with pytest.raises(FileNotFoundError):
        read(path)
    with pytest.raises(IsADirectoryError):
        read(path.parent)
