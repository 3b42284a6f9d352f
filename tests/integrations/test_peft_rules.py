"""What is not fused: PEFT's own forward runs, bit for bit, and the reason is counted."""

import copy
import re
import warnings

import pytest
import torch
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from fastlora.integrations.peft import accelerate_peft, forward_counts
from tests.integrations.peft_models import lora_layers, twins


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Subclass(torch.Tensor):
    pass


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
    "DoRA": ({"use_dora": True}, None, "variant of LoRA (DoraLinearVariant)"),
    "adapter bias": ({"lora_bias": True}, None, "the adapter has a bias"),
    "trained bias": ({"bias": "lora_only"}, None, "the base layer is trained too"),
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


def run(model, x, **arguments):
    """The output and every gradient."""
    torch.manual_seed(3)
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x, **arguments)
    y.float().square().sum().backward() if y.requires_grad else None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **gradients}


def assert_stock(ours, theirs, fused, why):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value is ours[name] is None or torch.equal(ours[name], value), name
    ways = forward_counts(fused)
    assert ways
    assert all(why in way for way in ways), ways


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


def test_a_batch_of_several_adapters_takes_pefts_own_forward():
    stock, fused = (model.eval() for model in twins())
    accelerate_peft(fused)
    x, names = torch.randn(3, 6), ["default", "__base__", "default"]
    assert torch.equal(fused(x, adapter_names=names), stock(x, adapter_names=names))
    assert list(forward_counts(fused)) == ["there are arguments beside x"]


def test_offsets_of_activated_lora_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    assert torch.equal(fused(x, alora_offsets=[1, 1, 1]), stock(x, alora_offsets=[1, 1, 1]))
    assert list(forward_counts(fused)) == ["there are arguments beside x"]
    assert torch.equal(fused(x, alora_offsets=None, adapter_names=None), fused(x))
    assert forward_counts(fused)["fused"] == 2


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype", "autocast"),
    [
        (torch.bfloat16, torch.float16, None),
        (torch.float32, torch.bfloat16, None),
        (torch.float64, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, torch.float16),
        (torch.float64, torch.float64, torch.bfloat16),
        (torch.float64, torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_other_dtypes_take_pefts_own_forward(dtype, adapter_dtype, autocast):
    stock, fused = (lora_layers(model.to(dtype))[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(7, 6, dtype=dtype)
    for layer in (stock, fused):
        layer.lora_A.to(adapter_dtype), layer.lora_B.to(adapter_dtype)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert_stock(run(fused, x), run(stock, x), fused, "the dtypes are not ones that are fused")


MISFITS = {
    "x of another dtype": lambda x, layer: layer(x.double()),
    "x of another width": lambda x, layer: layer(x[:, :5]),
    "x without a dimension": lambda x, layer: layer(x[0, 0]),
    "x elsewhere": lambda x, layer: layer(x.to("meta")),
    "x of integers": lambda x, layer: layer(x.long()),
    "an argument too many": lambda x, layer: layer(x, 1),
    "an unknown argument": lambda x, layer: layer(x, scale=None),
    "W put away": lambda x, layer: [setattr(layer.base_layer.weight, "data", torch.empty(0)), layer(x)],
    "A put away": lambda x, layer: [
        setattr(layer.lora_A["default"].weight, "data", torch.empty(0)),
        layer(x),
    ],
}


@pytest.mark.parametrize("call", list(MISFITS.values()), ids=list(MISFITS))
def test_what_does_not_fit_is_pefts_to_refuse(call):
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever PEFT raises
        call(x, stock)
    with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
        call(x, fused)
    assert forward_counts(fused)["fused"] == 0


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


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested tensors|NestedTensor):UserWarning")
@pytest.mark.parametrize(
    "made",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_mkldnn,
        lambda x: torch.nested.nested_tensor([x, x[:2]]),
    ],
    ids=["COO", "CSR", "oneDNN", "nested"],
)
def test_an_x_of_another_layout_takes_pefts_own_forward(made):
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = made(torch.randn(3, 6))
    ours, theirs = fused(x), stock(x)
    assert (ours.layout, ours.is_nested) == (theirs.layout, theirs.is_nested)
    flat = [y.to_padded_tensor(0) if y.is_nested else y.to_dense() for y in (ours, theirs)]
    assert torch.equal(*flat)
    assert list(forward_counts(fused)) == ["x is not a plain tensor"]


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


def test_a_tensor_subclass_as_x_takes_pefts_own_forward():
    stock, fused = (lora_layers(model)[0] for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6).as_subclass(Subclass)
    y = fused(x)
    assert type(y) is Subclass
    assert torch.equal(y, stock(x))
    assert list(forward_counts(fused)) == ["x is not a plain tensor"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at the first use
def test_transforms_of_torch_func_take_pefts_own_forward():
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    assert torch.equal(torch.func.vmap(fused)(x), torch.func.vmap(stock)(x))
    ours, theirs = (torch.func.jvp(layer, (x,), (x,)) for layer in (fused, stock))
    assert torch.equal(ours[1], theirs[1])
    assert forward_counts(fused)["fused"] == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode_differentiation_takes_pefts_own_forward():
    stock, fused = (lora_layers(model)[0].requires_grad_(False) for model in twins())
    accelerate_peft(fused)
    x = torch.randn(3, 6)
    with forward_ad.dual_level():
        ours, theirs = (
            forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent for layer in (fused, stock)
        )
        assert torch.equal(ours, theirs)
    assert forward_counts(fused)["fused"] == 0


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_pefts_own_operations():
    _, model = twins()
    layer = lora_layers(model)[0].requires_grad_(False)
    accelerate_peft(layer)
    x = torch.randn(3, 6)
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    assert "LoRALinearFunction" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))


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
