"""Adapters on experts in PEFT's files: written here and read by PEFT, written by PEFT and read here."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import fastlora
from fastlora import AdapterError, LoRAConfig, lora_layers
from tests.experts.mixtures import EXPERTS, adapted, flat, inputs_of, tiny, wrappers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    # PEFT looks for the keys among modules alone when it warns, and among parameters when it uses them.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

CASES = {
    "both": {},
    "one": {"target_parameters": ["down_proj"]},
    "attention too": {"target_modules": ["q_proj", "v_proj"]},
    "ranks": {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"layers.1.mlp.experts.down_proj": 9}},
    "rslora": {"rslora": True},
}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("case", CASES)
def test_peft_reads_what_was_written_here(case, tmp_path):
    model, inputs = tiny(), inputs_of(tiny())
    base = copy.deepcopy(model)
    adapted(model, **CASES[case])
    fastlora.save_pretrained(model, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    for name, wrapper in wrappers(theirs).items():
        A, B = flat(dict(lora_layers(model))[name])
        assert torch.equal(wrapper.lora_A["default"].weight, A)
        assert torch.equal(wrapper.lora_B["default"].weight, B)
    assert not torch.equal(logits(theirs, inputs), logits(tiny(), inputs))
    torch.testing.assert_close(logits(model, inputs), logits(theirs, inputs))


@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote_is_read_here(case, tmp_path):
    options = {"target_parameters": list(EXPERTS), "target_modules": [], **CASES[case]}
    options["use_rslora"] = options.pop("rslora", False)
    theirs = get_peft_model(tiny(), LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **options)).eval()
    theirs.save_pretrained(tmp_path)
    model, inputs = fastlora.load_pretrained(tiny(), tmp_path), inputs_of(tiny())
    assert len(wrappers(theirs)) == sum("experts" in name for name, _ in lora_layers(model))
    for name, wrapper in wrappers(theirs).items():
        A, B = flat(dict(lora_layers(model))[name])
        assert torch.equal(wrapper.lora_A["default"].weight, A)
        assert torch.equal(wrapper.lora_B["default"].weight, B)
    assert not torch.equal(logits(theirs, inputs), logits(tiny(), inputs))
    torch.testing.assert_close(logits(model, inputs), logits(theirs, inputs))
    # Once more, into the layers that are there by now.
    adapted_again = dict(lora_layers(model))["model.layers.0.mlp.experts.down_proj"]
    kept = adapted_again.lora_B.clone()
    torch.nn.init.zeros_(adapted_again.lora_B)
    fastlora.load_pretrained(model, tmp_path)
    assert torch.equal(adapted_again.lora_B, kept)


def test_a_file_alone_a_second_adapter_and_a_hot_swap(tmp_path):
    model, inputs = adapted(tiny()), inputs_of(tiny())
    fastlora.save_adapter(model, tmp_path / "one.safetensors")
    want = logits(model, inputs)
    other = fastlora.load_adapter(tiny(), tmp_path / "one.safetensors")
    assert torch.equal(logits(other, inputs), want)
    fastlora.save_pretrained(model, tmp_path / "small")
    larger = adapted(tiny(), r=5, alpha=10)
    fastlora.load_pretrained(larger, tmp_path / "small", name="second")
    with fastlora.use_adapter(larger, "second"):
        assert torch.equal(logits(larger, inputs), want)
    fastlora.hot_swap(larger, tmp_path / "small")
    torch.testing.assert_close(logits(larger, inputs), want)
    fastlora.save_pretrained(larger, tmp_path / "several")
    again = fastlora.load_pretrained(tiny(), tmp_path / "several" / "second")
    assert torch.equal(logits(again, inputs), want)


def test_transformers_own_save_writes_the_adapter_and_refuses_to_be_read_as_a_model(tmp_path):
    model, inputs = adapted(tiny()), inputs_of(tiny())
    model.save_pretrained(tmp_path)
    again = fastlora.load_pretrained(tiny(), tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_dropout_is_left_out_of_the_file_with_a_warning(tmp_path):
    model = adapted(tiny(), dropout=0.1)
    with pytest.warns(UserWarning, match="a dropout of 0.1 is not written: PEFT refuses files with dropout"):
        fastlora.save_pretrained(model, tmp_path)
    PeftModel.from_pretrained(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_parameters": None}, r"must name the 2 parameters of 'model\.layers\.0\.mlp\.experts'"),
        ({"target_parameters": ["gate_up_proj"]}, r"it names 1"),
        ({"r": 2}, r"must be \[10, K\] and \[N, 10\], of 5 experts; got \[15, 32\]"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_named(change, message, tmp_path):
    fastlora.save_pretrained(adapted(tiny()), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    model = tiny()
    with pytest.warns(UserWarning, match="was changed after"), pytest.raises(AdapterError, match=message):
        fastlora.load_pretrained(model, tmp_path)
    assert not list(lora_layers(model))


def test_parameters_that_are_no_experts_are_refused(tmp_path):
    theirs = get_peft_model(tiny(), LoraConfig(target_modules=[], target_parameters=["q_proj.weight"]))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"target_parameters must name experts' weights .*q_proj\.weight"):
        fastlora.load_pretrained(tiny(), tmp_path)


def test_tensors_of_another_shape_are_named(tmp_path):
    fastlora.save_pretrained(adapted(tiny()), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    tensors[key] = torch.zeros(15, 99)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"must have \[N, K\] = \[5, 32, 12\]; the file has \[5, 32, 99\]"):
        fastlora.load_pretrained(tiny(), tmp_path)


def test_a_peft_config_is_read_as_ours():
    config = LoraConfig(r=2, target_modules=[], target_parameters=set(EXPERTS))
    model = fastlora.apply_lora(tiny(), config)
    assert len(dict(lora_layers(model))) == 4
    assert isinstance(config, LoraConfig)
    assert LoRAConfig(target_parameters=EXPERTS).target_modules == ()
