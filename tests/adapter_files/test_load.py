"""Saving an adapter and loading it into another model, as a directory and as one file."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    AdapterError,
    FusedLoRALinear,
    LoRAConfig,
    add_adapter,
    apply_lora,
    load_adapter,
    load_pretrained,
    lora_layers,
    merge_lora,
    save_adapter,
    save_pretrained,
    set_adapter,
    set_lora_enabled,
)
from fastlora.layer import adapter
from tests.models import Block, Shared, TiedLM, adapted, mlp


@dataclass
class Store:
    """One of the two forms of an adapter on disk."""

    path: Path

    @property
    def is_directory(self):
        return not self.path.suffix

    @property
    def tensors(self):
        return self.path / "adapter_model.safetensors" if self.is_directory else self.path

    def save(self, model):
        (save_pretrained if self.is_directory else save_adapter)(model, self.path)

    def load(self, model, **options):
        return (load_pretrained if self.is_directory else load_adapter)(model, self.path, **options)


@pytest.fixture(params=["directory", "file.safetensors"])
def store(request, tmp_path):
    return Store(tmp_path / request.param)


def twins(make=mlp):
    """A model with a trained update, and the plain model it was made from."""
    plain = make()
    return adapted(
        copy.deepcopy(plain), alpha=3, rslora=True, dropout=0.25, init="kaiming"
    ).eval(), plain.eval()


def content(path):
    """Tensors and metadata; the order of the metadata in the file is not fixed."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).tolist() for key in file.keys()}, file.metadata()  # noqa: SIM118


def snapshot(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    options = [(name, layer.alpha, layer.rslora, layer.dropout) for name, layer in lora_layers(model)]
    kinds = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    return state, options, kinds, [(p.requires_grad, p.grad) for p in model.parameters()]


def assert_unchanged(model, before):
    after = snapshot(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


@pytest.mark.parametrize("make", [mlp, Block, Shared])
@pytest.mark.parametrize("onto", ["plain", "adapted"])
def test_a_loaded_model_computes_what_the_saved_one_did(store, make, onto):
    model, other = twins(make)
    store.save(model)
    if onto == "adapted":
        apply_lora(other, LoRAConfig(r=2))
    assert store.load(other) is other
    x = torch.randn(5, 6 if make is mlp else 4)
    assert torch.equal(other.eval()(x), model(x))


def test_loading_onto_a_plain_model_makes_the_layers_of_the_file_and_freezes_the_rest(store):
    model, plain = twins()
    store.save(model)
    store.load(plain)
    for (name, ours), (other, theirs) in zip(lora_layers(plain), lora_layers(model), strict=True):
        assert name == other
        for option in ("r", "alpha", "rslora", "dropout", "init", "scaling", "training"):
            assert getattr(ours, option) == getattr(theirs, option)
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == {
        f"{layer}.adapters.default.{letter}" for layer in ("0", "2") for letter in ("lora_A", "lora_B")
    }


def test_only_the_layers_of_the_file_are_made(store):
    model = adapted(TiedLM(), target_modules=["q_proj"], rank_pattern={r"layers\.1\..*": 3})
    store.save(model)
    plain = store.load(TiedLM())
    assert [(name, layer.r) for name, layer in lora_layers(plain)] == [
        ("layers.0.attn.q_proj", 2),
        ("layers.1.attn.q_proj", 3),
    ]


def test_loading_onto_lora_layers_takes_alpha_and_keeps_dropout_switches_and_what_is_trained(store):
    model, other = twins()
    store.save(model)
    apply_lora(other, LoRAConfig(r=2, dropout=0.5))
    set_lora_enabled(other, False)
    other[0].lora_A.requires_grad_(False)
    parameters = [id(p) for p in other.parameters()]
    store.load(other)
    layer = other[0]
    assert (layer.alpha, layer.rslora) == (3.0, True)
    assert (layer.dropout, layer.init, layer.enabled) == (0.5, "gaussian", False)
    assert not layer.lora_A.requires_grad
    assert [id(p) for p in other.parameters()] == parameters


@pytest.mark.parametrize(
    ("saved", "kept"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_lora_layers_keep_their_dtype_and_new_ones_take_the_files(store, saved, kept):
    model = adapted(mlp(), adapter_dtype=saved)
    store.save(model)
    other = store.load(apply_lora(mlp(), LoRAConfig(r=2, adapter_dtype=kept)))
    new = store.load(mlp().bfloat16())
    for index in (0, 2):
        assert torch.equal(other[index].lora_B, model[index].lora_B.to(kept))
        assert torch.equal(new[index].lora_B, model[index].lora_B)
        assert new[index].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("state", ["merged", "disabled"])
def test_what_is_saved_does_not_depend_on_the_state_of_the_layers(store, state):
    model, _ = twins()
    store.save(model)
    before = content(store.tensors)
    if state == "merged":
        merge_lora(model)
    else:
        set_lora_enabled(model, False)
    store.save(model)
    assert content(store.tensors) == before


def test_a_single_layer_is_saved_and_loaded_as_a_model(store):
    linear = nn.Linear(4, 3)
    layer = adapted(copy.deepcopy(linear))
    store.save(layer)
    assert sorted(load_file(store.tensors)) == [
        "base_model.model.lora_A.weight",
        "base_model.model.lora_B.weight",
    ]
    loaded = store.load(linear)
    assert isinstance(loaded, FusedLoRALinear)
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_leaves_no_trace_in_the_file(store):
    model, plain = twins()
    store.save(model)
    before = content(store.tensors)
    store.save(torch.compile(model, backend="eager"))
    assert content(store.tensors) == before
    compiled = torch.compile(plain, backend="eager")
    assert store.load(compiled) is compiled
    x = torch.randn(2, 6)
    assert torch.equal(compiled(x), model(x))


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

    monkeypatch.setattr(adapter, "start", fail)
    with pytest.raises(torch.OutOfMemoryError):
        store.load(plain)
    assert_unchanged(plain, before)


def test_a_model_without_lora_has_nothing_to_save(store):
    with pytest.raises(ValueError, match="model must have LoRA layers; this Sequential has none"):
        store.save(mlp())
    assert not store.path.exists()


def test_an_adapter_that_is_not_in_use_is_filled_with_its_alpha_too(store):
    model, plain = twins()
    store.save(model)
    other = add_adapter(adapted(plain, r=3), "fr", LoRAConfig(r=2))
    x = torch.randn(5, 6)
    before = other.eval()(x)
    store.load(other, name="fr")
    assert torch.equal(other(x), before)
    set_adapter(other, "fr")
    assert torch.equal(other(x), model(x))


def test_a_further_adapter_reaches_layers_that_were_plain(store):
    model, plain = twins()
    store.save(model)
    other = adapted(plain, target_modules=["0"])
    x = torch.randn(5, 6)
    before = other.eval()(x)
    store.load(other, name="fr")
    assert torch.equal(other(x), before)
    set_adapter(other, "fr")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", ["../up", "a.b", ""])
def test_an_unsound_name_is_refused_before_anything_is_read(store, name):
    with pytest.raises(ValueError, match="adapter name must be letters"):
        store.load(mlp(), name=name)


@pytest.mark.parametrize("adapters", ["default", (), []])
def test_adapters_to_save_are_named_one_by_one(tmp_path, adapters):
    with pytest.raises(ValueError, match="adapters must be a sequence of names, or None for all; got"):
        save_pretrained(adapted(mlp()), tmp_path, adapters=adapters)
    assert not list(tmp_path.iterdir())
