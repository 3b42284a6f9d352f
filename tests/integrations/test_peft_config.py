"""PEFT's config, and its names, where ours are wanted."""

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from fastlora import LoRAConfig, add_adapter, apply_lora, freeze, lora_layers, unfreeze
from tests.models import TiedLM, mlp, trainable


@pytest.mark.parametrize(
    ("theirs", "ours"), [("lora_alpha", "alpha"), ("lora_dropout", "dropout"), ("use_rslora", "rslora")]
)
def test_pefts_names_are_told_ours(theirs, ours):
    with pytest.raises(TypeError, match=f"LoRAConfig has no {theirs}; it is called {ours} here"):
        LoRAConfig(**{theirs: 1})


def test_pefts_config_is_taken_where_every_field_has_a_meaning():
    theirs = LoraConfig(
        r=3,
        lora_alpha=5,
        lora_dropout=0.25,
        use_rslora=True,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[1],
        rank_pattern={"q_proj": 2},
        task_type="CAUSAL_LM",
    )
    model = apply_lora(TiedLM(), theirs)
    found = dict(lora_layers(model))
    assert {name: layer.r for name, layer in found.items()} == {
        "layers.1.attn.q_proj": 2,
        "layers.1.attn.v_proj": 3,
    }
    layer = found["layers.1.attn.v_proj"]
    assert (layer.alpha, layer.dropout, layer.rslora, layer.init) == (5, 0.25, True, "kaiming")
    add_adapter(model, "fr", LoraConfig(target_modules=["k_proj"]))
    assert "layers.0.attn.k_proj" in dict(lora_layers(model))


def test_what_has_no_meaning_here_is_named():
    model = mlp()
    with pytest.raises(ValueError, match=r"peft\.LoraConfig's init_lora_weights "):
        apply_lora(model, LoraConfig(target_modules=["0"], init_lora_weights="pissa"))
    assert not list(lora_layers(model))


def test_without_targets_pefts_choice_needs_a_known_type():
    with pytest.raises(ValueError, match="target_modules must be given"):
        apply_lora(mlp(), LoraConfig())


@pytest.mark.parametrize("options", [{}, {"layers_pattern": "layers"}, {"layers_pattern": ["h", "layers"]}])
def test_layers_are_chosen_as_peft_chooses_them(options):
    options = {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1], **options}

    def nested():
        return nn.ModuleDict({"model": TiedLM()})

    theirs = get_peft_model(nested(), LoraConfig(**options)).targeted_module_names
    assert [name for name, _ in lora_layers(apply_lora(nested(), LoRAConfig(**options)))] == theirs


def test_layers_that_are_not_there_and_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[7\] has none \(there are \[0, 1\]\)"):
        apply_lora(
            TiedLM(), LoRAConfig(target_modules=["q_proj"], layers_to_transform=7, layers_pattern="layers")
        )
    with pytest.raises(ValueError, match="layers_to_transform goes with"):
        LoRAConfig(layers_to_transform=1)
    with pytest.raises(ValueError, match="layers_pattern goes with"):
        LoRAConfig(target_modules=["a"], layers_pattern="h")


def test_a_part_without_lora_can_be_frozen_again():
    model = apply_lora(
        nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}), LoRAConfig(target_modules=["a"])
    )
    before = trainable(model)
    unfreeze(model["b"])
    freeze(model["b"])
    assert trainable(model) == before
