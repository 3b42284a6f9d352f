"""PEFT's layers over packed bases with the fused forward: the same numbers, and which are left to PEFT."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fastlora.integrations.peft import accelerate_peft, forward_counts, register, undo
from fastlora.layer.base_weights import frozen_weight
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import Inputs
from tests.packed import MAKERS, RUNS, net, packed, small_inputs

pytestmark = pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without:UserWarning")

HALF = torch.bfloat16
FORMATS = list(MAKERS)
# What Transformers' loaders say to PEFT, which takes its own classes only then.
LOADED = {"bnb-4bit": "is_loaded_in_4bit", "bnb-int8": "is_loaded_in_8bit"}


def peft_layer(inputs, format="bnb-4bit", loaded=False, config=None, **options):
    """PEFT's layer over a packed base with the inputs' A and B."""
    model = nn.Sequential(packed(inputs, format, **options))
    if loaded:
        setattr(model, LOADED[format], True)
    r = inputs.A.shape[0]
    config = config or LoraConfig(r=r, lora_alpha=inputs.s * r, target_modules=["0"])
    layer = get_peft_model(model, config).base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(inputs.A)
        layer.lora_B["default"].weight.copy_(inputs.B)
    return layer


def run(layer, inputs, context=None):
    """y, dx, dA and dB."""
    layer.zero_grad()
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    y.backward(inputs.dy.to(y.dtype))
    A, B = (module["default"].weight.grad for module in (layer.lora_A, layer.lora_B))
    return {"y": y.detach(), "dx": x.grad, "dA": A, "dB": B}


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_the_fused_forward_is_as_right_as_pefts(format, dtype, loaded):
    if loaded and format not in LOADED:
        pytest.skip("PEFT tells this base by its type")
    inputs = small_inputs(dtype, format)
    stock = peft_layer(inputs, format, loaded)
    fast = copy.deepcopy(stock)
    assert accelerate_peft(fast).fused == ("",)
    W = frozen_weight(stock.base_layer).to(dtype)
    whole = Inputs(inputs.x, W, inputs.b, inputs.A, inputs.B, inputs.s, inputs.dy)
    truth, torchs, found = oracle(whole), gradients(whole), run(fast, inputs)
    assert forward_counts(fast) == {"fused": 1}
    for name, value in found.items():
        assert_within_budget(name, value, torchs[name], truth[name])
    if format not in RUNS:
        return
    theirs = run(stock, inputs)
    assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in theirs.items()}


def test_register_makes_fast_layers_of_pefts_own_kind():
    pytest.importorskip("bitsandbytes")
    from peft.tuners.lora.bnb import Linear4bit

    inputs = small_inputs()
    config = register(LoraConfig(r=3, target_modules=["0"]))
    layer = peft_layer(inputs, loaded=True, config=config)
    assert type(layer).__name__ == "FastLinear4bit"
    assert isinstance(layer, Linear4bit)
    run(layer, inputs)
    assert forward_counts(layer) == {"fused": 1}
    undo(layer)
    assert type(layer) is Linear4bit


def test_a_registered_config_names_what_it_leaves_to_peft():
    class Odd(nn.Linear):
        pass

    with pytest.warns(UserWarning, match=r"a layer over a Odd takes PEFT's own forward"):
        get_peft_model(nn.Sequential(Odd(3, 2)), register(LoraConfig(r=2, target_modules=["0"])))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_fast_layers_are_copied_and_pickled(again):
    inputs = small_inputs()
    layer = peft_layer(inputs, loaded=True)
    accelerate_peft(layer)
    twin = again(layer)
    assert type(twin) is type(layer)
    assert torch.equal(twin(inputs.x), layer(inputs.x))


def test_another_compute_dtype_than_xs_runs_pefts_own_forward():
    inputs = small_inputs()
    stock = peft_layer(inputs, loaded=True, compute_dtype=HALF)
    fast = copy.deepcopy(stock)
    accelerate_peft(fast)
    assert torch.equal(fast(inputs.x), stock(inputs.x))
    assert list(forward_counts(fast)) == ["the base layer computes in another dtype than the update"]
    with torch.autocast("cpu", HALF):  # under which the update is computed in it too
        fast(inputs.x)
    assert forward_counts(fast)["fused"] == 1


def test_disabled_adapters_and_what_the_library_repacks_run_pefts_own_forward():
    inputs = small_inputs()
    layer = peft_layer(inputs, loaded=True)
    accelerate_peft(layer)
    layer.enable_adapters(False)
    layer(inputs.x)
    layer.enable_adapters(True)
    layer.base_layer.weight.quant_state.packing_format_for_cpu = True
    report = accelerate_peft(layer)
    assert "has run in eval mode on this CPU" in report.stock[""]


def test_a_state_dict_is_pefts(tmp_path):
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["0", "2"]))
    before = set(model.state_dict())
    accelerate_peft(model)
    assert set(model.state_dict()) == before
    model.save_pretrained(tmp_path)
    undo(model)
    assert set(model.state_dict()) == before
