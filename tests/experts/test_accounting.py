"""What a mixture's training takes, counted, and the floor of its passes."""

import math

import pytest
import torch

import fastlora
from fastlora import LoRAConfig, explain, lora_layers
from fastlora.accounting.activations import saved_bytes
from fastlora.accounting.budget import training_budget
from fastlora.accounting.gpus import GPUS
from fastlora.accounting.meta_models import blueprint_budget
from fastlora.routes.route import Route
from tests.experts.mixtures import EXPERTS, adapted, inputs_of, tiny


def test_a_budget_is_what_a_real_step_takes():
    model, config = tiny(use_cache=False), LoRAConfig(r=2, target_parameters=EXPERTS)
    inputs = inputs_of(model)
    counted = training_budget(model, config, lambda net: net(**inputs)).lora
    trained = [p for p in model.parameters() if p.requires_grad]
    assert counted.trainable == sum(p.numel() for p in trained) == fastlora.parameter_report(model).lora
    assert counted.activations == saved_bytes(
        lambda: model(**inputs), [*model.parameters(), *model.buffers()]
    )
    model(**inputs).loss.backward()
    assert counted.gradients == sum(p.grad.nbytes for p in trained)


def test_a_mixture_without_weights_is_counted(tmp_path):
    # Torch's grouped_mm, in bf16, wants rows of whole 16 bytes.
    tiny(moe_intermediate_size=16).config.save_pretrained(tmp_path)
    every = blueprint_budget(str(tmp_path), LoRAConfig(r=2), tokens=16)
    attention = blueprint_budget(str(tmp_path), LoRAConfig(r=2, exclude_modules=["experts"]), tokens=16)
    # In each of two layers: gate_up 32 -> 32 and down 16 -> 32, of five experts.
    assert every.lora.trainable - attention.lora.trainable == 2 * 5 * 2 * (32 + 32 + 16 + 32)


@pytest.mark.parametrize(("name", "rows"), [("gate_up_proj", 8), ("down_proj", 16)])
def test_explain_tells_the_floor_of_a_mixture(name, rows):
    layer = dict(lora_layers(adapted(tiny())))[f"model.layers.0.mlp.experts.{name}"]
    K, N = layer.in_features, layer.out_features
    found = explain([rows, K], layer, gpu="H100")
    forward, backward = found.problem.forward(), found.problem.backward()
    assert forward.flops == 2 * 16 * (N * K + 3 * (N + K))
    assert backward.flops == 2 * 16 * (N * K + 6 * (N + K))
    assert found.problem.weight_bytes() == layer.weight.nbytes
    assert forward.moved > layer.weight.nbytes
    assert math.isclose(
        found.floors_us["forward"], forward.floor_us(GPUS["H100"].ieee, GPUS["H100"].bandwidth)
    )
    assert "of 5 experts -> y" in str(found)
    assert "W of up to 5 experts with tokens" in str(found)
    assert found.as_dict()["passes"][1]["flops"] == backward.flops
    assert found.path == Route("triton", "as on an H100")
    with fastlora.set_backend("torch"):
        path = explain([rows, K], layer, gpu="H100").path
    assert path == Route("runs", "torch's products, run by run: the backend is set to torch")
    # A single token reads the weights of its experts alone.
    few = explain([rows // 8, K], layer)
    assert few.problem.weight_bytes() == layer.weight.nbytes // 5 * 2
    with pytest.raises(ValueError, match="gpu must be one of"):
        explain([rows, K], layer, gpu="abacus")
    assert layer.weight.dtype == torch.float32
