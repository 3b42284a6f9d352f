"""PEFT reads what we write, and we read what PEFT writes: the same tensors, the same outputs."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    add_adapter,
    apply_lora,
    load_pretrained,
    lora_layers,
    save_pretrained,
    set_adapter,
)
from fastlora.layer.adapter import adapters_of
from fastlora.measuring.errors import assert_within_budget
from fastlora.model.modules_to_save import saved_modules
from tests.models import Block, mlp, with_update

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PATTERNS = {
    "target_modules": ["q_proj", "v_proj", "mlp.0"],
    "rank_pattern": {"v_proj": 3, r"^mlp\.0": 5},
    "alpha_pattern": {"attn.v_proj": 7},
}
CASES = {
    "plain": {},
    "rslora": {"rslora": True, "alpha": 5},
    "patterns": PATTERNS,
    "one layer": {"target_modules": ["mlp.2"], "init": "kaiming", "dropout": 0.25},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["mlp.2", "norm"]},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def options(request):
    return {"r": 2, "alpha": 3, **request.param}


def ours(base, options):
    """A model of ours whose update, and whose modules to save, are not at their start."""
    model = with_update(apply_lora(copy.deepcopy(base), LoRAConfig(**options)))
    for _, module in saved_modules(model):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return model.eval()


def theirs(base, options, **more):
    """The same in PEFT."""
    names = {"alpha": "lora_alpha", "rslora": "use_rslora", "dropout": "lora_dropout"}
    given = {names.get(key, key): value for key, value in options.items() if key != "init"}
    given.setdefault("target_modules", ["q_proj", "k_proj", "v_proj", "mlp.0", "mlp.2"])
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**given, **more))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter)
    return model.eval()


def config_of(directory):
    return json.loads((directory / "adapter_config.json").read_text())


def tensors_of(directory):
    return load_file(directory / "adapter_model.safetensors")


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key


@torch.no_grad()
def assert_same_function(model, other, x):
    truth = copy.deepcopy(other).double()(x.double())
    assert_within_budget("y", model(x), other(x), truth)


def test_peft_computes_what_our_files_say(options, tmp_path):
    base, x = Block(), torch.randn(7, 4)
    model = ours(base, options)
    save_pretrained(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_function(model, loaded, x)
    assert not torch.equal(model(x), base(x))
    loaded.save_pretrained(tmp_path / "theirs")
    assert_same_tensors(tensors_of(tmp_path), tensors_of(tmp_path / "theirs"))
    ours_said, theirs_say = config_of(tmp_path), config_of(tmp_path / "theirs")
    for key in ("target_modules", "modules_to_save"):
        theirs_say[key] = sorted(theirs_say[key]) if theirs_say[key] else theirs_say[key]
    assert ours_said == theirs_say


def test_we_compute_what_pefts_files_say(options, tmp_path):
    base, x = Block(), torch.randn(7, 4)
    model = theirs(base, options)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_function(loaded, model, x)
    assert not torch.equal(loaded(x), base(x))
    save_pretrained(loaded, tmp_path / "ours")
    assert_same_tensors(tensors_of(tmp_path), tensors_of(tmp_path / "ours"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_on_a_half_precision_base_keep_their_bits(dtype, tmp_path):
    base, x = Block().to(dtype), torch.randn(7, 4, dtype=dtype)
    model = theirs(base, {"r": 2, "alpha": 3})
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(copy.deepcopy(base), tmp_path)
    assert {layer.lora_A.dtype for _, layer in lora_layers(loaded)} == {torch.float32}
    assert_same_function(loaded.eval(), model, x)
    save_pretrained(loaded, tmp_path / "ours")
    assert_same_tensors(tensors_of(tmp_path), tensors_of(tmp_path / "ours"))


def test_named_adapters_lie_in_sub_directories_as_pefts_do(tmp_path):
    base, x = Block(), torch.randn(7, 4)
    model = ours(base, {"r": 2})
    add_adapter(model, "fr", LoRAConfig(r=3, target_modules=["q_proj"]))
    for _, layer in lora_layers(model):
        if "fr" in adapters_of(layer):
            nn.init.normal_(adapters_of(layer)["fr"][1])
    save_pretrained(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "fr",
    ]
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    loaded.load_adapter(tmp_path / "fr", adapter_name="fr")
    again = load_pretrained(copy.deepcopy(base), tmp_path)
    load_pretrained(again, tmp_path / "fr", name="fr")
    for name in ("fr", "default"):
        set_adapter(model, name)
        set_adapter(again, name)
        loaded.set_adapter(name)
        assert torch.equal(again(x), model(x))
        assert_same_function(model.eval(), loaded.eval(), x)
    loaded.save_pretrained(tmp_path / "theirs")
    for folder in ("", "fr"):
        assert_same_tensors(tensors_of(tmp_path / folder), tensors_of(tmp_path / "theirs" / folder))


def test_layers_with_and_without_rslora_are_told_to_peft_by_their_alpha(tmp_path):
    base, x = Block(), torch.randn(7, 4)
    model = ours(base, {"r": 4, "alpha": 3, "rslora": True, "target_modules": ["q_proj"]})
    with_update(apply_lora(model, LoRAConfig(r=2, alpha=3, target_modules=["v_proj"]))).eval()
    save_pretrained(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_same_function(model, loaded, x)
    assert [layer.scaling for _, layer in lora_layers(model)] == [1.5, 1.5]


def test_different_dropout_is_written_as_the_largest_with_a_warning(tmp_path):
    model = ours(Block(), {"r": 2, "dropout": 0.1, "target_modules": ["q_proj"]})
    apply_lora(model, LoRAConfig(r=2, dropout=0.25, target_modules=["v_proj"]))
    with pytest.warns(UserWarning, match=r"layers have different dropout, 0.1, 0.25.*loaded with 0.25"):
        save_pretrained(model, tmp_path)
    assert config_of(tmp_path)["lora_dropout"] == 0.25


def test_what_peft_trains_further_we_read_again(tmp_path):
    base, x = Block(), torch.randn(7, 4)
    save_pretrained(ours(base, CASES["saved"]), tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "further")
    loaded = load_pretrained(copy.deepcopy(base), tmp_path / "further")
    assert_same_function(loaded, model, x)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ],
)
def test_what_peft_saves_and_we_do_not_run_is_refused_by_its_key(options, key, tmp_path):
    base = Block()
    theirs(base, {"r": 2}, **options).save_pretrained(tmp_path)
    before = copy.deepcopy(base.state_dict())
    modules = list(base.modules())
    with pytest.raises(AdapterError, match=rf"adapter_config.json: {key} "):
        load_pretrained(base, tmp_path)
    assert list(base.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_an_embeddings_adapter_is_no_linear_layers(tmp_path):
    base = nn.ModuleDict({"tokens": nn.Embedding(7, 4), "fc": nn.Linear(4, 4)})
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["tokens", "fc"]))
    model.save_pretrained(tmp_path)
    fresh = nn.ModuleDict({"tokens": nn.Linear(7, 4), "fc": nn.Linear(4, 4)})
    with pytest.raises(AdapterError, match="'tokens' must be an embedding, as in the file; it is a Linear"):
        load_pretrained(fresh, tmp_path)
    assert type(fresh["fc"]) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*groups > 1")
def test_an_adapter_of_a_convolution_with_groups_is_refused(tmp_path):
    base = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 4))
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"target '0' must have groups=1 to take LoRA; it has 2"):
        load_pretrained(base, tmp_path)
    assert type(base[2]) is nn.Linear


def tiny_llama():
    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_transformers_load_adapter_takes_our_directory(tmp_path):
    base, tokens = tiny_llama(), torch.arange(10)[None]
    model = ours(base, {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]})
    save_pretrained(model, tmp_path, task_type="CAUSAL_LM")
    other = copy.deepcopy(base)
    other.load_adapter(str(tmp_path))
    with torch.no_grad():
        truth = copy.deepcopy(other).double()(tokens).logits
        assert_within_budget("logits", model(tokens).logits, other(tokens).logits, truth)
        assert not torch.equal(model(tokens).logits, base(tokens).logits)
    other.save_pretrained(tmp_path / "theirs")
    assert_same_tensors(tensors_of(tmp_path), tensors_of(tmp_path / "theirs"))
    again = load_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_a_transformers_model_is_named_in_the_config(tmp_path):
    base = tiny_llama()
    base.name_or_path = "someone/llama"
    save_pretrained(ours(base, {"r": 2}), tmp_path, task_type="CAUSAL_LM")
    config = config_of(tmp_path)
    assert config["base_model_name_or_path"] == "someone/llama"
    assert (config["task_type"], config["auto_mapping"]) == ("CAUSAL_LM", None)
    save_pretrained(ours(mlp(), {"r": 2}), tmp_path, base_model_name_or_path="someone/mlp")
    config = config_of(tmp_path)
    assert config["base_model_name_or_path"] == "someone/mlp"
    assert config["auto_mapping"] == {
        "base_model_class": "Sequential",
        "parent_library": "torch.nn.modules.container",
    }
