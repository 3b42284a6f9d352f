"""Directories that Transformers writes of models with LoRA: the trained model reads back, or nothing."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    LoRAConfig,
    add_adapter,
    apply_lora,
    load_pretrained,
    lora_layers,
    remove_lora,
    set_adapter,
    unfreeze,
)
from tests.integrations.architectures import inputs_of, tiny
from tests.integrations.test_trainer import Tokens, trained
from tests.models import with_update
from tests.several_adapters import two

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")


@pytest.fixture
def base(tmp_path):
    """A base model's directory."""
    tiny("Llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def read(directory):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def adapted_llama(base):
    return with_update(apply_lora(read(base), LoRAConfig(r=2)))


def logits(model):
    torch.manual_seed(5)  # the same inputs each time
    inputs = inputs_of(model)
    with torch.no_grad():
        return model(**inputs).logits


def test_a_saved_model_with_lora_reads_back_in_peft_as_it_was(base, tmp_path):
    model = adapted_llama(base)
    expected = logits(model)
    assert not torch.equal(expected, logits(read(base)))
    model.save_pretrained(tmp_path / "out")
    found = peft.PeftModel.from_pretrained(read(base), tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), expected)
    assert torch.equal(logits(load_pretrained(read(base), tmp_path / "out")), expected)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("with_peft", [True, False])
def test_such_a_directory_is_not_read_as_the_base(base, tmp_path, monkeypatch, with_peft):
    import transformers

    adapted_llama(base).save_pretrained(tmp_path / "out")
    if not with_peft:
        monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)
    with pytest.raises(OSError, match="adapter_config"):
        read(tmp_path / "out")
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_checkpoints_of_trainer_hold_the_adapter_and_resume_to_the_bit(base, tmp_path):
    model = adapted_llama(base)
    again = copy.deepcopy(model)
    whole = trained(model, tmp_path / "run", save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    resumed = trained(again, tmp_path / "run", resume=str(checkpoint))
    assert torch.equal(resumed, whole[2:])
    last = load_pretrained(read(base), tmp_path / "run" / "checkpoint-4")
    assert torch.equal(logits(last), logits(model.eval()))


def test_several_adapters_lie_beside_the_checkpoint_and_it_resumes(base, tmp_path):
    model = add_adapter(adapted_llama(base), "other", LoRAConfig(r=3))
    again = copy.deepcopy(model)
    whole = trained(model, tmp_path, save_strategy="steps", save_steps=2)
    assert (tmp_path / "checkpoint-2" / "other" / "adapter_config.json").exists()
    assert torch.equal(trained(again, tmp_path, resume=str(tmp_path / "checkpoint-2")), whole[2:])


def test_a_given_state_dict_is_written_as_it_is(base, tmp_path):
    model = adapted_llama(base)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=dict(state))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found
    assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_another_process_than_the_main_one_writes_nothing(base, tmp_path):
    adapted_llama(base).save_pretrained(tmp_path / "out", is_main_process=False)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_checkpoint_whose_adapter_cannot_be_written_says_so_and_is_whole(base, tmp_path):
    model = adapted_llama(base)
    model.save_pretrained(tmp_path / "out")
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
    with pytest.warns(UserWarning, match="q_proj.weight") as told:
        model.save_pretrained(tmp_path / "out")
    assert told[0].filename == __file__
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {"model.safetensors"}
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_base_models_own_directory_and_an_upload_are_refused(base, tmp_path):
    model = adapted_llama(base)
    with pytest.raises(ValueError, match="own"):
        model.save_pretrained(base)
    with pytest.raises(ValueError, match=r"fastlora\.push_to_hub"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert torch.equal(logits(read(base)), logits(tiny("Llama")))


def test_copies_save_themselves_and_a_model_without_lora_saves_as_ever(base, tmp_path):
    model = adapted_llama(base)
    for number, copied in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        nn.init.ones_(copied.model.layers[0].mlp.up_proj.lora_B)
        copied.save_pretrained(tmp_path / str(number))
        assert torch.equal(logits(load_pretrained(read(base), tmp_path / str(number))), logits(copied))
    merged = remove_lora(model, merge=True)
    merged.save_pretrained(tmp_path / "plain")
    assert "save_pretrained" not in vars(merged)
    assert torch.equal(logits(read(tmp_path / "plain")), logits(merged))


def test_a_model_inside_another_saves_its_adapter_too(base, tmp_path):
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = read(base)

    scorer = apply_lora(Scorer(), LoRAConfig(r=2))
    with_update(scorer)
    scorer.backbone.save_pretrained(tmp_path / "out")
    found = load_pretrained(read(base), tmp_path / "out")
    assert torch.equal(logits(found), logits(scorer.backbone))


def test_norms_that_were_unfrozen_are_in_the_adapter(base, tmp_path):
    model = adapted_llama(base)
    unfreeze(model)
    nn.init.normal_(model.model.norm.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load_pretrained(read(base), tmp_path / "out")), logits(model))


def test_the_adapter_beside_a_given_state_dict_is_that_states(base, tmp_path):
    model = adapted_llama(base)
    average = copy.deepcopy(model)
    for _, layer in lora_layers(average):
        nn.init.normal_(layer.lora_B)
    model.save_pretrained(tmp_path / "out", state_dict=average.state_dict())
    found = load_pretrained(read(base), tmp_path / "out")
    assert torch.equal(logits(found), logits(average))
    assert not torch.equal(logits(found), logits(model))


def test_a_given_state_dict_that_lacks_an_update_is_named(base, tmp_path):
    model = adapted_llama(base)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="state_dict must hold every adapter; it lacks .*lora_A"):
        model.save_pretrained(tmp_path / "out", state_dict=state)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_trainer_ends_with_its_best_checkpoint(base, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = adapted_llama(base)
    rate = {"learning_rate": 1.0}  # so that the first step is the best
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, save_total_limit=1, report_to="none", use_cpu=True, disable_tqdm=True,
        **rate,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Tokens(), eval_dataset=Tokens())
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert torch.equal(logits(load_pretrained(read(base), best)), logits(model.eval()))


def llava():
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sees = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    text = tiny("Llama", **sizes, num_key_value_heads=2).config
    config = LlavaConfig(vision_config=sees, text_config=text, image_token_index=60)
    return LlavaForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("build", "modules"), [(llava, None), (lambda: tiny("Mixtral"), ["experts"])], ids=["llava", "mixtral"]
)
def test_the_state_to_resume_from_has_the_names_of_the_model_in_memory(build, modules, tmp_path):
    """Published files of these have other names, under which Trainer would find nothing to resume from."""
    model = apply_lora(build(), LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=modules))
    with_update(model).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    fresh = apply_lora(build(), LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=modules))
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    assert not {*missing, *unexpected} - {"lm_head.weight"}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    again = [parameter for parameter in fresh.parameters() if parameter.requires_grad]
    assert all(map(torch.equal, trained, again))


def test_a_config_of_ones_own_reads_the_adapter_by_peft(base, tmp_path):
    from transformers import LlamaForCausalLM

    model = adapted_llama(base)
    model.save_pretrained(tmp_path / "out")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out", config=read(base).config).eval()
    torch.testing.assert_close(logits(found), logits(model))


def test_an_offloaded_model_brings_each_adapter_back_for_its_layers():
    accelerate = pytest.importorskip("accelerate")
    model = two()
    set_adapter(model, "fr")
    x = torch.randn(4, 6)
    expected = model(x)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model[0].active.lora_A.is_meta
    assert torch.equal(model(x), expected)
    assert model[0].active.lora_A.is_meta
