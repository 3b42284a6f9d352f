"""The new head of a Transformers model is trained in full and saved, as PEFT does it for a task."""

import copy
import json

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fastlora import (
    LoRAConfig,
    add_adapter,
    apply_lora,
    load_pretrained,
    lora_layers,
    remove_lora,
    save_pretrained,
)
from fastlora.model.modules_to_save import saved_modules
from tests.models import TiedLM, with_update

# PEFT 0.21 asks for what Transformers 5 calls otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}
DISTILBERT = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "vocab_size": 20}
VIT = {**BERT, "image_size": 8, "patch_size": 4}
DEBERTA = {**BERT, "pooler_hidden_size": 8}

# Class, its config, the heads, and what stands in the file as task_type.
CASES = {
    "BertForSequenceClassification": (BERT, {"classifier"}, "SEQ_CLS"),
    "BertForTokenClassification": (BERT, {"classifier"}, "TOKEN_CLS"),
    "BertForQuestionAnswering": (BERT, {"qa_outputs"}, "QUESTION_ANS"),
    "BertForMultipleChoice": (BERT, {"classifier"}, None),
    "RobertaForSequenceClassification": (BERT, {"classifier"}, "SEQ_CLS"),
    "DistilBertForSequenceClassification": (DISTILBERT, {"pre_classifier", "classifier"}, "SEQ_CLS"),
    "DebertaV2ForSequenceClassification": (DEBERTA, {"pooler", "classifier"}, "SEQ_CLS"),
    "ViTForImageClassification": (VIT, {"classifier"}, None),
    "CLIPForImageClassification": (None, {"classifier"}, None),
}
TOKENS = torch.tensor([[3, 5, 7, 9]])


def build(name, options=BERT):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    if options is None:
        options = {"vision_config": {**VIT, "projection_dim": 8}}
    return cls(cls.config_class(**options)).eval()


def heads(model):
    return {name for name, _ in saved_modules(model)}


def perturbed(model):
    """Every trained parameter moved, as training would."""
    with_update(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_head_that_is_new_for_the_task_is_trained_in_full_and_saved(name, tmp_path):
    options, wanted, task = CASES[name]
    model = apply_lora(build(name, options), LoRAConfig(r=2))
    assert heads(model) == wanted
    for head in wanted:
        assert all(parameter.requires_grad for parameter in model.get_submodule(head).parameters())
        assert not any(name.startswith(head) for name, _ in lora_layers(model))
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == task
    assert len(config["modules_to_save"]) == len(wanted)


@pytest.mark.parametrize("name", [name for name, (*_, task) in CASES.items() if task is not None])
def test_peft_and_we_read_the_whole_model_back(name, tmp_path):
    options, *_ = CASES[name]
    base = build(name, options)
    model = perturbed(apply_lora(copy.deepcopy(base), LoRAConfig(r=2)))
    save_pretrained(model, tmp_path)
    fresh = build(name, options)
    for head in heads(model):  # another random head, as from_pretrained makes it
        for parameter in fresh.get_submodule(head).parameters():
            nn.init.normal_(parameter)
    peft = PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path)
    ours = load_pretrained(fresh, tmp_path)
    with torch.no_grad():
        wanted = model(TOKENS)[0]
        assert torch.equal(ours(TOKENS)[0], wanted)
        torch.testing.assert_close(peft(TOKENS)[0], wanted)


@pytest.mark.parametrize("targets", ["all-linear", ["query", "value"], ["dense"]], ids=str)
def test_pefts_trainable_parameters_are_ours_whatever_the_targets(targets):
    name = "RobertaForSequenceClassification"
    peft = get_peft_model(build(name), LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS"))
    ours = apply_lora(build(name), LoRAConfig(r=2, target_modules=targets))
    count = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    if targets == "all-linear":  # PEFT takes these into its targets and trains them in full, doing nothing
        peft_count = sum(p.numel() for n, p in peft.named_parameters() if p.requires_grad)
        assert count <= peft_count
    else:
        assert count == sum(parameter.numel() for parameter in peft.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("task", "head"),
    [
        *[(task, head) for task in ("SEQ_CLS", "TOKEN_CLS") for head in ("classifier", "score")],
        ("QUESTION_ANS", "qa_outputs"),
    ],
)
def test_a_named_task_finds_its_head_by_name_in_any_model(task, head):
    model = nn.ModuleDict({"body": nn.Linear(3, 3), head: nn.Linear(3, 2), f"pre_{head}": nn.Tanh()})
    assert heads(apply_lora(model, LoRAConfig(r=2, task_type=task))) == {head}


def test_of_heads_in_one_another_the_outermost_is_trained():
    inner = nn.ModuleDict({"score": nn.Linear(3, 2), "norm": nn.LayerNorm(3)})
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "classifier": inner})
    assert heads(apply_lora(model, LoRAConfig(r=2, task_type="SEQ_CLS"))) == {"classifier"}


