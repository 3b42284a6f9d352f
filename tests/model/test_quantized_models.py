"""Models with packed layers: which get LoRA, what is saved, merged, given back and counted."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    add_adapter,
    apply_lora,
    hot_swap,
    initialize,
    load_adapter,
    load_pretrained,
    lora_disabled,
    lora_layers,
    merge_lora,
    parameter_report,
    remove_lora,
    save_adapter,
    save_pretrained,
    set_adapter,
)
from fastlora.layer.quantized import QuantizedLoRALinear
from tests.models import with_update
from tests.packed import linear_int8, net

X = torch.randn(5, 64)


def mixed():
    """Two 4-bit layers and a plain one behind them."""
    return net().append(nn.Linear(16, 3))


def adapted(model=None, **options):
    return with_update(apply_lora(mixed() if model is None else model, LoRAConfig(**{"r": 2, **options})))


def test_all_linear_means_packed_and_plain_layers_alike():
    model = adapted()
    kinds = {name: isinstance(layer, QuantizedLoRALinear) for name, layer in lora_layers(model)}
    assert kinds == {"0": True, "2": True, "3": False}
    assert all(layer.lora_A.dtype == torch.float32 for _, layer in lora_layers(model))
    assert {p.requires_grad for p in model.parameters() if not p.is_floating_point()} == {False}


def test_layers_can_be_named_and_the_rest_taken_later():
    model = adapted(target_modules=["0"])
    assert [name for name, _ in lora_layers(model)] == ["0"]
    apply_lora(model, LoRAConfig(r=2))
    assert [name for name, _ in lora_layers(model)] == ["0", "2", "3"]


def test_a_packed_layer_itself_can_be_the_model():
    layer = apply_lora(net()[0], LoRAConfig(r=2))
    assert isinstance(layer, QuantizedLoRALinear)
    assert type(remove_lora(layer)).__name__ == "Linear4bit"


def test_nothing_changes_where_one_layer_is_refused():
    bnb = pytest.importorskip("bitsandbytes")
    model = mixed().append(bnb.nn.Linear4bit(3, 3))
    before = list(model)
    with pytest.raises(ValueError, match=r"weight of a Linear4bit must be quantized; it is not yet"):
        apply_lora(model, LoRAConfig(r=2))
    assert list(model) == before


def test_gptqs_layers_are_refused_with_what_to_use_instead():
    qlinear = type("TorchQuantLinear", (nn.Module,), {"__module__": "gptqmodel.nn_modules.qlinear.torch"})
    model = nn.Sequential(nn.Linear(3, 3), qlinear())
    with pytest.raises(
        TypeError, match=r"which is quantized: it is packed for inference.*or its NF4 by BitsAndB"
    ):
        apply_lora(model, LoRAConfig(r=2))


def test_removing_gives_the_librarys_layers_and_every_tensor_back():
    model = mixed()
    before = copy.deepcopy(model)
    state = model.state_dict()
    remove_lora(adapted(model))
    assert [type(layer) for layer in model] == [type(layer) for layer in before]
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(model(X), before(X))


def test_merging_makes_plain_layers_and_says_what_it_costs():
    model = adapted()
    wanted = model(X)
    with pytest.warns(
        UserWarning,
        match=r"merging 2 packed layers makes them plain: 0\.0 MB of weights instead.*"
        r"by at most 0\.0% of the update \(layer '\d'\); pack the merged model anew",
    ):
        remove_lora(model, merge=True)
    assert all(type(layer) in (nn.Linear, nn.ReLU) for layer in model)
    torch.testing.assert_close(model(X), wanted)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_int8_is_merged_into_the_models_dtype():
    model = nn.Sequential(nn.LayerNorm(50, dtype=torch.bfloat16), linear_int8(torch.randn(37, 50)))
    apply_lora(model, LoRAConfig(r=2))
    with pytest.warns(UserWarning, match="merging 1 packed layers"):
        remove_lora(model, merge=True)
    assert model[1].weight.dtype == torch.bfloat16


def test_an_update_that_cannot_be_merged_leaves_the_model_alone():
    model = adapted()
    before = list(model)
    with torch.no_grad():
        model[2].lora_B[0, 0] = torch.inf
    with pytest.raises(ValueError, match="A and B of layer '2' must be finite to be merged"):
        remove_lora(model, merge=True)
    assert list(model) == before


@pytest.mark.parametrize(
    ("change", "by"),
    [(merge_lora, "merge_lora"), (lambda model: initialize(model, "pissa"), "initialize")],
    ids=["merge_lora", "initialize"],
)
def test_what_would_write_a_packed_w_is_refused_by_name(change, by):
    model = apply_lora(mixed(), LoRAConfig(r=2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=rf"W of layer '0' must be plain for {by}; it is packed as bitsandbytes"
    ):
        change(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapters_are_written_read_switched_and_swapped_as_over_plain_layers(tmp_path):
    model = adapted()
    save_pretrained(model, tmp_path / "adapter")
    save_adapter(model, tmp_path / "one.safetensors")
    fresh = remove_lora(copy.deepcopy(model))
    assert torch.equal(load_pretrained(copy.deepcopy(fresh), tmp_path / "adapter")(X), model(X))
    loaded = load_adapter(fresh, tmp_path / "one.safetensors")
    assert torch.equal(loaded(X), model(X))
    with_update(loaded)
    hot_swap(loaded, tmp_path / "adapter")
    assert torch.equal(loaded(X), model(X))
    add_adapter(loaded, "other", LoRAConfig(r=3))
    set_adapter(loaded, "other")
    with lora_disabled(model):
        assert torch.equal(loaded(X), model(X))


def test_a_state_dict_of_a_model_with_lora_loads_into_its_copy():
    model = adapted()
    twin = with_update(copy.deepcopy(model))
    assert not torch.equal(twin(X), model(X))
    keys = twin.load_state_dict(model.state_dict(), strict=False)
    assert keys.missing_keys == []
    assert all(".weight." in key for key in keys.unexpected_keys)  # the library's loaders read these
    assert torch.equal(twin(X), model(X))


def test_reports_count_the_entries_that_are_packed():
    model = apply_lora(mixed(), LoRAConfig(r=2))
    report = parameter_report(model)
    assert report.base == 64 * 32 + 32 * 16 + 16 * 3 + 3
    assert [layer.base for layer in report.layers] == [64 * 32, 32 * 16, 16 * 3 + 3]
    assert report.trainable == report.lora == 2 * (64 + 32 + 32 + 16 + 16 + 3)


def test_a_step_trains_the_updates_alone():
    model = apply_lora(mixed(), LoRAConfig(r=2))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.adapters.default.lora_{letter}" for i in "023" for letter in "AB"}


def test_eval_on_a_cpu_and_training_again_changes_no_packed_bit():
    model = adapted().eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
        with lora_disabled(model):
            model(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
