"""Swapping the layers of PEFT's models, and what stays of PEFT."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch.utils.checkpoint import checkpoint

from fastlora.integrations.peft import FastLinear, accelerate_peft, forward_counts, register, undo
from fastlora.integrations.peft_layer import Fused
from tests.integrations.peft_models import Mixed, lora_layers, mlp, peft_model, twins

NAMES = ("base_model.model.0", "base_model.model.2")


@pytest.fixture
def mixed():
    targets = ["plain", "transposed", "table", "subclass", "replaced"]
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = peft_model(Mixed(), target_modules=targets)
    layer = model.base_model.model.replaced
    layer.forward = layer.forward
    return model


def test_the_report_tells_what_was_swapped_and_what_not_and_why(mixed):
    before = copy.deepcopy(mixed)
    report = accelerate_peft(mixed)
    prefix = "base_model.model."
    assert report.fused == (prefix + "plain", prefix + "transposed")
    assert report.stock == {}
    assert report.kept == {
        prefix + "table": "it is a peft.tuners.lora.layer.Embedding, not a peft.tuners.lora.Linear",
        prefix
        + "subclass": "its base layer is a NonDynamicallyQuantizableLinear, neither an nn.Linear nor a "
        "Conv1D nor a known packed layer",
        prefix + "replaced": "its forward was replaced",
    }
    lines = str(report).splitlines()
    assert lines[:2] == ["2 of 5 layers take fastlora's fused forward", "3 not swapped:"]
    assert "  base_model.model.replaced: its forward was replaced" in lines
    tokens = torch.tensor([[1, 4, 0]])
    torch.testing.assert_close(mixed(tokens), before(tokens))
    assert accelerate_peft(mixed) == report


def test_a_layer_that_takes_pefts_own_forward_for_now_is_reported_with_the_reason():
    model, _ = twins(velora_config={"num_groups": 1})
    report = accelerate_peft(model)
    assert report.fused == ()
    assert report.stock == dict.fromkeys(NAMES, "the adapter is a variant of LoRA (VeloraLinearVariant)")
    assert "2 swapped, but taking PEFT's own forward now:" in str(report)


def test_other_methods_of_peft_are_left_alone():
    model = get_peft_model(mlp(), IA3Config(target_modules=["0", "2"], feedforward_modules=["2"]))
    assert set(accelerate_peft(model).kept) == set(NAMES)


def test_a_model_without_peft_is_refused():
    with pytest.raises(ValueError, match="this Sequential has none"):
        accelerate_peft(mlp())
    for function in (accelerate_peft, undo, forward_counts):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module; got str"):
            function("model")


def test_nothing_but_the_class_and_the_forward_changes():
    model, before = twins()
    accelerate_peft(model)
    own = vars(FastLinear).keys() | vars(Fused).keys()
    overridden = {name for name in own & set(dir(Linear)) if not name.startswith("__")}
    assert overridden - {"_abc_impl"} == {"forward", "_get_name"}
    assert model.state_dict().keys() == before.state_dict().keys()
    for ours, theirs in zip(lora_layers(model), lora_layers(before), strict=True):
        assert type(ours) is FastLinear
        assert vars(ours).keys() == vars(theirs).keys()


def test_errors_of_peft_name_a_fast_class_as_its_own():
    assert str(FastLinear) == "<class 'peft.tuners.lora.layer.Linear'>"


def reloaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, reloaded, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "save", "pickle"],
)
def test_a_copy_is_fused_too_and_apart(copied):
    model, _ = twins()
    accelerate_peft(model)
    x = torch.randn(4, 6)
    y = model(x)
    twin = copied(model)
    twin(x).sum().backward()
    assert all(type(layer) is FastLinear for layer in lora_layers(twin))
    assert torch.equal(twin(x), y)
    assert all(p.grad is None for p in model.parameters())
    assert forward_counts(model)["fused"] == 2


def test_undo_restores_pefts_layers():
    model, before = twins()
    accelerate_peft(model)
    x = torch.randn(4, 6)
    model(x)
    undo(model)
    for ours, theirs in zip(lora_layers(model), lora_layers(before), strict=True):
        assert type(ours) is Linear
        assert vars(ours).keys() == vars(theirs).keys()
    assert torch.equal(model(x), before(x))
    undo(model)
    assert forward_counts(model) == {}


def test_undo_refuses_a_layer_whose_forward_is_held_elsewhere_and_changes_nothing():
    model, _ = twins()
    accelerate_peft(model)
    last = lora_layers(model)[-1]
    last.forward = partial(last.forward)
    with pytest.raises(TypeError, match=r"layer 'base_model\.model\.2' must keep its class's forward"):
        undo(model)
    assert all(type(layer) is FastLinear for layer in lora_layers(model))


def test_undo_refuses_a_subclass():
    class Sharded(FastLinear):
        pass

    model, _ = twins()
    accelerate_peft(model)
    lora_layers(model)[1].__class__ = Sharded
    with pytest.raises(TypeError, match="must be exactly a FastLinear; got Sharded"):
        undo(model)


def test_a_swapped_layer_prints_as_pefts_own():
    stock, fused = twins()
    accelerate_peft(fused)
    assert repr(fused) == repr(stock)


def test_the_config_is_saved_and_the_adapter_loaded_as_ever(tmp_path):
    model = peft_model()
    accelerate_peft(model)
    base = copy.deepcopy(model).unload()
    register(model.peft_config["default"])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    x = torch.randn(4, 6)
    assert all(type(layer) is Linear for layer in lora_layers(loaded))
    accelerate_peft(loaded)
    assert torch.equal(loaded(x), model(x))


def test_adapters_are_added_switched_and_deleted_by_peft():
    stock, model = twins()
    accelerate_peft(model)
    x = torch.randn(4, 6)
    outputs = {}
    for one in (stock, model):
        torch.manual_seed(2)
        one.add_adapter("other", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
        one.set_adapter("other")
        outputs[one] = [one(x)]
        one.set_adapter("default")
        one.delete_adapter("other")
        outputs[one].append(one(x))
        outputs[one].append(one.merge_and_unload()(x))
    for ours, theirs in zip(outputs[model], outputs[stock], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
def test_a_compiled_model_has_no_break_and_is_not_compiled_again_by_a_hot_swap(tmp_path):
    other = peft_model(r=2)
    other.save_pretrained(tmp_path)
    model = peft_model()
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    accelerate_peft(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x), model(x))
        assert forward_counts(model) == {"fused": 2}
        hotswap_adapter(model, tmp_path, adapter_name="default")
        expected = copy.deepcopy(other)
        expected.base_model.load_state_dict(
            {name: v for name, v in model.base_model.state_dict().items() if "base_layer" in name},
            strict=False,
        )
        torch.testing.assert_close(compiled(x), expected(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_the_same_dropout_mask(use_reentrant):
    layer = lora_layers(peft_model(lora_dropout=0.5))[0]
    accelerate_peft(layer)
    x = torch.randn(64, 6, requires_grad=True)
    torch.manual_seed(5)
    layer(x).sum().backward()
    wanted = [layer.lora_B["default"].weight.grad.clone(), x.grad.clone()]
    layer.zero_grad()
    x.grad = None
    torch.manual_seed(5)
    checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(layer.lora_B["default"].weight.grad, wanted[0])
    assert torch.equal(x.grad, wanted[1])
    assert forward_counts(layer) == {"fused": 3}
