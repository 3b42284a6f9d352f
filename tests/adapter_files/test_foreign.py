"""Adapters of other programs: taken where they are the same function, else refused with a way."""

import copy
import json

import pytest
import torch
from torch import nn

from fastlora import AdapterError, load_adapter, load_pretrained
from fastlora.adapter_files.adapter_config import AdapterConfig
from fastlora.adapter_files.config_keys import _READ, _REFUSED, _WITHOUT_EFFECT, DEFAULTS
from fastlora.adapter_files.layout import serialized
from tests.models import mlp

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
LORA = {f"0.lora_{x}.weight": shape for x, shape in (("A", (2, 6)), ("B", (5, 2)))}


def write(directory, tensors, config=None, prefix="base_model.model."):
    held = {prefix + key: torch.ones(shape) for key, shape in tensors.items()}
    (directory / "adapter_model.safetensors").write_bytes(serialized(held, {}))
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    return directory


@pytest.mark.parametrize(
    ("key", "way"),
    [
        (
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "convert_kohya_ss_sd_lora_to_peft.py",
        ),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "convert_kohya_ss_sd_lora_to_peft.py"),
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "convert_state_dict_to_peft"),
        ("unet.mid_block.attn1.processor.to_q_lora.up.weight", "convert_state_dict_to_peft"),
        ("text_encoder.layers.0.q_proj.lora_linear_layer.up.weight", "convert_state_dict_to_peft"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "convert_state_dict_to_peft"),
        ("base_model.model.fc.lora_A.default.weight", "get_peft_model_state_dict"),
        ("model.layers.0.q_proj.lora_B.default.weight", "get_peft_model_state_dict"),
        ("model.layers.0.q_proj.lora_A", "load_state_dict"),
    ],
)
def test_another_layout_is_refused_in_either_form_with_the_way_to_convert(tmp_path, key, way):
    write(tmp_path, {key: (2, 2)}, prefix="")
    for load, path in ((load_pretrained, tmp_path), (load_adapter, tmp_path / "adapter_model.safetensors")):
        with pytest.raises(AdapterError, match=rf"must be in PEFT's layout; .*{way}"):
            load(mlp(), path)


def test_a_module_to_save_may_be_called_lora_head(tmp_path):
    model = nn.Sequential()
    model.fc, model.lora_head = nn.Linear(6, 5), nn.Linear(5, 3)
    tensors = {f"fc.{key[2:]}": shape for key, shape in LORA.items()}
    tensors |= {"lora_head.weight": (3, 5), "lora_head.bias": (3,)}
    write(tmp_path, tensors, {"modules_to_save": ["lora_head"]})
    assert load_pretrained(model, tmp_path).lora_head.weight.eq(1).all()
    with pytest.raises(AdapterError, match="no tensor of plain LoRA"):
        load_pretrained(model, write(tmp_path, tensors, {"modules_to_save": ["fc"]}))


def test_each_key_of_peft_has_one_decision():
    decided = [*_READ, *_WITHOUT_EFFECT, *_REFUSED]
    assert len(decided) == len(set(decided))
    assert set(decided) >= DEFAULTS.keys()


@pytest.mark.parametrize("key", sorted(_REFUSED))
def test_a_key_that_changes_the_function_is_refused_with_what_to_do(key):
    for off in (None, False, {}, []):
        AdapterConfig.loads(json.dumps({**CONFIG, key: off}))
    with pytest.raises(AdapterError, match=rf"^{key} is not supported, nor ignored: \w.*; got \[1\]"):
        AdapterConfig.loads(json.dumps({**CONFIG, key: [1]}))


def test_an_unknown_key_is_refused_only_where_it_is_in_use():
    AdapterConfig.loads(json.dumps({**CONFIG, "a": None, "b": False, "c": "", "d": {}, "e": []}))
    with pytest.raises(
        AdapterError, match=r"^tomorrow is not supported.*take the key out if it changes nothing"
    ):
        AdapterConfig.loads(json.dumps({**CONFIG, "tomorrow": "x"}))


@pytest.mark.parametrize(
    "config", [{"merge_weights": True, "enable_lora": None}, {"runtime_config": {"x": True}}]
)
def test_keys_of_older_releases_without_effect_are_read_over(tmp_path, config):
    assert load_pretrained(mlp(), write(tmp_path, LORA, config))[0].alpha == 3


def test_ensure_weight_tying_matters_only_where_a_layer_with_lora_is_tied(tmp_path):
    write(tmp_path, LORA, {"ensure_weight_tying": True})
    model = mlp()
    tied = copy.deepcopy(model)
    tied.append(nn.Embedding(5, 6, _weight=tied[0].weight))
    tied[3].weight = tied[0].weight
    assert load_pretrained(model, tmp_path)[0].alpha == 3
    with pytest.raises(
        AdapterError, match=r"ensure_weight_tying is not supported .*'0' shares its weight with '3'"
    ):
        load_pretrained(tied, tmp_path)
