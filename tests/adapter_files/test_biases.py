"""Biases that are trained beside LoRA, PEFT's bias="lora_only" and "all": trained, saved and read as its."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from fastlora import (
    AdapterError,
    apply_lora,
    load_adapter,
    load_pretrained,
    parameter_report,
    remove_lora,
    save_adapter,
    save_pretrained,
    set_adapter,
)
from fastlora.measuring.errors import assert_within_budget
from tests.cases import quick_rows
from tests.models import adapted, mlp, moved, trainable, trained
from tests.packed import linear_4bit

pytestmark = pytest.mark.filterwarnings("ignore:.*have invalid shape")
X = torch.randn(7, 6)
PREFIX = "base_model.model."


class Net(nn.Module):
    """Linear, LayerNorm, Conv1D and a head, all with biases."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 5), nn.LayerNorm(5), Conv1D(4, 5)
        self.plain, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.5)

    def forward(self, x):
        return self.head(self.plain(self.second(self.norm(self.first(x)))))


def config(bias, head=False, **options):
    targets = {"target_modules": ["first", "second"], "modules_to_save": ["head"] if head else None}
    return peft.LoraConfig(r=2, lora_alpha=3, bias=bias, fan_in_fan_out=False, **targets, **options)


def ours(base, bias, head=False, **options):
    model = apply_lora(copy.deepcopy(base), config(bias, head, **options))
    return moved(model).eval()


def computed(model, x):
    """y and {our name of a parameter: its gradient}."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    gradients = {name_of(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **gradients}


def name_of(theirs):
    """Our name of a parameter of PEFT's."""
    name = theirs.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    for slot in ("lora_A", "lora_B"):
        name = name.replace(f".{slot}.default.weight", f".adapters.default.{slot}")
        name = name.replace(f".{slot}.default.bias", f".adapters.default.{slot}_bias")
    return name.replace(".lora_magnitude_vector.default.weight", ".adapters.default.lora_magnitude_vector")


CASES = [
    ("lora_only", False, {}),
    ("all", True, {}),
    ("all", False, {}),
    ("lora_only", True, {"lora_bias": True}),
    ("all", False, {"use_dora": True}),
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("bias", "head", "options"), quick_rows(CASES, *CASES[:2], *CASES[3:]), ids=str)
def test_files_and_gradients_are_pefts_both_ways(bias, head, options, tmp_path):
    base, x = Net().double(), X.double()
    stock = moved(peft.get_peft_model(copy.deepcopy(base), config(bias, head, **options)))
    trained(stock, x).eval()
    stock.save_pretrained(str(tmp_path / "theirs"))
    model = load_pretrained(copy.deepcopy(base), tmp_path / "theirs").eval()
    assert not torch.equal(model.first.bias, base.first.bias)
    assert torch.equal(model.norm.bias, base.norm.bias) == (bias == "lora_only")
    found, wanted = computed(model, x), computed(stock, x)
    torch.testing.assert_close(found, wanted)
    assert trainable(model) == wanted.keys() - {"y"}
    trained(model, x)
    save_pretrained(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["bias"] == bias
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    torch.testing.assert_close(again(x), model(x))
    ours, theirs = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("ours", "theirs"))
    extra = {key for key in theirs if "original_module" in key or "modules_to_save" in key}
    assert ours.keys() | extra == theirs.keys()
    assert len(extra) == 2 * (bias == "all" and head)


def test_in_fp32_it_is_as_near_the_truth_as_pefts(tmp_path):
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32)), torch.randn(70, 64)
    options = peft.LoraConfig(r=2, bias="lora_only", target_modules=["0", "2"])
    stock = moved(peft.get_peft_model(copy.deepcopy(base), options))
    stock.save_pretrained(str(tmp_path))
    found, wanted = computed(load_pretrained(base, tmp_path), x), computed(stock, x)
    truth = computed(stock.double(), x.double())
    assert {"0.bias", "2.bias"} <= found.keys() == wanted.keys()
    for name, value in found.items():
        assert_within_budget(name, value, wanted[name], truth[name])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_training_ends_where_pefts_does(bias, tmp_path):
    base, x = Net().double(), X.double()
    model = ours(base, bias).train()
    save_pretrained(model, tmp_path)
    stock = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), is_trainable=True).train()
    report = parameter_report(model)
    assert report.trainable == stock.get_nb_trainable_parameters()[0]
    trained(model, x), trained(stock, x)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(model.get_parameter(name_of(name)), parameter, msg=name)
    found = remove_lora(copy.deepcopy(model), merge=True)(x)
    torch.testing.assert_close(found, stock.merge_and_unload()(x))


