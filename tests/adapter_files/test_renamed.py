"""Adapters with names that modules of Transformers models had in earlier releases."""

import copy

import pytest
import torch

from fastlora import AdapterError, LoRAConfig, apply_lora, hot_swap, load_pretrained, save_pretrained
from fastlora.adapter_files import renamed
from fastlora.adapter_files.layout import serialized
from fastlora.adapter_files.tensors import open_tensors
from tests.models import mlp, with_update

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llava():
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**vision, "model_type": "llama", "vocab_size": 17, "num_key_value_heads": 1}
    vision |= {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4}
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text)
    ).eval()


def with_old_names(directory):
    """Give the tensors of a directory the names of Transformers before 4.52."""
    path = directory / "adapter_model.safetensors"
    with open_tensors(path) as file:
        held = {
            key: file.read(key, torch.device("cpu"), header.dtype) for key, header in file.headers.items()
        }
        old = {
            key.replace("model.model.language_model.", "model.language_model.model.").replace(
                "model.lm_head", "model.language_model.lm_head"
            ): tensor
            for key, tensor in held.items()
        }
        path.write_bytes(serialized(old, file.metadata))


def test_an_adapter_of_an_earlier_llava_is_read_by_transformers_own_table_and_said(llava, tmp_path):
    config = LoRAConfig(
        r=2, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"], rank_pattern={"up_proj": 3}
    )
    model = with_update(apply_lora(copy.deepcopy(llava), config))
    save_pretrained(model, tmp_path)
    with_old_names(tmp_path)
    with pytest.warns(
        UserWarning, match=r"earlier release of Transformers; 'language_model.model.layers.0"
    ) as said:
        loaded = load_pretrained(copy.deepcopy(llava), tmp_path)
    assert len(said) == 1
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not torch.equal(loaded(tokens).logits, llava(tokens).logits)


def test_names_that_no_table_makes_fit_are_told_as_they_are(llava, tmp_path):
    save_pretrained(with_update(apply_lora(mlp(), LoRAConfig(r=2))), tmp_path)
    with pytest.raises(AdapterError, match=r"its layers must be the model's; there is no '0'"):
        load_pretrained(copy.deepcopy(llava), tmp_path)


def test_a_table_on_the_class_is_read_as_peft_reads_it(tmp_path):
    class Net(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self):
            super().__init__(transformers.PretrainedConfig())
            self.new = mlp()

    model = Net()
    model._checkpoint_conversion_mapping = {"^old": "new", "^o": "never"}
    (of_class, *_) = renamed._renamings(model)
    assert of_class("old.0.weight") == "new.0.weight"
    save_pretrained(apply_lora(torch.nn.ModuleDict({"old": mlp()}), LoRAConfig(r=2)), tmp_path)
    with pytest.warns(UserWarning, match="'old.0' and others are read by its table, as 'new.0'"):
        load_pretrained(model, tmp_path)
    with pytest.warns(UserWarning, match="'old.0' and others"):
        hot_swap(model, tmp_path)
