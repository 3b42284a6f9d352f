"""Packed layers that are refused: by name, and with what to use instead."""

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora


def made(name, module, parameters=()):
    """A module of a class of this name, as a library would make it."""
    layer = type(name, (nn.Module,), {"__module__": module})()
    for own, shape in dict(parameters).items():
        setattr(layer, own, nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False))
    return layer


@pytest.mark.parametrize(
    ("layer", "instead"),
    [
        (
            made("HQQLinearTorchWeightOnlynt4", "hqq.backends.torchao"),
            "HQQLinear, before prepare_for_inference",
        ),
        (made("WQLinear_GEMM", "awq.modules"), "with W transposed; load the unpacked model, or its NF4"),
        (made("NVFP4Linear", "transformers.integrations.nvfp4"), r"for inference.*NVFP4WeightOnlyConfig"),
        (
            made("Mxfp4GptOssExperts", "transformers.integrations.mxfp4", {"down_proj": (2, 4, 2)}),
            r"\(down_proj \[2, 4, 2\]\): its kernels.*Mxfp4Config\(dequantize=True\)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_libraries_layers_are_refused_with_what_to_use_instead(layer, instead):
    with pytest.raises(TypeError, match=instead):
        apply_lora(nn.ModuleDict({"plain": nn.Linear(3, 3), "experts": layer}), LoRAConfig(r=2))


@pytest.mark.parametrize("preset", ["NVFP4A16", "MXFP4A16", "W4A16"])
def test_what_compressed_tensors_packs_is_refused_with_what_to_use_instead(preset):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import compress_module

    model = nn.Sequential(nn.Linear(128, 32), nn.Linear(32, 4))
    groups = {preset: ["re:0"]}
    config = quantization.QuantizationConfig(config_groups=groups, quantization_status="compressed")
    quantization.apply_quantization_config(model, config)
    for name, parameter in model[0]._parameters.items():
        if "scale" in name:
            parameter.data.fill_(1.0)
    compress_module(model[0])
    with pytest.raises(TypeError, match=r"which is quantized.*CompressedTensorsConfig\(dequantize=True\)"):
        apply_lora(model, LoRAConfig(r=2, target_modules=["0"]))
    with pytest.raises(TypeError, match=r"which is quantized.*CompressedTensorsConfig\(dequantize=True\)"):
        apply_lora(model, LoRAConfig(r=2))
