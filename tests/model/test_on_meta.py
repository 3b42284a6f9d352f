"""Models on "meta", which has shapes and no values: what is put there is not lost without a word."""

import pytest
import torch

from fastlora import (
    AdapterError,
    LoRAConfig,
    apply_lora,
    hot_swap,
    load_pretrained,
    lora_layers,
    save_pretrained,
)
from tests.experts.mixtures import tiny
from tests.models import adapted, mlp


def on_meta(make=mlp):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("make", [mlp, tiny])
def test_updates_without_values_are_missing_in_a_plain_checkpoint_that_has_them(make):
    plain = make()
    model = apply_lora(on_meta(make), LoRAConfig(r=2))
    found = model.load_state_dict(plain.state_dict(), strict=False, assign=True)
    own = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {*found.missing_keys} == own
    with pytest.raises(RuntimeError, match=r"Missing key.*adapters\.default\.lora_A"):
        model.load_state_dict(plain.state_dict(), assign=True)
    # So they are started, and the function is the plain model's.
    for _, layer in lora_layers(model):
        layer.adapters.to_empty(device="cpu")
        layer.reset_adapter()
        assert layer.lora_A.isfinite().all()
        assert not layer.lora_B.any()


def test_a_checkpoint_with_updates_fills_a_model_on_meta():
    trained, x = adapted(mlp()), torch.randn(4, 6)
    model = apply_lora(on_meta(), LoRAConfig(r=2))
    model.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(model(x), trained(x))


@pytest.mark.parametrize("had", ["nothing", "an adapter", "the updates alone", "a module to save"])
def test_files_are_not_loaded_where_their_values_would_be_lost(tmp_path, had):
    more = {"target_modules": ["0"], "modules_to_save": ["2"]} if had == "a module to save" else {}
    save_pretrained(adapted(mlp(), **more), tmp_path)
    model = mlp() if had == "a module to save" else on_meta()
    if had == "a module to save":
        model[2].to("meta")
    elif had != "nothing":
        model = apply_lora(model, LoRAConfig(r=2))
    if had == "the updates alone":
        model.load_state_dict(mlp().state_dict(), strict=False, assign=True)
    before = [*model.named_modules()]
    with pytest.raises(AdapterError, match=r"must have values in the model; on 'meta'.* are '?[02]"):
        load_pretrained(model, tmp_path)
    assert [*model.named_modules()] == before
    if had in ("an adapter", "the updates alone"):
        with pytest.raises(AdapterError, match="must have values in the model"):
            hot_swap(model, tmp_path)


def test_a_save_names_the_layer_that_has_no_values(tmp_path):
    model = adapted(mlp())
    model[2].adapters.to("meta")
    with pytest.raises(ValueError, match="A of layer '2' must have values to be saved"):
        save_pretrained(model, tmp_path)
    assert not [*tmp_path.iterdir()]
