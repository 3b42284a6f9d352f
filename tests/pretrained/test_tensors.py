"""The adapter file: what is written, how, and what is refused on reading."""

import json
import os
import struct
import sys

import pytest
import torch
from fastlora.adapter_file import AdapterError, Options, open_adapter_file, write_adapter_file
from safetensors.torch import load_file, save_file

OPTIONS = {"r": 2, "alpha": 3.0, "rslora": True, "dropout": 0.1, "init": "kaiming"}
KEY_A, KEY_B = "base_model.model.fc.lora_A.weight", "base_model.model.fc.lora_B.weight"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


def write(path, **tensors):
    A, B = tensors.get("A", torch.randn(2, 6)), tensors.get("B", torch.randn(5, 2))
    write_adapter_file(path, {"fc": (Options(**OPTIONS), A, B)})
    return A, B


def rewrite(path, *, tensors=None, layers=None, metadata=None):
    """A sound file with something else in it."""
    described = {"version": 1, "layers": {"fc": OPTIONS} if layers is None else layers}
    content = {KEY_A: torch.randn(2, 6), KEY_B: torch.randn(5, 2), **(tensors or {})}
    content = {key: tensor for key, tensor in content.items() if tensor is not None}
    save_file(content, path, {"fastlora": json.dumps(described)} if metadata is None else metadata)


def read(path):
    with open_adapter_file(path) as file:
        return {
            name: file.read(name, torch.device("cpu"), header.dtype) for name, header in file.headers.items()
        }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_written_is_read(path, dtype):
    A, B = write(path, A=torch.randn(2, 6, dtype=dtype), B=torch.randn(5, 2, dtype=dtype))
    with open_adapter_file(path) as file:
        header = file.headers["fc"]
        assert header == (Options(**OPTIONS), 6, 5, dtype)
        for found, expected in zip(file.read("fc", torch.device("cpu"), dtype), (A, B), strict=True):
            assert torch.equal(found, expected)


def test_tensors_and_metadata_are_named_as_peft_and_the_hub_name_them(path):
    write(path)
    assert sorted(load_file(path)) == [KEY_A, KEY_B]
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "pt"
    assert json.loads(metadata["fastlora"]) == {"version": 1, "layers": {"fc": OPTIONS}}


def test_strided_tensors_are_written_whole(path):
    A, B = write(path, A=torch.randn(6, 2).t(), B=torch.randn(5, 1).expand(5, 2))
    found = read(path)["fc"]
    assert torch.equal(found[0], A)
    assert torch.equal(found[1], B)


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
        monkeypatch.setattr(type(path), "open", fail)
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
    with pytest.raises(AdapterError, match=r"lora_B\.weight must be finite"):
        write(path, B=torch.full((5, 2), value))
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


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {KEY_A: torch.zeros(3, 6)},
            r"A and B of 'fc' must be \[2, K\] and \[N, 2\]; got \[3, 6\], \[5, 2\]",
        ),
        ({KEY_B: torch.zeros(2, 5)}, r"must be \[2, K\] and \[N, 2\]; got \[2, 6\], \[2, 5\]"),
        ({KEY_A: torch.zeros(12)}, r"got \[12\], \[5, 2\]"),
        ({KEY_A: torch.zeros(2, 6).half()}, r"must have one dtype of F16, BF16, F32, F64; got F16, F32"),
        (
            {KEY_A: torch.zeros(2, 6).int(), KEY_B: torch.zeros(5, 2).int()},
            r"must have one dtype of .*; got I32, I32",
        ),
        ({KEY_B: None}, r"lora_B.weight is missing"),
        ({KEY_A: None, KEY_B: None, "w": torch.zeros(1)}, r"lora_A.weight \(and 1 more\) is missing"),
        ({"base_model.model.fc2.lora_A.weight": torch.zeros(1)}, r"fc2.lora_A.weight is not described"),
    ],
)
def test_tensors_that_do_not_fit_the_description_are_refused(path, tensors, message):
    rewrite(path, tensors=tensors)
    with pytest.raises(AdapterError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", 0, "r must be an int >= 1; got 0"),
        ("r", "2", "r must be an int >= 1; got '2'"),
        ("r", None, "r must be an int >= 1; got None"),
        ("alpha", float("nan"), "alpha must be a finite number"),
        ("alpha", None, "alpha must be a finite number; got None"),
        ("alpha", 10**400, "alpha must be a finite number"),
        ("rslora", 1, "rslora must be True or False; got 1"),
        ("dropout", 1.5, "dropout must be a probability"),
        ("init", "zeros", "init must be one of"),
        ("surprise", 1, "unexpected keyword argument 'surprise'"),
    ],
)
def test_an_unsound_option_is_refused(path, key, value, message):
    rewrite(path, layers={"fc": {**OPTIONS, key: value}})
    with pytest.raises(AdapterError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSONDecodeError"),
        ("[[", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("null", "TypeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'version'"),
        ('{"version": 2}', "must be of version 1; its version is 2"),
        ('{"version": 1}', "KeyError: 'layers'"),
        ('{"version": 1, "layers": []}', "AttributeError"),
        ('{"version": 1, "layers": {}}', "must describe at least one layer"),
        ('{"version": 1, "layers": {"fc": 5}}', "TypeError"),
        ('{"version": 1, "layers": {"fc": {"r": 2}}}', "missing 4 required"),
    ],
)
def test_an_unsound_description_is_refused(path, text, message):
    rewrite(path, metadata={"fastlora": text})
    with pytest.raises(AdapterError, match=message):
        read(path)


def test_a_file_of_another_program_is_refused(path):
    rewrite(path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="must be an adapter that save_adapter wrote"):
        read(path)


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, torch.float32), (1e30, torch.float16)])
def test_values_that_are_not_finite_are_not_read_even_after_conversion(path, value, dtype):
    rewrite(path, tensors={KEY_B: torch.full((5, 2), value)})
    with (
        open_adapter_file(path) as file,
        pytest.raises(AdapterError, match=rf"B of 'fc' must be finite in {dtype}"),
    ):
        file.read("fc", torch.device("cpu"), dtype)


def test_a_missing_file_and_a_directory_are_the_systems_own_errors(path):
    with pytest.raises(FileNotFoundError):
        read(path)
    with pytest.raises(IsADirectoryError):
        read(path.parent)


@pytest.mark.parametrize("module", ["safetensors", "numpy"])
def test_without_safetensors_the_error_names_the_extra(path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "safetensors":
        monkeypatch.delitem(sys.modules, "safetensors.torch")
    for use in (write, read):
        with pytest.raises(ImportError, match=rf'need {module}.*pip install "fastlora-triton\[adapters\]"'):
            use(path)
