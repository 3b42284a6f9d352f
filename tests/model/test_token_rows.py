"""trainable_token_indices: rows of an embedding and of the head tied to it, trained and saved as PEFT's."""

import copy
import json

import peft
import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from fastlora import (
    AdapterError,
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    hot_swap,
    load_pretrained,
    lora_disabled,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from fastlora.layer.token_rows import CHILD, TokenRows
from tests.integrations.architectures import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
IDS = torch.tensor([[3, 9, 5, 3], [7, 2, 9, 9]])
TOKENS = [9, 3]
SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def llama(tied=True, dtype=torch.float64):
    return tiny("Llama", tie_word_embeddings=tied).to(dtype)


def ours(base, tokens=TOKENS):
    config = LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens)
    return moved(apply_lora(base, config))


def theirs(base, tokens=TOKENS):
    config = peft.LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=["q_proj"],
        trainable_token_indices=tokens,
        init_lora_weights="gaussian",
    )
    return moved(peft.get_peft_model(base, config))


def moved(model):
    """The model with B and the rows of the adapter in use away from their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "tokens_delta" in name):
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def same(left, right):
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_pefts_file_gives_pefts_outputs_and_gradients_and_comes_back(tied, dtype, tmp_path):
    tokens = TOKENS if tied else {"embed_tokens": TOKENS, "lm_head": [4, 1, 9]}
    base = llama(tied, dtype)
    stock = theirs(copy.deepcopy(base), tokens)
    stock.save_pretrained(str(tmp_path / "theirs"))
    model = load_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    assert not torch.allclose(logits(model), logits(base))
    same(logits(model), logits(stock))
    found = []
    for each in (model, stock):
        each.train()(input_ids=IDS, labels=IDS).loss.backward()
        grads = {own: p.grad for own, p in each.named_parameters() if p.requires_grad}
        found.append([grads[own] for own in sorted(grads, key=lambda own: own.split("model.")[-1])])
    assert len(found[0]) == len(found[1]) > 2
    norms = [sorted(float(each.norm()) for each in side) for side in found]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]))
    rows = next(own for own in model.modules() if isinstance(own, TokenRows))
    delta = next(p for own, p in stock.named_parameters() if own.endswith("tokens_delta.default"))
    same(rows.trainable_tokens_delta.grad, delta.grad)
    save_pretrained(model.eval(), tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"]["embed_tokens"] == TOKENS
    assert config["modules_to_save"] is None
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    same(logits(again), logits(model))


def test_training_moves_the_rows_alone_and_switching_off_is_the_base_exactly():
    base = llama()
    model = ours(copy.deepcopy(base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = {name.rpartition(".")[2] for name in changed}
    assert kinds == {"lora_A", "lora_B", "trainable_tokens_delta"}
    with lora_disabled(model.eval()):
        assert torch.equal(logits(model), logits(base))
    assert not torch.equal(logits(model), logits(base))


def test_each_adapter_has_rows_of_its_own_which_start_as_w_s(tmp_path):
    base = llama()
    model = apply_lora(copy.deepcopy(base), LoRAConfig(r=2, target_modules=["q_proj"]))
    moved(model)
    plain = logits(model)
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=TOKENS))
    same(logits(model), plain)
    with use_adapter(model, "fr"):
        same(logits(model), logits(base))
        moved(model)
        trained = logits(model)
        rows = model.model.embed_tokens.token_adapter.trainable_tokens_delta
        assert rows.requires_grad
    same(logits(model), plain)
    assert not model.model.embed_tokens.token_adapter.trainable_tokens_delta.requires_grad
    save_pretrained(model, tmp_path)
    fresh = load_pretrained(copy.deepcopy(base), tmp_path)
    same(logits(fresh), plain)
    load_pretrained(fresh, tmp_path / "fr", name="fr")
    set_adapter(fresh, "fr")
    same(logits(fresh), trained)


def test_a_file_without_rows_beside_an_adapter_with_rows_takes_w_s(tmp_path):
    base = llama()
    plain = moved(apply_lora(copy.deepcopy(base), LoRAConfig(r=2, target_modules=["q_proj"])))
    save_pretrained(plain, tmp_path)
    model = load_pretrained(ours(copy.deepcopy(base)), tmp_path, name="plain")
    set_adapter(model, "plain")
    same(logits(model), logits(plain))
    assert not model.model.embed_tokens.token_adapter.trainable_tokens_delta.requires_grad


def test_merging_keeps_the_rows_and_removing_writes_them_or_not():
    base = llama()
    model = ours(copy.deepcopy(base))
    wanted = logits(model)
    merge_lora(model)
    same(logits(model), wanted)
    unmerge_lora(model)
    assert torch.equal(logits(model), wanted)
    merged = remove_lora(copy.deepcopy(model), merge=True)
    same(logits(merged), wanted)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not torch.equal(merged.lm_head.weight[9], base.lm_head.weight[9])
    plain = remove_lora(model)
    assert torch.equal(logits(plain), logits(base))
    for each in (merged, plain):
        assert each.state_dict().keys() == base.state_dict().keys()
        assert not any(module._forward_hooks for module in (each.lm_head, each.model.embed_tokens))


def test_copies_and_other_orders_of_the_tokens_are_the_same_model(tmp_path):
    base = llama()
    model = ours(copy.deepcopy(base))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    save_pretrained(model, tmp_path)
    same(logits(load_pretrained(ours(copy.deepcopy(base), TOKENS[::-1]), tmp_path)), logits(model))


def test_a_scaled_embedding_and_a_trained_padding_token_are_as_in_peft(tmp_path):
    config = Gemma3TextConfig(**SIZES, pad_token_id=0, head_dim=8)
    base = Gemma3ForCausalLM(config).double().eval()
    stock = theirs(copy.deepcopy(base), [0, 9])
    stock.save_pretrained(str(tmp_path))
    model = load_pretrained(copy.deepcopy(base), tmp_path)
    ids = torch.tensor([[3, 9, 0, 5]])
    same(logits(model, ids), logits(stock, ids))
    assert not torch.allclose(logits(model, ids), logits(base, ids))
    for each in (model, stock):
        each(input_ids=ids, labels=ids).loss.backward()
    ours_, stocks = (
        next(p.grad for name, p in each.named_parameters() if "tokens_delta" in name)
        for each in (model, stock)
    )
    same(ours_, stocks)


def test_half_precision_rows_are_kept_in_fp32():
    model = ours(llama(dtype=torch.bfloat16))
    rows = model.model.embed_tokens.token_adapter.trainable_tokens_delta
    assert rows.dtype == torch.float32
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_token_indices": [99999]}, "must have different tokens from 0 to"),
        ({"trainable_token_indices": {"q_proj": [1]}}, "must name one module by 'q_proj'"),
        ({"trainable_token_indices": {"model.norm": [1]}}, "must be exactly an nn.Linear"),
        ({"trainable_token_indices": {"embeded": [1]}}, "must match a module"),
        ({"trainable_token_indices": [1], "target_modules": ["q_proj", "embed_tokens"]}, "must not overlap"),
        ({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}, "must be the same for modules"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name_and_nothing_changes(options, message):
    base = llama()
    before = base.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        apply_lora(base, LoRAConfig(**{"r": 2, "target_modules": ["q_proj"], **options}))
    assert base.state_dict().keys() == before.keys()
    assert not any(isinstance(module, TokenRows) or module._forward_hooks for module in base.modules())


@pytest.mark.parametrize(
    "tokens", [[], [1, 1], [-1], [True], ["a"], "ab", 3, {}, {"": [1]}, {"x": []}], ids=str
)
def test_tokens_must_be_different_ints(tokens):
    with pytest.raises((TypeError, ValueError), match="trainable_token_indices must"):
        LoRAConfig(trainable_token_indices=tokens)


def test_modules_in_full_have_no_rows_and_rows_are_the_same_tokens_for_all_adapters(tmp_path):
    untied = llama(tied=False)
    with pytest.raises(ValueError, match="must not overlap"):
        apply_lora(
            untied,
            LoRAConfig(
                target_modules=["q_proj"], modules_to_save=["embed_tokens"], trainable_token_indices=[1]
            ),
        )
    model = ours(llama())
    with pytest.raises(ValueError, match="must have the tokens that the model's adapters have"):
        add_adapter(model, "fr", LoRAConfig(target_modules=["q_proj"], trainable_token_indices=[4]))
    with pytest.raises(ValueError, match="rows of tokens are those"), adapter_batch(model, ["default", None]):
        pass
    with pytest.raises(ValueError, match="must come before apply_lora"):
        model.resize_token_embeddings(500)
    plain = apply_lora(llama(), LoRAConfig(r=2, target_modules=["q_proj"]))
    save_pretrained(plain, tmp_path)
    with pytest.raises(AdapterError, match="must hold the rows of tokens"):
        load_pretrained(model, tmp_path)
    with pytest.raises(AdapterError, match="beside rows of tokens"):
        hot_swap(model, tmp_path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([9], "a row for each token"), (None, "a row for each token"), ("ab", "different ints")],
)
@pytest.mark.filterwarnings("ignore:.*was changed after:UserWarning")
def test_damaged_files_are_refused(tokens, message, tmp_path):
    save_pretrained(ours(llama()), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "trainable_token_indices": tokens}))
    with pytest.raises(AdapterError, match=message):
        load_pretrained(llama(), tmp_path)


def test_training_with_checkpointing_and_compiled_agrees():
    model = ours(llama(dtype=torch.float32))
    wanted = logits(model)
    embedding = model.model.embed_tokens
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    same(compiled(IDS), embedding(IDS))
    model.gradient_checkpointing_enable()
    model.train()
    logits(model).sum().backward()
    assert getattr(embedding, CHILD).trainable_tokens_delta.grad.norm() > 0
    same(logits(model.eval()), wanted)


def test_an_embedding_outside_transformers_is_found_by_its_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.out = nn.Embedding(12, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.out(self.embed_tokens(ids))

    net = Net()
    model = apply_lora(copy.deepcopy(net), LoRAConfig(r=2, trainable_token_indices=[5]))
    moved(model)
    ids = torch.tensor([5, 1])
    assert torch.equal(model.embed_tokens(ids)[1], net.embed_tokens(ids)[1])
    assert torch.equal(model.embed_tokens(ids)[0], model.embed_tokens.token_adapter.trainable_tokens_delta[0])
