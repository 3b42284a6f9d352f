"""Layers whose weight is no plain matrix of numbers are refused by what it is, and subclasses are named."""

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    initialize,
    lora_layers,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from tests.models import adapted, mlp


class Int8Tensor(torch.Tensor):
    """Stands for torchao's: integers and a scale behind the face of a float tensor."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values):
        self.values = values

    def __repr__(self):
        return "Int8Tensor"

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.detach.default:
            return cls(args[0].values)
        raise NotImplementedError(str(operator))


def stand_in(name, module, base):
    """A class called as a quantizing package's, which is not installed here."""
    return type(name, (base,), {"__module__": module})


class Packed(nn.Module):
    def __init__(self, K, N):
        super().__init__()
        self.in_features, self.out_features = K, N
        self.register_buffer("W_q", torch.zeros(K * N // 2, dtype=torch.uint8))


def four_bit(layer):
    layer.weight = nn.Parameter(torch.zeros(9, 1, dtype=torch.uint8), requires_grad=False)
    return layer


QUANTIZED = {
    "bnb": lambda: stand_in("OutlierAwareLinear", "bitsandbytes.nn.modules", nn.Linear)(6, 3),
    "gptq": lambda: stand_in("TorchQuantLinear", "gptqmodel.nn_modules.qlinear.torch", Packed)(6, 3),
    "known by its package": lambda: stand_in("MarlinLinear", "gptqmodel.nn_modules", Packed)(6, 3),
    "unknown package": lambda: stand_in("WQLinear_GEMM", "somewhere.linear", Packed)(6, 3),
    "unknown subclass": lambda: four_bit(stand_in("Tiny", "somewhere.linear", nn.Linear)(6, 3)),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_all_linear_refuses_a_model_that_is_partly_quantized(kind):
    odd = QUANTIZED[kind]()
    model = nn.ModuleDict({"plain": nn.Linear(6, 6), "odd": odd})
    with pytest.raises(TypeError, match=rf"must reach every linear map.*{type(odd).__name__}.*: 'odd'"):
        apply_lora(model, LoRAConfig())
    with pytest.raises(
        TypeError, match=rf"target 'odd' must be exactly an nn.Linear; it is a {type(odd).__name__}"
    ):
        apply_lora(model, LoRAConfig(target_modules=["odd"]))
    assert not list(lora_layers(model))
    apply_lora(model, LoRAConfig(exclude_modules=["odd"]))
    assert [name for name, _ in lora_layers(model)] == ["plain"]


def quantized_weight(layer):
    layer.weight = nn.Parameter(
        Int8Tensor(torch.zeros(layer.weight.shape, dtype=torch.int8)), requires_grad=False
    )


def fp8_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def integer_weight(layer):
    layer.weight = nn.Parameter(torch.ones(layer.weight.shape, dtype=torch.int8), requires_grad=False)


def sparse_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)


WEIGHTS = {
    quantized_weight: r"Int8Tensor, as quantization makes them",
    fp8_weight: "torch.float8_e4m3fn",
    integer_weight: "torch.int8",
    sparse_weight: "layout torch.sparse_coo",
}


@pytest.mark.parametrize(("change", "what"), WEIGHTS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_plain_layer_with_an_odd_weight_is_refused_by_what_it_is(change, what):
    model = mlp()
    change(model[2])
    for config in (LoRAConfig(), LoRAConfig(target_modules=["0", "2"])):
        with pytest.raises(TypeError, match=f"weight is .*{what}.*"):
            apply_lora(model, config)
    with pytest.raises(TypeError, match=rf"linear.weight must .*{what}"):
        FusedLoRALinear.from_linear(model[2])
    assert not list(lora_layers(model))


@pytest.mark.parametrize("weight", [None, nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1, 3, 5))])
def test_a_weight_that_is_no_matrix_is_refused(weight):
    model = mlp()
    model[2].weight = weight
    for change in (lambda: apply_lora(model, LoRAConfig()), lambda: FusedLoRALinear.from_linear(model[2])):
        with pytest.raises(TypeError, match=r"weight must be \[N, K\]; got"):
            change()
    assert not list(lora_layers(model))


class Special(nn.Linear):
    pass


def test_a_subclass_that_all_linear_leaves_out_is_named():
    model = nn.ModuleDict({"plain": nn.Linear(3, 3), "own": Special(3, 3)})
    with pytest.warns(UserWarning, match="leaves out 'own', of a subclass of nn.Linear"):
        apply_lora(model, LoRAConfig())
    assert type(model["own"]) is Special


def test_a_subclass_that_is_excluded_or_torchs_own_is_not():
    model = nn.ModuleDict(
        {"plain": nn.Linear(4, 4), "own": Special(4, 4), "mha": nn.MultiheadAttention(4, 2)}
    )
    apply_lora(model, LoRAConfig(exclude_modules=["own"]))
    assert [name for name, _ in lora_layers(model)] == ["plain"]


def test_accelerates_hooks_are_named():
    hooked = nn.Linear(3, 3)
    hooked._hf_hook, hooked._old_forward = object(), hooked.forward
    hooked.forward = hooked.forward
    with pytest.raises(TypeError, match=r"accelerate replaced this module's .*dispatch the model afterwards"):
        apply_lora(nn.Sequential(hooked), LoRAConfig())


@pytest.mark.parametrize("dora", [False, True])
def test_a_weight_that_was_packed_after_it_got_lora_is_named(dora):
    layer = FusedLoRALinear(6, 3, r=2, dora=dora)
    layer.weight = nn.Parameter(Int8Tensor(layer.weight.detach()), requires_grad=False)
    with pytest.raises(
        TypeError, match=r"weight must .*Int8Tensor, as quantization .* \(pack the base first"
    ):
        layer(torch.randn(2, 6))


def _merged_away(model):
    remove_lora(model, merge=True)


def _started(model):
    initialize(model, "olora")


@pytest.mark.parametrize("change", [merge_lora, _merged_away, _started])
def test_what_would_write_a_weight_that_was_packed_names_its_layer(change):
    model = apply_lora(mlp(), LoRAConfig(r=2))
    quantized_weight(model[2])
    with pytest.raises(ValueError, match=r"weight of layer '2' must hold its numbers.*Int8Tensor.*pack a"):
        change(model)
    assert not model[0].merged


def test_a_merged_weight_that_was_packed_is_plain_again_once_it_is_unmerged():
    model, x = adapted(mlp()).eval(), torch.randn(4, 6)
    y, W = model(x), model[2].weight.detach().clone()
    merge_lora(model)
    quantized_weight(model[2])
    merge_lora(model)  # changes nothing
    for merge in (False, True):
        with pytest.raises(
            ValueError, match=r"weight of layer '2' must hold .*\(unmerge_lora makes one plain"
        ):
            remove_lora(model, merge=merge)
    unmerge_lora(model)
    assert torch.equal(model[2].weight, W)
    assert not model[2].weight.requires_grad
    assert torch.equal(model(x), y)


def test_a_tracer_that_knows_no_leaves_is_named():
    with pytest.raises(
        TypeError, match=r"x must be a Tensor; got Proxy of torch.fx, to which this layer must"
    ):
        torch.fx.symbolic_trace(nn.Sequential(FusedLoRALinear(6, 3)))
