"""Rows of tokens in copies of a model, compiled, from "meta", and for several adapters."""

import pytest
import torch

from fastlora import LoRAConfig, add_adapter, apply_lora, load_pretrained, save_pretrained, set_adapter
from tests.model.test_token_rows import TOKENS, llama, logits, moved, ours


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("tied", [True, False])
def test_compiled_code_sees_rows_that_came_later_or_are_another_models(tied):
    torch.compiler.reset()
    plain = LoRAConfig(r=2, target_modules=["q_proj"])
    model = moved(apply_lora(llama(tied), plain))
    compiled = torch.compile(model, backend="eager")
    before = logits(compiled)
    other = ours(llama(tied))
    assert torch.equal(logits(torch.compile(other, backend="eager")), logits(other))
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS))
    assert torch.equal(logits(compiled), logits(model))
    set_adapter(model, "fr")
    assert not torch.equal(logits(moved(model)), before)
    assert torch.equal(logits(compiled), logits(model))


@pytest.mark.parametrize("assign", [True, False])
def test_from_meta_it_finds_its_tokens_whichever_adapter_is_in_use(assign):
    trained = ours(llama())
    add_adapter(trained, "fr", LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS))
    set_adapter(trained, "fr")
    moved(trained)
    with torch.device("meta"):
        model = llama()
    model = apply_lora(model, LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS))
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS))
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(trained.state_dict(), assign=assign)
    model.tie_weights()
    model.model.rotary_emb = trained.model.rotary_emb  # its buffers are in no state_dict
    model.eval()
    for name in ("fr", "default"):
        set_adapter(trained, name)
        set_adapter(model, name)
        assert torch.equal(logits(model), logits(trained))


@pytest.mark.parametrize("named", ["embed_tokens", "lm_head"])
def test_each_adapter_has_rows_of_any_module_and_files_load_again(tmp_path, named):
    tokens = {named: TOKENS}
    model = ours(llama(tied=False), tokens)
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens))
    set_adapter(model, "fr")
    y = logits(moved(model))
    save_pretrained(model, tmp_path)
    load_pretrained(model, tmp_path / "fr", name="de")
    load_pretrained(model, tmp_path / "fr", name="fr")
    assert torch.equal(logits(model), y)
    set_adapter(model, "de")
    assert torch.equal(logits(model), y)
