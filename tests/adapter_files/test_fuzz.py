"""Adapters from strangers: whatever the files hold, loading works as a whole or changes nothing."""

import copy
import json
import math
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlora import (
    AdapterError,
    LoRAConfig,
    apply_lora,
    hot_swap,
    load_pretrained,
    lora_layers,
    save_pretrained,
)
from fastlora.model.modules_to_save import saved_modules
from tests.models import Block, with_update

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OPTIONS = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm"]}
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


# Here the config is what is changed.
pytestmark = pytest.mark.filterwarnings("ignore:.*adapter_config.json was changed after it was saved")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A directory that loads."""
    directory = tmp_path_factory.mktemp("sound")
    save_pretrained(
        with_update(apply_lora(Block(), LoRAConfig(**OPTIONS, rank_pattern={"v_proj": 3}))), directory
    )
    return directory


@pytest.fixture
def copied(sound, tmp_path):
    """A function that gives a fresh copy of it."""

    def fresh():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(sound, tmp_path / "copy")

    return fresh


def plain():
    return Block()


def adapted():
    return with_update(apply_lora(Block(), LoRAConfig(**OPTIONS, rank_pattern={"v_proj": 3})))


def snapshot(model):
    """All that a refused file must leave as it was."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    options = [(layer.r, layer.alpha, layer.rslora, layer.adapter) for _, layer in lora_layers(model)]
    trained = [(id(p), p.requires_grad) for p in model.parameters()]
    return tensors, (modules, options, trained, [name for name, _ in saved_modules(model)])


def loads_or_leaves(directory, load=load_pretrained):
    """Load into a plain and into an adapted model; whether each was. Any error but ours fails."""
    loaded = []
    for make in (plain, adapted):
        model = make()
        tensors, before = snapshot(model)
        try:
            load(model, directory)
        except AdapterError:
            now, after = snapshot(model)
            assert after == before
            assert now.keys() == tensors.keys()
            assert all(torch.equal(value, now[name]) for name, value in tensors.items())
            loaded.append(False)
        else:
            assert all(value.isfinite().all() for value in model.state_dict().values())
            assert model(torch.randn(2, 4)).shape == (2, 4)
            loaded.append(True)
    return loaded


def header_of(whole):
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def packed(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_the_sound_directory_loads(copied):
    assert loads_or_leaves(copied()) == [True, True]


@pytest.mark.exhaustive
@FUZZ
@given(data=st.data())
def test_bytes_changed_anywhere_in_either_file(copied, data):
    directory = copied()
    path = directory / data.draw(st.sampled_from([CONFIG, TENSORS]))
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(whole) - 1))
        whole[where] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    path.write_bytes(whole)
    loads_or_leaves(directory)


HUGE = st.sampled_from([0, 1, 2, 3, 5, 2**31, 2**40, 2**63, -1, "4", None, 2.0])
NAMES = st.sampled_from(
    [
        "../../etc/passwd",
        "/etc/passwd",
        "base_model.model.",
        "base_model.model..lora_A.weight",
        "base_model.model.../../x.lora_A.weight",
        "base_model.model.attn.lora_A.weight",
        "base_model.model.__class__.lora_A.weight",
        "base_model.model.attn.q_proj.weight",
        "base_model.model.norm",
        "base_model.model.norm.weight.lora_A.weight",
        "base_model.model.attn.q_proj.lora_A.default.weight",
        "lora_A.weight",
        "\u0000",
        "a" * 10_000,
        "",
    ]
)


@FUZZ
@given(data=st.data())
def test_headers_with_other_shapes_dtypes_offsets_and_names(copied, data):
    directory = copied()
    header, body = header_of((directory / TENSORS).read_bytes())
    keys = sorted(set(header) - {"__metadata__"})
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True)):
        kind = data.draw(st.sampled_from(["shape", "dtype", "offsets", "name", "remove", "double"]))
        entry = header[key]
        if kind == "shape":
            entry["shape"] = data.draw(st.lists(HUGE, max_size=4))
        elif kind == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(["F64", "F16", "I32", "BOOL", "F8_E4M3", "C64", "X"]))
        elif kind == "offsets":
            entry["data_offsets"] = data.draw(st.lists(HUGE, min_size=2, max_size=2))
        elif kind == "name":
            header[data.draw(NAMES)] = header.pop(key)
        elif kind == "remove":
            del header[key]
        else:
            header[key + ".again"] = entry
    (directory / TENSORS).write_bytes(packed(header, body))
    loads_or_leaves(directory)


@FUZZ
@given(key_index=st.integers(0, 100), value=st.sampled_from([math.nan, math.inf, -math.inf]), data=st.data())
def test_a_single_value_that_is_not_finite_is_refused(copied, key_index, value, data):
    directory = copied()
    header, body = header_of((directory / TENSORS).read_bytes())
    keys = sorted(set(header) - {"__metadata__"})
    begin, end = header[keys[key_index % len(keys)]]["data_offsets"]
    where = begin + 4 * data.draw(st.integers(0, (end - begin) // 4 - 1))
    changed = body[:where] + struct.pack("<f", value) + body[where + 4 :]
    (directory / TENSORS).write_bytes(packed(header, changed))
    assert loads_or_leaves(directory) == [False, False]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "LORA", "all", "q_proj", "(a+)+", "[", "../..", "norm", "gaussian"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["q_proj", "(", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        *(
            "r",
            "lora_alpha",
            "lora_dropout",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
        ),
        *(
            "init_lora_weights",
            "peft_type",
            "bias",
            "target_modules",
            "use_dora",
            "unheard_of",
            "auto_mapping",
        ),
    ]
)


@FUZZ
@given(changes=st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_configs_with_other_values(copied, changes):
    directory = copied()
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))
    loads_or_leaves(directory)


@FUZZ
@given(text=JSON.map(json.dumps) | st.text(max_size=50))
def test_configs_that_are_something_else(copied, text):
    directory = copied()
    (directory / CONFIG).write_text(text, encoding="utf-8", errors="replace")
    assert loads_or_leaves(directory) == [False, False]


@FUZZ
@given(length=st.integers(0, 2_000))
def test_a_hot_swap_of_a_truncated_file_changes_nothing(copied, length):
    directory = copied()
    path = directory / TENSORS
    whole = path.read_bytes()
    path.write_bytes(whole[: min(length, len(whole) - 1)])
    model = adapted()
    tensors, before = snapshot(model)
    with pytest.raises(AdapterError):
        hot_swap(model, directory)
    now, after = snapshot(model)
    assert after == before
    assert all(torch.equal(value, now[name]) for name, value in tensors.items())


def test_a_header_that_promises_terabytes_allocates_nothing(copied):
    directory = copied()
    header, body = header_of((directory / TENSORS).read_bytes())
    entry = header["base_model.model.attn.q_proj.lora_A.weight"]
    entry["shape"] = [2, 2**40]
    entry["data_offsets"] = [0, 2**43]
    (directory / TENSORS).write_bytes(packed(header, body))
    assert loads_or_leaves(directory) == [False, False]


def test_a_whole_file_of_other_shapes_is_refused_before_any_tensor_is_read(copied, monkeypatch):
    directory = copied()
    model = Block()
    model.attn["q_proj"] = torch.nn.Linear(4, 5)

    def fail(*args):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("fastlora.adapter_files.tensors.TensorFile.read", fail)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        AdapterError, match=r"'attn.q_proj' must have \[N, K\] = \[5, 4\]; the file has \[4, 4\]"
    ):
        load_pretrained(model, directory)
    assert model.state_dict().keys() == before.keys()
