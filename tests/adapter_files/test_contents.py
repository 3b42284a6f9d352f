"""A config and its tensors must agree, and hold nothing that is not run here."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastlora import AdapterError, load_adapter
from fastlora.adapter_files.opening import open_directory
from fastlora.layer.adapter import Options
from tests.models import mlp

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
PREFIX = "base_model.model."
TENSORS = {f"{PREFIX}fc.lora_A.weight": torch.ones(2, 6), f"{PREFIX}fc.lora_B.weight": torch.ones(5, 2)}


def write(directory, config=None, tensors=None):
    """A sound adapter with something else in it; None takes a tensor away."""
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    content = {**TENSORS, **{PREFIX + key: value for key, value in (tensors or {}).items()}}
    content = {key: tensor for key, tensor in content.items() if tensor is not None}
    save_file(content, directory / "adapter_model.safetensors")
    return directory


def layers(directory):
    with open_directory(directory) as contents:
        return contents.layers


def test_a_layer_is_described_before_any_tensor_is_read(tmp_path):
    write(tmp_path, {"use_rslora": True, "lora_dropout": 0.5, "alpha_pattern": {"fc": 7}})
    header = layers(tmp_path)["fc"]
    assert header == (Options(2, 7.0, 0.5, True, "kaiming"), 6, 5, torch.float32, 0, ())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"fc.lora_A.weight": torch.zeros(3, 6)},
            r"A and B of 'fc' must be \[2, K\] and \[N, 2\]; got \[3, 6\], \[5",
        ),
        ({"fc.lora_B.weight": torch.zeros(2, 5)}, r"must be \[2, K\] and \[N, 2\]; got \[2, 6\], \[2, 5\]"),
        ({"fc.lora_A.weight": torch.zeros(12)}, r"got \[12\], \[5, 2\]"),
        ({"fc.lora_A.weight": torch.zeros(2, 6, 1, 1)}, r"got \[2, 6, 1, 1\]"),
        (
            {"fc.lora_A.weight": torch.zeros(2, 6).half()},
            r"must have one dtype of F16, .*; got torch.float16",
        ),
        (
            {
                "fc.lora_A.weight": torch.zeros(2, 6, dtype=torch.int32),
                "fc.lora_B.weight": torch.zeros(5, 2, dtype=torch.int32),
            },
            "must have one dtype of F16, .*; got torch.int32",
        ),
        (
            {f"{'x' * 257}.lora_{letter}.weight": torch.zeros(2, 2) for letter in "AB"},
            "names of tensors must have at most 256 letters; got 'x{40}'",
        ),
        ({"fc.lora_B.weight": None}, r"each layer must have A and B; 'fc' has one of them"),
        ({"fc.lora_A.weight": None, "fc.lora_B.weight": None}, r"must hold A and B of at least one layer"),
        ({"fc.lora_B.bias": torch.zeros(5)}, "if lora_bias is True, else none; it is False"),
        (
            {"fc.lora_magnitude_vector": torch.zeros(5)},
            r"a lora_magnitude_vector if use_dora is True, else none; it is False, and 'fc' has one",
        ),
        ({"e.lora_embedding_A": torch.zeros(2, 9)}, r"must have A and B; 'e' has one of them"),
        ({"fc.lora_embedding_A": torch.zeros(2, 9)}, r"'fc' must be a linear layer or an embedding"),
        ({"fc.lora_ga.weight": torch.zeros(2)}, r"no tensor of plain LoRA, and not supported"),
        ({"other.base_layer.weight": torch.zeros(2)}, r"no tensor of plain LoRA, and not supported"),
        ({"score.weight": torch.zeros(2)}, r"'score.weight' must belong to modules_to_save, which is empty"),
    ],
)
def test_tensors_that_are_not_the_configs_or_not_plain_lora_are_refused(tmp_path, tensors, message):
    write(tmp_path, tensors=tensors)
    with pytest.raises(AdapterError, match=message):
        layers(tmp_path)


def test_a_tensor_without_pefts_prefix_is_refused(tmp_path):
    write(tmp_path)
    save_file({"fc.lora_A.weight": torch.zeros(2, 6)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"tensors must be named base_model.model.<name>"):
        layers(tmp_path)


def test_a_fault_in_the_config_names_the_file(tmp_path):
    write(tmp_path, {"use_qalora": True})
    with pytest.raises(AdapterError, match=r"adapter_config.json: use_qalora is not supported"):
        layers(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    write(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model.bin is a pickle, which may run any code"):
        layers(tmp_path)


def test_a_config_of_absurd_size_is_not_read(tmp_path):
    write(tmp_path)
    with (tmp_path / "adapter_config.json").open("r+b") as file:
        file.truncate(5 << 20)
    with pytest.raises(AdapterError, match=r"adapter_config.json must be at most 4,194,304 bytes"):
        layers(tmp_path)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_the_systems_own_error(tmp_path, missing):
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        layers(tmp_path)


def test_a_single_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    with pytest.raises(AdapterError, match=r"must be a file that save_adapter wrote; .*load_pretrained"):
        load_adapter(mlp(), path)
