"""Models and results that version 0.2 pickled are found by the names that it wrote."""

import pickle

import pytest

NAMES = [
    "fastlora.config LoRAConfig",
    "fastlora.experts.layer FusedLoRAExperts",
    "fastlora.layer.adapter Adapter",
    "fastlora.layer.adapter Adapters",
    "fastlora.layer.fused_lora_conv1d FusedLoRAConv1D",
    "fastlora.layer.fused_lora_embedding _blank",
    "fastlora.layer.fused_lora_linear FusedLoRALinear",
    "fastlora.layer.groups Membership",
    "fastlora.layer.quantized _blank",
    "fastlora.lowrank Factors",
    "fastlora.lowrank ParameterCounts",
    "fastlora.lowrank Spectrum",
    "fastlora.model.groups GroupCounts",
    "fastlora.model.groups GroupReport",
]
PEFTS_NAMES = [
    "fastlora.integrations.peft SwapReport",
    "fastlora.integrations.peft _make_layer",
    "fastlora.integrations.peft_experts FastParamWrapper",
    "fastlora.integrations.peft_groups Grouping",
    "fastlora.integrations.peft_layer FastLinear",
    "fastlora.integrations.peft_layer _blank",
]


@pytest.mark.parametrize("name", [*NAMES, *PEFTS_NAMES])
def test_the_names_of_version_0_2_are_found(name):
    if name in PEFTS_NAMES:
        pytest.importorskip("peft")
    module, own = name.split()
    assert callable(pickle.loads(f"c{module}\n{own}\n.".encode()))
