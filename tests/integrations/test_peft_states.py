"""States that are not fused: PEFT's own forward runs, bit for bit, and the reason is counted."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.utils import parametrize

from fastlora.integrations.peft import accelerate_peft, forward_counts
from tests.integrations.peft_models import Subclass, assert_stock, lora_layers, run, twins


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class OtherDropout(nn.Dropout):
    pass


def second_adapter(model):
    torch.manual_seed(0)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])


def no_adapter(model):
    for layer in lora_layers(model):
        layer.set_adapter([])


def each(change):
    """The change made to every LoRA layer of a model."""

    def change_all(model):
        for layer in lora_layers(model):
            change(layer)

    return change_all


def replace_forward(module):
    module.forward = module.forward


def make_subclass(layer):
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().as_subclass(Subclass), False)


def other_dropout(layer):
    layer.lora_dropout["default"] = OtherDropout(0)


def whole_dropout(layer):
    layer.lora_dropout["default"] = nn.Dropout(1.0)


def vector_scaling(layer):
    layer.scaling["default"] = torch.tensor([0.75])


def subclass_linear(layer):
    layer.lora_A["default"].__class__ = nn.modules.linear.NonDynamicallyQuantizableLinear


STATES = {
    "disabled": ({}, lambda model: model.disable_adapter_layers(), "adapters are disabled"),
    "merged": ({}, lambda model: model.merge_adapter(), "adapters are merged"),
    "two adapters": ({}, second_adapter, "2 adapters are active"),
    "no adapter": ({}, no_adapter, "0 adapters are active"),
    "a variant": ({"velora_config": {"num_groups": 1}}, None, "variant of LoRA (VeloraLinearVariant)"),
    "trained weight": (
        {},
        each(lambda layer: layer.base_layer.weight.requires_grad_()),
        "the base layer is trained too",
    ),
    "forward hook": (
        {},
        each(lambda layer: layer.base_layer.register_forward_hook(lambda m, x, y: 2 * y)),
        "base_layer has hooks or another forward",
    ),
    "forward pre-hook": (
        {},
        each(lambda layer: layer.lora_A["default"].register_forward_pre_hook(lambda m, x: (x[0] / 3,))),
        "lora_A has hooks or another forward",
    ),
    "backward hook": (
        {},
        each(lambda layer: layer.lora_B["default"].register_full_backward_hook(lambda m, dx, dy: None)),
        "lora_B has hooks or another forward",
    ),
    "backward pre-hook": (
        {},
        each(lambda layer: layer.lora_B["default"].register_full_backward_pre_hook(lambda m, dy: None)),
        "lora_B has hooks or another forward",
    ),
    "replaced forward": (
        {},
        each(lambda layer: replace_forward(layer.lora_A["default"])),
        "lora_A has hooks or another forward",
    ),
    "compiled part": (
        {},
        each(lambda layer: layer.base_layer.compile(backend="eager")),
        "base_layer has hooks or another forward",
    ),
    "parametrization": (
        {},
        each(lambda layer: parametrize.register_parametrization(layer.base_layer, "weight", Halved())),
        "base_layer is a ParametrizedLinear",
    ),
    "subclass of nn.Linear": ({}, each(subclass_linear), "lora_A is a NonDynamicallyQuantizableLinear"),
    "tensor subclass": ({}, each(make_subclass), "W is a Subclass"),
    "no casting": (
        {},
        each(lambda layer: setattr(layer, "cast_input_dtype_enabled", False)),
        "casting of inputs is switched off",
    ),
    "another dropout": ({}, each(other_dropout), "the dropout is not a plain nn.Dropout"),
    "hook on dropout": (
        {"lora_dropout": 0.1},
        each(lambda layer: layer.lora_dropout["default"].register_forward_hook(lambda m, x, y: x[0])),
        "the dropout is not a plain nn.Dropout",
    ),
    "everything dropped": ({}, each(whole_dropout), "drops everything"),
    "vector as scaling": ({}, each(vector_scaling), "the scaling is a Tensor with dimensions"),
}


@pytest.mark.parametrize(("options", "change", "why"), list(STATES.values()), ids=list(STATES))
def test_a_state_that_is_not_covered_takes_pefts_own_forward(options, change, why):
    stock, fused = twins(**options)
    assert accelerate_peft(fused).kept == {}
    for model in (stock, fused):
        if change is not None:
            change(model)
    x = torch.randn(7, 6)
    assert_stock(run(fused, x), run(stock, x), fused, why)
    assert all(why in reason for reason in accelerate_peft(fused).stock.values())


def test_hooks_for_all_modules_are_run():
    stock, fused = twins()
    accelerate_peft(fused)
    seen = {stock: 0, fused: 0}
    x = torch.randn(7, 6)
    for model in seen:

        def count(module, inputs, output, model=model):
            seen[model] += 1

        handle = nn.modules.module.register_module_forward_hook(count)
        try:
            model(x)
        finally:
            handle.remove()
    assert seen[stock] == seen[fused] > 0
    assert list(forward_counts(fused)) == ["hooks are registered for all modules"]


def test_an_a_and_b_of_two_dtypes_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(7, 6)
    for layer in (stock, fused):
        layer.lora_B.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert_stock(run(fused, x), run(stock, x), fused, "the dtypes are not ones that are fused")


def test_a_dropout_in_place_changes_its_input_as_ever():
    stock, fused = (lora_layers(model)[0] for model in twins(lora_dropout=0.5))
    accelerate_peft(fused)
    inputs = []
    for layer in (stock, fused):
        layer.lora_dropout["default"].inplace = True
        torch.manual_seed(1)
        inputs.append(torch.ones(7, 6))
        layer(inputs[-1])
    assert torch.equal(*inputs)
    assert not inputs[0].all()


@pytest.mark.filterwarnings("ignore:.*Sparse:UserWarning")
def test_a_sparse_weight_takes_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    for layer in (stock, fused):
        layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().to_sparse_csr(), False)
    x = torch.randn(3, 6)
    assert torch.equal(fused(x), stock(x))
    assert list(forward_counts(fused)) == ["W is a Parameter, or not dense"]


def test_tensors_on_several_devices_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    for layer in (stock, fused):
        layer.lora_A.to("meta"), layer.lora_B.to("meta")
    assert fused(x).device == stock(x).device
    assert list(forward_counts(fused)) == ["the tensors are on several devices"]


def test_accelerates_hooks_are_run():
    hooks = pytest.importorskip("accelerate.hooks")

    class Tripled(hooks.ModelHook):
        def post_forward(self, module, output):
            return 3 * output

    stock, fused = twins()
    accelerate_peft(fused)
    for model in (stock, fused):
        for layer in lora_layers(model):
            hooks.add_hook_to_module(layer.lora_A["default"], Tripled())
    x = torch.randn(7, 6)
    assert_stock(run(fused, x), run(stock, x), fused, "lora_A has hooks or another forward")


def test_pefts_switch_of_casting_is_followed():
    stock, fused = twins()
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    with disable_input_dtype_casting(fused), disable_input_dtype_casting(stock):
        assert torch.equal(fused(x), stock(x))
    assert list(forward_counts(fused)) == ["casting of inputs is switched off"]


def test_a_sharded_weight_takes_pefts_own_forward():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, distribute_tensor

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        stock, fused = (lora_layers(model)[0] for model in twins())
        accelerate_peft(fused)
        for layer in (stock, fused):
            for module in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]):
                for name, parameter in list(module.named_parameters()):
                    shard = distribute_tensor(parameter.detach(), mesh)
                    setattr(module, name, nn.Parameter(shard, parameter.requires_grad))
        x = distribute_tensor(torch.randn(3, 6), mesh)
        y = fused(x)
        assert isinstance(y, DTensor)
        assert torch.equal(y.to_local(), stock(x).to_local())
        assert list(forward_counts(fused)) == ["W is a DTensor, or not dense"]
    finally:
        distributed.destroy_process_group()


def test_the_same_way_is_taken_with_and_without_recording_gradients():
    for options, change, _ in STATES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _ = twins(**options)
        accelerate_peft(model)
        if change is not None:
            change(model)
        x = torch.randn(7, 6)
        model(x)
        recorded = copy.copy(forward_counts(model))
        with torch.no_grad():
            model(x)
        assert forward_counts(model) == recorded + recorded
