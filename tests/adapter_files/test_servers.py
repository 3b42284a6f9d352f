"""What servers require of an adapter directory, by their loaders' rules; none of them is installed.

vLLM (vllm/lora/peft_helper.py, lora_model.py and utils.py): r, lora_alpha and target_modules must be there,
modules_to_save must be empty, every tensor is base_model.model.<path>.lora_A.weight or lora_B.weight, and the
last part of its path is one of the model's linear layers. SGLang (python/sglang/srt/lora/lora_config.py and
utils.py): target_modules is a list whose last parts are names of layers, never an expression.
"""

import json
import re

import pytest
from safetensors.torch import load_file
from torch import nn

from fastlora import save_pretrained
from tests.models import TiedLM, adapted

LEAVES = {"q_proj", "k_proj", "v_proj", "lm_head"}


class LM(nn.Module):
    """A language model's paths: model.layers.<i>.self_attn.<leaf>."""

    def __init__(self):
        super().__init__()
        self.model = TiedLM()


@pytest.fixture
def saved(tmp_path):
    save_pretrained(adapted(LM(), r=4, alpha=8, target_modules=["q_proj", "v_proj"]), tmp_path)
    return (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )


def test_vllm_finds_the_fields_and_the_tensors_it_requires(saved):
    config, tensors = saved
    assert {"r", "lora_alpha", "target_modules", "bias", "use_rslora", "use_dora"} <= config.keys()
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (4, 8, None)
    for key, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        assert found, key
        assert found[1].rsplit(".", 1)[-1] in LEAVES
        assert tensor.shape[found[2] == "B"] == config["r"]
    assert {key.replace("lora_A", "lora_B") for key in tensors if "lora_A" in key} == {
        key for key in tensors if "lora_B" in key
    }


def test_sglang_finds_bare_names_and_layer_numbers(saved):
    config, tensors = saved
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert {int(re.search(r"layers\.(\d+)\.", key)[1]) for key in tensors} == {0, 1}
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