def test_a_head_with_a_weight_of_the_body_is_refused():
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "classifier": nn.Linear(3, 3)})
    model["classifier"].weight = model["body"].weight
    with pytest.raises(ValueError, match=r"'classifier' shares one with 'body\.weight'"):
        apply_lora(model, LoRAConfig(r=2, task_type="SEQ_CLS"))
    assert not list(lora_layers(model))
    assert model["body"].weight.requires_grad


def test_a_subclass_a_wrapper_and_a_part_count_as_well(tmp_path):
    class Mine(transformers.BertForSequenceClassification):
        pass

    mine = Mine(transformers.BertConfig(**BERT))
    assert heads(apply_lora(nn.DataParallel(mine), LoRAConfig(r=2))) == {"classifier"}
    part = nn.ModuleDict({"reader": build("BertForQuestionAnswering")})
    assert heads(apply_lora(part, LoRAConfig(r=2))) == {"reader.qa_outputs"}


def test_feature_extraction_leaves_the_head_to_the_targets(tmp_path):
    config = LoRAConfig(r=2, target_modules=["classifier"], task_type="FEATURE_EXTRACTION")
    model = apply_lora(build("BertForSequenceClassification"), config)
    assert not heads(model)
    assert [name for name, _ in lora_layers(model)] == ["classifier"]
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    with pytest.raises(
        ValueError, match=r"task_type 'SEQ_CLS' needs its head in the file.*'classifier' would"
    ):
        save_pretrained(model, tmp_path, task_type="SEQ_CLS")


def test_a_head_with_lora_is_left_to_it():
    config = LoRAConfig(r=2, target_modules=["classifier"], task_type="FEATURE_EXTRACTION")
    model = apply_lora(build("BertForSequenceClassification"), config)
    apply_lora(model, LoRAConfig(r=2, target_modules=["query"]))
    assert not heads(model)


def test_a_task_that_only_the_class_tells_is_not_written_without_its_head(tmp_path):
    config = LoRAConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    save_pretrained(apply_lora(build("BertForSequenceClassification"), config), tmp_path)
    save_pretrained(load_pretrained(build("BertForSequenceClassification"), tmp_path), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None


def test_no_task_is_written_for_a_model_that_pefts_of_that_task_could_not_call(tmp_path):
    class Sounds(transformers.BertForSequenceClassification):
        main_input_name = "input_values"

    save_pretrained(apply_lora(Sounds(transformers.BertConfig(**BERT)), LoRAConfig(r=2)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None


def test_targets_that_are_only_the_head_are_refused():
    with pytest.raises(ValueError, match=r"besides the model's new head.*'classifier'.*FEATURE_EXTRACTION"):
        apply_lora(build("BertForSequenceClassification"), LoRAConfig(target_modules=["classifier"]))


def test_a_further_adapter_leaves_the_head_as_it_is():
    model = apply_lora(build("BertForSequenceClassification"), LoRAConfig(r=2))
    add_adapter(model, "fr", LoRAConfig(r=2))
    assert type(model.classifier) is nn.Linear
    add_adapter(model, "de", LoRAConfig(r=2, target_modules=["query", "classifier"], task_type="SEQ_CLS"))
    assert type(model.classifier) is nn.Linear


def test_the_named_task_is_remembered_until_lora_is_removed(tmp_path):
    model = apply_lora(TiedLM(), LoRAConfig(r=2, task_type="CAUSAL_LM"))
    save_pretrained(copy.deepcopy(model), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    remove_lora(model)
    save_pretrained(apply_lora(model, LoRAConfig(r=2)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None


def test_a_task_without_a_known_head_is_named():
    with pytest.warns(UserWarning, match=r"no head is known by its name in this TiedLM.*modules_to_save"):
        apply_lora(TiedLM(), LoRAConfig(r=2, task_type="SEQ_CLS"))


def test_a_task_that_peft_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"task_type must be one of SEQ_CLS, .* or None; got 'CLS'"):
        LoRAConfig(task_type="CLS")


def test_nobodys_head_stays_a_target():
    class MineForSequenceClassification(nn.ModuleDict):
        pass

    model = MineForSequenceClassification({"body": nn.Linear(3, 3), "classifier": nn.Linear(3, 2)})
    assert [name for name, _ in lora_layers(apply_lora(model, LoRAConfig(r=2)))] == ["body", "classifier"]
