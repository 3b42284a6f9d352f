"""LoRA on an embedding: numbers, padding and scale, merging, states, adapters, files and what is refused."""

import copy
import pickle

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    delete_adapter,
    explain,
    load_pretrained,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    unmerge_lora,
)
from fastlora.integrations.peft import accelerate_peft
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from tests.integrations.architectures import tiny

IDS = torch.tensor([[1, 4, 0, 1], [2, 2, 5, 6]])
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`",
    "ignore:Could not identify",
    "ignore:.*is deprecated and will be removed:FutureWarning",
)


class Net(nn.Module):
    def __init__(self, scaled=False):
        super().__init__()
        gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
        kind = gemma.Gemma3TextScaledWordEmbedding
        self.embed_tokens = kind(7, 6, 0, 2.5) if scaled else nn.Embedding(7, 6, padding_idx=0)
        self.head = nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.embed_tokens(ids))


def moved(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model


def ours(base, **options):
    config = {"r": 2, "alpha": 3.0, "target_modules": ["embed_tokens", "head"], **options}
    return moved(apply_lora(copy.deepcopy(base), LoRAConfig(**config)))


def gradients(model):
    model.zero_grad()
    model(IDS).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_gradients_and_files_are_pefts(tmp_path, scaled, dtype):
    torch.manual_seed(0)
    base = Net(scaled).to(dtype)
    model = ours(base)
    assert isinstance(model.embed_tokens, FusedLoRAEmbedding)
    assert isinstance(model.embed_tokens, type(base.embed_tokens))
    save_pretrained(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(
        copy.deepcopy(base), str(tmp_path), is_trainable=True, autocast_adapter_dtype=False
    )
    torch.testing.assert_close(theirs(IDS), model(IDS))
    own, stock = gradients(model), gradients(theirs)
    A = own["embed_tokens.adapters.default.lora_A"]
    torch.testing.assert_close(A, stock["base_model.model.embed_tokens.lora_embedding_A.default"])
    assert not A[:, 0].any()  # the padding
    assert A[:, 1].any()
    B = own["embed_tokens.adapters.default.lora_B"]
    torch.testing.assert_close(B, stock["base_model.model.embed_tokens.lora_embedding_B.default"])
    theirs.save_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(load_pretrained(copy.deepcopy(base), tmp_path / "again")(IDS), model(IDS))
    assert accelerate_peft(theirs).kept == {
        "base_model.model.embed_tokens": "it is a peft.tuners.lora.layer.Embedding, not a "
        "peft.tuners.lora.Linear"
    }


@pytest.mark.parametrize("scaled", [False, True])
def test_a_new_update_is_zero_and_merging_states_and_copies_keep_it(scaled):
    torch.manual_seed(0)
    base = Net(scaled)
    fresh = apply_lora(copy.deepcopy(base), LoRAConfig(r=2, target_modules=["embed_tokens"]))
    assert torch.equal(fresh(IDS), base(IDS))
    assert fresh.embed_tokens.lora_B.any()
    assert not fresh.embed_tokens.lora_A.any()
    model = ours(base)
    y, W = model(IDS), model.embed_tokens.weight.clone()
    merge_lora(model)
    torch.testing.assert_close(model(IDS), y)
    layer = model.embed_tokens
    layer.enabled = False
    torch.testing.assert_close(layer(IDS), base.embed_tokens(IDS))
    assert torch.equal(layer.effective_weight(), W)
    layer.enabled = True
    assert torch.equal(layer.effective_weight(), layer.weight)
    unmerge_lora(model)
    assert torch.equal(layer.weight, W)
    twin = ours(base)
    twin.load_state_dict(model.state_dict())
    for each in (twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(each(IDS), y)
    assert not layer.weight.requires_grad
    plain = remove_lora(model, merge=True)
    assert type(plain.embed_tokens) is type(base.embed_tokens)
    assert plain.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(plain(IDS), y)


def test_adapters_switch_and_are_deleted():
    torch.manual_seed(0)
    model = ours(Net())
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["embed_tokens"]))
    y = model(IDS)
    set_adapter(model, "fr")
    moved(model)
    assert not torch.allclose(model(IDS), y)
    assert not model.embed_tokens.adapters["default"].lora_A.requires_grad
    delete_adapter(model, "default")
    assert type(model.head) is nn.Linear
    set_to_plain = model.embed_tokens.to_linear(merge=False)
    assert type(set_to_plain) is nn.Embedding


def test_a_models_tied_embedding_is_adapted_beside_its_head(tmp_path):
    model = tiny("Llama", tie_word_embeddings=True)
    ids = torch.tensor([[3, 4, 5]])
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        theirs = moved(peft.get_peft_model(copy.deepcopy(model), config))
    theirs.save_pretrained(str(tmp_path))
    found = load_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(found(ids).logits, theirs(ids).logits)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    with pytest.raises(ValueError, match=r"must belong to this layer alone to be merged; it is shared by"):
        merge_lora(found)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
    with pytest.raises(AdapterError, match="must be the model's own, as PEFT writes it beside LoRA"):
        load_pretrained(model, tmp_path)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_an_output_layers_file_has_its_w_which_must_be_the_models(tied, tmp_path):
    model, ids = tiny("Llama", tie_word_embeddings=tied), torch.tensor([[3, 4, 5]])
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"])
    theirs = moved(peft.get_peft_model(copy.deepcopy(model), config))
    theirs.save_pretrained(str(tmp_path))
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    found = load_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(found(ids).logits, theirs(ids).logits)
    save_pretrained(found, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "ours"))
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    with pytest.raises(AdapterError, match="must be the model's own, as PEFT writes it beside LoRA"):
        load_pretrained(model, tmp_path)


@pytest.mark.filterwarnings("ignore:.*tie")
def test_tied_modules_to_save_are_trained_apart_where_one_has_a_copy(tmp_path):
    model, ids = tiny("Llama", tie_word_embeddings=True), torch.tensor([[3, 4, 5]])
    saved = ["embed_tokens", "lm_head"]
    theirs = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved)
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match=r"to train it apart.*module\.weight = nn\.Parameter"):
        load_pretrained(model, tmp_path)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    torch.testing.assert_close(load_pretrained(model, tmp_path)(ids).logits, theirs(ids).logits)


@pytest.mark.filterwarnings("ignore:.*tie")
def test_a_file_that_ties_modules_to_save_is_refused_by_that(tmp_path):
    model = tiny("Llama", tie_word_embeddings=True)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(str(tmp_path))
    with pytest.raises(
        AdapterError, match="ensure_weight_tying is not supported where a module to save is tied"
    ):
        load_pretrained(model, tmp_path)


def test_what_would_compute_something_else_is_refused():
    class Shifted(nn.Embedding):
        pass

    for table, message in (
        (Shifted(3, 2), "must be exactly an nn.Embedding, or one that Transformers scales; got Shifted"),
        (nn.Embedding(3, 2, max_norm=1.0), "without max_norm; got 1.0"),
        (nn.Embedding(3, 2, sparse=True), "without sparse; got True"),
    ):
        with pytest.raises(TypeError, match=message):
            apply_lora(nn.Sequential(table), LoRAConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="dora must be False for an embedding"):
        apply_lora(Net(), LoRAConfig(target_modules=["embed_tokens"], dora=True))
    model = ours(Net())
    with (
        pytest.raises(
            ValueError, match="layers must be linear, no embeddings or convolutions to mix adapters"
        ),
        adapter_batch(model, ["default", "default"]),
    ):
        pass
    with pytest.raises(TypeError, match="layer must be linear; embeddings"):
        explain((4, 7), model.embed_tokens)


@pytest.mark.parametrize("reset", ["reset_adapter", "reset_parameters", "its adapter's reset_parameters"])
def test_reset_it_starts_as_it_did_so_that_padding_has_no_update_yet(reset):
    model = ours(Net())
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["embed_tokens"]))
    set_adapter(model, "fr")
    layer = moved(model).embed_tokens
    getattr(layer if reset.startswith("reset") else layer.active, reset.rpartition(" ")[2])()
    assert not layer.lora_A.any()
    assert layer.lora_B.norm() > 0
