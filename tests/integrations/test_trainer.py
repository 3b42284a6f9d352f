"""Training with Transformers' Trainer and TRL's SFTTrainer, against PEFT step by step."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils.data import Dataset

from fastlora import LoRAConfig, apply_lora, lora_layers
from fastlora.integrations.peft import accelerate_peft, forward_counts, register
from fastlora.measuring.errors import assert_within_budget
from tests.integrations.architectures import pair, tiny

pytest.importorskip("accelerate")
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

STEPS = 4
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 7,
}


class Tokens(Dataset):
    """Sequences in which each token is the one before, plus one."""

    def __init__(self, count=16, length=8, vocabulary=61):
        starts = torch.randint(3, vocabulary - length, (count, 1), generator=torch.Generator().manual_seed(0))
        self.rows = starts + torch.arange(length)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Recorded:
    """A trainer that keeps each step's loss in full; what it logs is rounded to four digits."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", ()), loss.item()]
        return loss


class RecordedTrainer(Recorded, Trainer):
    pass


def trained(model, folder, *, resume=None, **options):
    """The loss at each step of a short training."""
    arguments = TrainingArguments(output_dir=str(folder), **{**SETTINGS, **options})
    trainer = RecordedTrainer(model=model, args=arguments, train_dataset=Tokens())
    trainer.train(resume_from_checkpoint=resume)
    return torch.tensor(trainer.losses, dtype=torch.float64)


def test_losses_match_pefts_step_by_step(tmp_path):
    ours, stock = pair("Llama")
    rounded = trained(copy.deepcopy(stock), tmp_path)
    stock.double()
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    truth = trained(stock, tmp_path)
    assert len(truth) == STEPS
    assert truth[-1] < truth[0]
    # In fp64, to within what fp32 rounds: training amplifies roundings, each order of sums its own.
    for name, model in (("apply_lora", ours.double()), ("accelerate_peft", fused)):
        assert_within_budget(name, trained(model, tmp_path), rounded, truth)
    assert set(forward_counts(fused)) == {"fused"}


@pytest.mark.parametrize("use_reentrant", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_gradient_checkpointing_in_the_trainer_changes_no_loss(tmp_path, use_reentrant):
    model, _ = pair("Llama")
    for _, layer in lora_layers(model):
        layer.dropout = 0.2
    again = copy.deepcopy(model)
    again.enable_input_require_grads()
    options = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant},
    }
    assert torch.equal(trained(again, tmp_path, **options), trained(model, tmp_path))


@pytest.mark.parametrize("kind", ["apply_lora", "accelerate_peft"])
def test_training_resumes_from_a_checkpoint(tmp_path, kind):
    model, peft_model = pair("Llama")
    if kind == "accelerate_peft":
        model = peft_model
        accelerate_peft(model)
    fresh = copy.deepcopy(model)
    whole = trained(model, tmp_path, save_strategy="steps", save_steps=2)
    for parameter in fresh.parameters():  # what is resumed must come from the checkpoint
        if parameter.requires_grad:
            nn.init.zeros_(parameter)
    resumed = trained(fresh, tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert torch.equal(resumed, whole[2:])
    final = dict(model.named_parameters())
    assert all(torch.equal(p, final[name]) for name, p in fresh.named_parameters())


def tokenizer():
    """One token a word; the words are numbers."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{str(n): n for n in range(3, 61)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def fine_tuned(model, folder, **options):
    """The losses of TRL's SFTTrainer, and the trainer."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    texts = [" ".join(str(n) for n in row.tolist()) for row in Tokens().rows]
    arguments = trl.SFTConfig(output_dir=str(folder), bf16=False, **SETTINGS)
    data = datasets.Dataset.from_dict({"text": texts})
    recorded = type("RecordedSFTTrainer", (Recorded, trl.SFTTrainer), {})
    trainer = recorded(model, args=arguments, train_dataset=data, processing_class=tokenizer(), **options)
    trainer.train()
    return torch.tensor(trainer.losses, dtype=torch.float64), trainer


def test_the_sft_trainer_takes_a_model_with_lora(tmp_path):
    ours, stock = pair("Llama")
    rounded = fine_tuned(copy.deepcopy(stock), tmp_path)[0]
    truth = fine_tuned(stock.double(), tmp_path)[0]
    assert truth.unique().numel() == len(truth) == STEPS
    assert_within_budget("loss", fine_tuned(ours.double(), tmp_path)[0], rounded, truth)


def test_the_sft_trainer_takes_a_registered_config(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    losses, trainer = fine_tuned(tiny("Llama"), tmp_path, peft_config=register(config))
    assert losses.unique().numel() == len(losses) == STEPS
    assert set(forward_counts(trainer.model)) == {"fused"}


def test_the_sft_trainers_unused_head_is_named(tmp_path):
    model = apply_lora(tiny("Llama"), LoRAConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.warns(UserWarning, match=r"updates of 'lm_head' \(not used by the loss\), which"):
        fine_tuned(model, tmp_path)
    layers = dict(lora_layers(model))
    assert not layers.pop("lm_head").lora_B.any()  # so TRL reads the weight itself still
    assert all(layer.lora_B.any() for layer in layers.values())
