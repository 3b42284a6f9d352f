"""What cannot be saved, or loaded into a model, is refused, and changes nothing."""

import pytest
import torch
from torch import nn

from fastlora import (
    AdapterError,
    merge_lora,
    save_pretrained,
)
from fastlora.layer import new_adapter
from tests.adapter_files.stored import assert_unchanged, snapshot, twins
from tests.models import adapted, mlp


def narrow():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def short():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU())


def shared():
    linear = nn.Linear(6, 5)
    return nn.ModuleDict({"0": linear, "2": linear})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (narrow, r"'0' must have \[N, K\] = \[4, 6\]; the file has \[5, 6\]"),
        (short, r"its layers must be the model's; there is no '2'"),
        (
            lambda: nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(5, 3)),
            r"target '0' must be exactly an nn.Linear; got ReLU",
        ),
        (lambda: adapted(narrow()), r"'0' must have \[r, N, K\] = \[2, 4, 6\]; the file has \[2, 5, 6\]"),
        (lambda: adapted(mlp(), r=3), r"'0' must have \[r, N, K\] = \[3, 5, 6\]"),
        (lambda: adapted(mlp(), target_modules=["0"]), r"must hold the model's LoRA layers alone.*'2' too"),
        (lambda: adapted(nn.Sequential(*mlp(), nn.Linear(3, 3))), r"every LoRA layer.*it lacks '3'"),
        (shared, r"some are one shared module in this model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(store, make, message):
    store.save(twins()[0])
    model = make()
    before = snapshot(model)
    with pytest.raises(AdapterError, match=message):
        store.load(model)
    assert_unchanged(model, before)


def test_a_merged_model_is_not_loaded_into(store):
    model, _ = twins()
    store.save(model)
    merge_lora(model)
    before = snapshot(model)
    with pytest.raises(AdapterError, match=r"must be unmerged before loading; merged: '0', '2'"):
        store.load(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("onto", ["plain", "adapted"])
@pytest.mark.parametrize("length", [0, 9, 300, -1])
def test_a_truncated_file_changes_nothing(store, onto, length):
    model, other = twins()
    store.save(model)
    store.tensors.write_bytes(store.tensors.read_bytes()[:length])
    if onto == "adapted":
        adapted(other)
    before = snapshot(other)
    with pytest.raises(AdapterError):
        store.load(other)
    assert_unchanged(other, before)


def test_values_out_of_range_in_the_last_layer_change_nothing(store):
    model, other = twins()
    nn.init.constant_(model[2].lora_B, 1e30)
    store.save(model)
    adapted(other.half(), adapter_dtype="float16")
    before = snapshot(other)
    with pytest.raises(AdapterError, match=r"2\.lora_B\.weight must be finite in torch.float16"):
        store.load(other)
    assert_unchanged(other, before)


def test_a_layer_that_cannot_be_made_while_loading_changes_nothing(store, monkeypatch):
    model, plain = twins()
    store.save(model)
    before = snapshot(plain)

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(new_adapter, "start", fail)
    with pytest.raises(torch.OutOfMemoryError):
        store.load(plain)
    assert_unchanged(plain, before)


def test_a_model_without_lora_has_nothing_to_save(store):
    with pytest.raises(ValueError, match="model must have LoRA layers; this Sequential has none"):
        store.save(mlp())
    assert not store.path.exists()


@pytest.mark.parametrize("name", ["../up", "a.b", ""])
def test_an_unsound_name_is_refused_before_anything_is_read(store, name):
    with pytest.raises(ValueError, match="adapter name must be letters"):
        store.load(mlp(), name=name)


@pytest.mark.parametrize("adapters", ["default", (), []])
def test_adapters_to_save_are_named_one_by_one(tmp_path, adapters):
    with pytest.raises(ValueError, match="adapters must be a sequence of names, or None for all; got"):
        save_pretrained(adapted(mlp()), tmp_path, adapters=adapters)
    assert not list(tmp_path.iterdir())
