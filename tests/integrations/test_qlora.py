"""QLoRA as people run it: a Llama in 4 bits, trained by Trainer and SFTTrainer, saved, read and merged."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, load_pretrained, lora_layers, remove_lora, save_pretrained
from fastlora.integrations.peft import accelerate_peft, forward_counts, register
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.measuring.errors import assert_within_budget
from tests.integrations.architectures import tiny
from tests.integrations.test_trainer import STEPS, fine_tuned, trained
from tests.models import with_update

pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, LlamaForCausalLM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    # bitsandbytes' own, in its CPU inference layout and its imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes"),
]
exhaustive = pytest.mark.exhaustive
HALF = torch.bfloat16
TOKENS = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
LINEAR = 7 * 2  # q, k, v, o, gate, up and down of two blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama on disk, as a hub would have it."""
    path = tmp_path_factory.mktemp("llama")
    # Rows of whole blocks: where they are not, bitsandbytes itself errs on a CPU with AVX512.
    tiny("Llama", hidden_size=64, intermediate_size=128).save_pretrained(path)
    return path


def loaded(folder, dtype=torch.float32, **options):
    """The model in NF4, nested, as the QLoRA paper has it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        **options,
    )
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype).train()


def pair(folder, dtype=torch.float32, r=4):
    """Ours and PEFT's over the same packed base, with the same A and B."""
    base = loaded(folder, dtype)
    ours = apply_lora(copy.deepcopy(base), LoRAConfig(r=r, alpha=8))
    config = LoraConfig(r=r, lora_alpha=8, target_modules=[name for name, _ in lora_layers(ours)])
    theirs = get_peft_model(base, config)
    with torch.no_grad():
        for name, layer in lora_layers(ours):
            other = theirs.base_model.model.get_submodule(name)
            layer.lora_A.copy_(other.lora_A["default"].weight)
    return ours, theirs


def test_all_linear_reaches_every_packed_layer_and_the_head_stays(folder):
    model = apply_lora(loaded(folder), LoRAConfig(r=2))
    assert [type(layer).__name__ for _, layer in lora_layers(model)] == ["FusedLoRALinear4bit"] * LINEAR
    assert type(model.lm_head) is nn.Linear


def unpacked(model):
    """The same model in fp64, its packed layers plain, with the same A and B."""
    plain = copy.deepcopy(model)
    for _, layer in lora_layers(plain):
        nn.init.zeros_(layer.lora_B)
    with pytest.warns(UserWarning, match="packed layers"):
        plain = remove_lora(plain, merge=True)
    for owner in (plain, plain.config):  # what Transformers goes by
        for name in ("quantization_method", "is_quantized", "is_loaded_in_4bit", "quantization_config"):
            vars(owner).pop(name, None)
    plain = apply_lora(plain.double(), LoRAConfig(r=next(lora_layers(model))[1].r, alpha=8))
    for (_, layer), (_, own) in zip(lora_layers(plain), lora_layers(model), strict=True):
        layer.adapters.load_state_dict(own.adapters.state_dict())
    return plain


def test_losses_are_pefts_step_by_step(folder, tmp_path):
    ours, theirs = pair(folder)
    fused = copy.deepcopy(theirs)
    assert len(accelerate_peft(fused).fused) == LINEAR
    truth = trained(unpacked(ours), tmp_path)
    stock = trained(theirs, tmp_path)
    assert len(truth) == STEPS
    assert truth[-1] < truth[0]
    for name, model in (("apply_lora", ours), ("accelerate_peft", fused)):
        assert_within_budget(name, trained(model, tmp_path).float(), stock, truth)
    assert set(forward_counts(fused)) == {"fused"}


def test_an_adapter_is_read_by_peft_and_gives_the_same_tokens(folder, tmp_path):
    model = with_update(apply_lora(loaded(folder), LoRAConfig(r=4, alpha=8)))
    save_pretrained(model, tmp_path)
    stock = PeftModel.from_pretrained(loaded(folder), tmp_path).train()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, stock(TOKENS).logits)
    again = load_pretrained(loaded(folder), tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    with pytest.warns(UserWarning, match="merging 14 packed layers makes them plain"):
        merged = remove_lora(copy.deepcopy(model), merge=True)
    assert not any(isinstance(module, QuantizedLoRALinear) for module in merged.modules())
    with torch.no_grad():
        assert torch.equal(merged(TOKENS).logits.argmax(-1), stock(TOKENS).logits.argmax(-1))


@exhaustive
def test_a_checkpoint_of_the_trainer_resumes(folder, tmp_path):
    model = apply_lora(loaded(folder), LoRAConfig(r=2))
    fresh = copy.deepcopy(model)
    whole = trained(model, tmp_path / "run", save_strategy="steps", save_steps=STEPS // 2)
    rest = trained(fresh, tmp_path / "again", resume=str(tmp_path / "run" / f"checkpoint-{STEPS // 2}"))
    assert torch.equal(rest, whole[STEPS // 2 :])


@exhaustive
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_loss(folder, tmp_path, use_reentrant):
    model = apply_lora(loaded(folder), LoRAConfig(r=2, dropout=0.2))
    again = copy.deepcopy(model)
    options = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant},
    }
    assert torch.equal(trained(again, tmp_path, **options), trained(model, tmp_path))


@exhaustive
def test_the_sft_trainer_takes_both_ways(folder, tmp_path):
    """TRL makes the adapters of a quantized PEFT model bf16."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")

    def losses(model, **options):
        torch.manual_seed(0)
        found, trainer = fine_tuned(model, tmp_path, **options)
        return found.to(HALF), trainer

    truth, _ = losses(loaded(folder), peft_config=copy.deepcopy(config))
    stock, _ = losses(loaded(folder, HALF), peft_config=copy.deepcopy(config))
    fused, trainer = losses(loaded(folder, HALF), peft_config=register(config))
    assert set(forward_counts(trainer.model)) == {"fused"}
    assert_within_budget("register", fused, stock, truth)
    torch.manual_seed(0)
    ours, _ = losses(apply_lora(loaded(folder, HALF), LoRAConfig(r=4, alpha=8)))
    assert ours.unique().numel() > 1


def test_a_model_that_has_run_in_eval_is_refused_or_untouched(folder):
    """Untouched where this CPU has no AVX512-BF16: bitsandbytes repacks nothing there."""
    model = loaded(folder).eval()
    with torch.no_grad():
        model(TOKENS)
    repacked = any(
        getattr(module.weight.quant_state, "packing_format_for_cpu", False)
        for module in model.modules()
        if type(module).__name__ == "Linear4bit"
    )
    if repacked:
        with pytest.raises(ValueError, match="it has run in eval mode on this CPU"):
            apply_lora(model, LoRAConfig(r=2))
    else:
        apply_lora(model, LoRAConfig(r=2))


def test_saving_the_whole_model_keeps_the_librarys_format(folder, tmp_path):
    model = loaded(folder)
    wanted = model(TOKENS).logits
    remove_lora(apply_lora(model, LoRAConfig(r=2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        again = LlamaForCausalLM.from_pretrained(tmp_path).train()
    assert torch.equal(again(TOKENS).logits, wanted)
