"""The safetensors format as written and read here, beside the library of that name."""

import json

import pytest
import torch
from safetensors.torch import load, save

from fastlora import AdapterError
from fastlora.adapter_files import layout
from fastlora.adapter_files.layout import Entry, Header, parse_header, serialized, tensor_from

TENSORS = {
    "é.lora_A": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 1, 3).bfloat16(),
    "double": torch.randn(3).double(),
    "whole": torch.tensor([[-1, 2**62]]),
    "byte": torch.tensor([1, 2, 255], dtype=torch.uint8),
    "truth": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 4),
    "number": torch.tensor(3.5),
    "strided": torch.randn(4, 6).t()[::2],
}


def parsed(content):
    size = int.from_bytes(content[:8], "little")
    return parse_header(content[8 : 8 + size], len(content) - 8 - size)


def test_the_library_reads_what_is_written_and_writes_what_is_read():
    theirs = load(serialized(TENSORS, {"note": "here"}))
    assert theirs.keys() == TENSORS.keys()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in TENSORS.items())
    content = save({key: tensor.contiguous() for key, tensor in TENSORS.items()}, {"note": "here"})
    metadata, entries = parsed(content)
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata == {"note": "here"}
    for key, tensor in TENSORS.items():
        header, begin, end = entries[key]
        assert torch.equal(tensor_from(bytearray(body[begin:end]), header), tensor)


def test_each_tensor_begins_where_its_dtype_may_begin():
    content = serialized(TENSORS, {})
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0
    for header, begin, _ in parsed(content)[1].values():
        assert begin % header.dtype.itemsize == 0


def test_a_machine_of_the_other_byte_order_writes_the_same_numbers(monkeypatch):
    here = {"x": torch.tensor([1.0, 2.0]), "b": torch.tensor([1, 2], dtype=torch.uint8)}
    swapped = {
        "x": torch.tensor([1.0, 2.0]).view(torch.uint8).view(2, 4).flip(1).flatten().view(torch.float32)
    }
    monkeypatch.setattr(layout.sys, "byteorder", "big")
    content = serialized({**here, **swapped}, {})
    monkeypatch.undo()
    assert content == serialized(here, {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: header["a"].update(data_offsets=[0, 12]),
        lambda header: header["a"].update(data_offsets=[4, 20]),
        lambda header: header["a"].update(shape=[2, -2]),
        lambda header: header["a"].update(shape=[True, 4]),
        lambda header: header["a"].update(shape=[1] * 40 + [4]),
        lambda header: header["a"].update(shape=2**70),
        lambda header: header["a"].update(extra=1),
        lambda header: header.update(b=header["a"]),
        lambda header: header.update(a=[]),
        lambda header: header.update(__metadata__={"x": 1}),
        lambda header: header.update(__metadata__=[1]),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(damage):
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    assert parse_header(json.dumps(header).encode(), 16)[1] == {
        "a": Entry(Header((2, 2), torch.float32), 0, 16)
    }
    damage(header)
    with pytest.raises(AdapterError, match="must be a whole safetensors file"):
        parse_header(json.dumps(header).encode(), 16)


def test_a_key_that_stands_twice_is_refused():
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    with pytest.raises(AdapterError, match="it has a key twice"):
        parse_header(f"{{{entry}, {entry}}}".encode(), 4)


def test_a_dtype_that_could_not_be_loaded_is_not_written():
    with pytest.raises(AdapterError, match=r"c must be of F16, .* to be saved; it is torch.complex64"):
        serialized({"c": torch.zeros(2, dtype=torch.complex64)}, {})