def test_a_single_file_and_a_second_load_fill_the_same_biases(tmp_path):
    base = mlp()
    model = trained(moved(adapted(copy.deepcopy(base), bias="all")), X)
    save_adapter(model, tmp_path / "file")
    again = adapted(copy.deepcopy(base), bias="all")
    for loaded in (
        load_adapter(copy.deepcopy(base), tmp_path / "file"),
        load_adapter(again, tmp_path / "file"),
    ):
        assert torch.equal(loaded(X), model(X))
        assert loaded[0].bias.requires_grad
    copied = copy.deepcopy(again)
    assert copied[2].bias.requires_grad
    save_adapter(copied, tmp_path / "copied")
    assert load_file(tmp_path / "copied").keys() == load_file(tmp_path / "file").keys()
    for wanted in ("lora_only", "none"):
        with pytest.raises(AdapterError, match=f"bias must be '{wanted}'"):
            load_adapter(adapted(copy.deepcopy(base), bias=wanted), tmp_path / "file")


def test_a_file_with_biases_beside_other_adapters_says_that_they_are_the_models(tmp_path):
    base = mlp()
    save_pretrained(trained(moved(adapted(copy.deepcopy(base), bias="all")), X), tmp_path)
    model = adapted(copy.deepcopy(base))
    with pytest.warns(UserWarning, match=r"biases that came with adapter 'fr'.*for all its adapters"):
        load_pretrained(model, tmp_path, name="fr")
    set_adapter(model, "fr")
    assert torch.equal(model(X), load_pretrained(copy.deepcopy(base), tmp_path)(X))
    with pytest.raises(AdapterError, match="adapter 'fr' trains biases"):
        load_pretrained(model, tmp_path, name="de")


def test_a_trained_norm_is_saved_whole_beside_them(tmp_path):
    model = adapted(Net(), bias="all", target_modules=["first"])
    model.norm.weight.requires_grad_()
    trained(model, X)
    save_pretrained(model, tmp_path)
    again = load_pretrained(Net(), tmp_path)
    assert torch.equal(again.norm.weight, model.norm.weight)
    assert torch.equal(again.head.bias, model.head.bias)


def test_a_file_that_lost_them_or_has_others_is_refused(tmp_path):
    base = mlp()
    save_pretrained(adapted(copy.deepcopy(base), bias="lora_only"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    lost = {key: value for key, value in whole.items() if key != f"{PREFIX}2.base_layer.bias"}
    save_file(lost, file)
    with pytest.raises(AdapterError, match=r"must hold the biases.*'lora_only'; it lacks '2\.bias'"):
        load_pretrained(copy.deepcopy(base), tmp_path)
    save_file({**whole, f"{PREFIX}1.bias": torch.zeros(5)}, file)
    with pytest.raises(AdapterError, match=r"biases must be the model's.*'1\.bias' is none"):
        load_pretrained(copy.deepcopy(base), tmp_path)
    save_file({**whole, f"{PREFIX}2.base_layer.bias": torch.zeros(2)}, file)
    with pytest.raises(AdapterError, match=r"'2\.base_layer\.bias' must have shape"):
        load_pretrained(copy.deepcopy(base), tmp_path)
    save_file({**whole, f"{PREFIX}2.base_layer.bias": torch.full((3,), float("nan"))}, file)
    with pytest.raises(AdapterError, match="NaN"):
        load_pretrained(copy.deepcopy(base), tmp_path)


@pytest.mark.exhaustive
def test_those_of_packed_layers_and_of_convolutions_are_trained_and_read_back(tmp_path):
    packed = nn.Sequential(linear_4bit(torch.randn(8, 64), torch.randn(8)))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    for base, x, targets in ((packed, torch.randn(2, 64), ["0"]), (conv, torch.randn(2, 3, 5, 5), ["0"])):
        model = trained(moved(adapted(copy.deepcopy(base), bias="lora_only", target_modules=targets)), x)
        assert not torch.equal(model[0].bias, base[0].bias)
        save_pretrained(model, tmp_path)
        assert torch.equal(load_pretrained(copy.deepcopy(base), tmp_path)(x), model(x))
        stock = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
        torch.testing.assert_close(stock(x), model(x))
