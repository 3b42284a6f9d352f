"""What is counted and explained of packed layers."""

import json

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, explain
from fastlora.accounting.activations import saved_bytes
from fastlora.accounting.budget import training_budget
from fastlora.accounting.meta_models import blueprint_budget
from fastlora.formula.cost import Problem
from fastlora.info import collect_info
from fastlora.layer.packed_merging import bytes_of
from tests.packed import net

pytest.importorskip("bitsandbytes")

X = torch.randn(5, 64)


def test_the_budget_of_a_packed_model_counts_its_bytes_and_full_fine_tuning_a_plain_one():
    model = net(dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    before = list(model)
    found = training_budget(model, LoRAConfig(r=2), lambda model: model(X.bfloat16()))
    plain = 64 * 32 + 32 * 16
    assert (found.parameters, found.full.trainable, found.full.weights) == (plain, plain, 2 * plain)
    layers = [model[0], model[2]]
    update = 4 * 2 * (64 + 32 + 32 + 16)
    assert found.lora.weights == sum(bytes_of(layer.base) for layer in layers) + update
    own = [*model.parameters(), *(tensor for layer in layers for tensor in layer.base.tensors)]
    assert found.lora.activations == saved_bytes(lambda: model(X.bfloat16()), own)
    assert [type(layer) for layer in before] != [type(layer) for layer in model]


def test_the_budget_of_a_plan_takes_the_format_that_it_is_to_be_loaded_in():
    spec, config = "up=128,256*3 down=256,64", LoRAConfig(r=2)
    plain = blueprint_budget(spec, config, tokens=8)
    packed = blueprint_budget(spec, config, tokens=8, base="bnb-4bit")
    entries = 3 * 128 * 256 + 256 * 64
    assert packed.full == plain.full
    blocks = [128 * 256 // 64] * 3 + [256 * 64 // 64]
    scales = sum(count + 4 * -(-count // 256) + 4 * 273 for count in blocks)
    assert plain.lora.weights - packed.lora.weights == 2 * entries - entries // 2 - scales
    with pytest.raises(ValueError, match=r"base must be one of bnb-4bit, .*; got 'nf4'"):
        blueprint_budget(spec, config, base="nf4")


def test_explain_names_the_format_and_counts_the_unpacking():
    layer = apply_lora(net(dtype=torch.bfloat16)[0], LoRAConfig(r=2))
    found = explain((17, 64), layer, gpu="H200")
    plain = Problem(17, 64, 32, 2, torch.bfloat16, torch.float32)
    more = bytes_of(layer.base) + 2 * 64 * 32
    assert [one.cost.moved for one in found.passes] == [
        plain.forward().moved + more,
        plain.backward().moved + more,
    ]
    assert all(one.floor_us > 0 for one in found.passes)
    assert "W: bitsandbytes NF4 or FP4, 0.002 MB, unpacked in each pass by one more launch" in str(found)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["base"] == {"format": "bitsandbytes NF4 or FP4", "bytes": bytes_of(layer.base)}
    assert [one["launches"] for one in told["passes"]] == [2, 2]
    assert explain((5, 64), apply_lora(nn.Linear(64, 32), LoRAConfig())).base is None


def test_explain_counts_one_launch_where_few_rows_are_multiplied_by_the_packed_weight():
    layer = apply_lora(net(dtype=torch.bfloat16)[0], LoRAConfig(r=2))
    found = explain((16, 64), layer, gpu="H200")
    plain = Problem(16, 64, 32, 2, torch.bfloat16, torch.float32)
    forward, backward = found.passes
    assert forward.cost.moved == plain.forward().moved + bytes_of(layer.base) - 2 * 64 * 32
    assert backward.cost.moved == plain.backward().moved + bytes_of(layer.base) + 2 * 64 * 32
    assert forward.plan.tile.block_m == 16
    assert [one["launches"] for one in found.as_dict()["passes"]] == [1, 2]
    assert "unpacked inside the forward product, else by one more launch" in str(found)


def test_info_lists_the_formats_and_their_libraries():
    found = collect_info()
    assert found.formats["bitsandbytes NF4 or FP4"].startswith("bitsandbytes 0.5")
    assert "bitsandbytes NF4 or FP4" in str(found)
