"""Starts of updates: from W, and such that B A is zero; the function is the same at step 0."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fastlora
from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, initialize, lora_layers
from fastlora.formula.oracle import unfused
from fastlora.measuring.errors import assert_within_budget, relative_error
from tests.models import Shared, TiedLM, adapted, mlp
from tests.started import DTYPES, STARTS, rescaled, started, trained, wide_mlp


def by_hand(base, model, x):
    """Unfused torch on the same A and B, with W - s B A rounded once from fp64."""
    for plain, layer in zip(base, model, strict=True):
        if isinstance(layer, FusedLoRALinear):
            A, B, s = layer.lora_A, layer.lora_B, layer.scaling
            left = (plain.weight.double() - s * B.double() @ A.double()).to(x.dtype)
            x = unfused(x, left, plain.bias, A, B, s)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_function_at_step_0_is_the_plain_nets(start, dtype, wide, rslora):
    adapter_dtype = torch.float32 if wide else dtype
    base, model, x = started(start, dtype, adapter_dtype=adapter_dtype, rslora=rslora)
    with torch.no_grad():
        assert_within_budget("y", model(x), by_hand(base, model, x), rescaled(base)(x.double()))
    for index in (0, 2):
        layer = model[index]
        assert layer.lora_A.dtype == layer.lora_B.dtype == adapter_dtype
        assert layer.lora_B.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_the_orthogonal_start_is_exactly_zero_and_trains_both_sides(dtype, r):
    base = wide_mlp(dtype)
    model = apply_lora(copy.deepcopy(base), LoRAConfig(r=r, alpha=3.0, init="orthogonal"))
    x = torch.randn(6, 23, dtype=dtype)
    with torch.no_grad():
        fastlora.set_lora_enabled(model, False)
        off = model(x)
        fastlora.set_lora_enabled(model, True)
    model(x).square().sum().backward()
    for index in (0, 2):
        layer = model[index]
        assert torch.equal(layer.lora_B @ layer.lora_A, torch.zeros_like(layer.weight))
        assert torch.equal(layer.effective_weight(), base[index].weight)
        assert layer.lora_A.any(dim=1).sum() == (r + 1) // 2
        assert layer.lora_B.any(dim=0).sum() == r // 2
        assert layer.lora_A.grad.any() == (r > 1)
        assert layer.lora_B.grad.any()
    with torch.no_grad():
        assert torch.equal(model(x), off)


def test_pissa_holds_the_principal_part_as_numpy_finds_it():
    base, model, _ = started("pissa")
    U, S, Vt = np.linalg.svd(base[0].weight.detach().double().numpy(), full_matrices=False)
    layer = model[0]
    found = layer.scaling * (layer.lora_B.detach().double() @ layer.lora_A.detach().double())
    principal = torch.from_numpy(U[:, :3] * S[:3] @ Vt[:3])
    U, S, Vt = torch.linalg.svd(base[0].weight.detach(), full_matrices=False)
    assert_within_budget("s B A", found.float(), U[:, :3] * S[:3] @ Vt[:3], principal)
    rest = torch.linalg.svdvals(layer.weight.detach())[0]
    assert_within_budget("W's norm", rest, S[3], torch.linalg.svdvals(base[0].weight.detach().double())[3])
    sides = layer.lora_B.detach().norm(dim=0), layer.lora_A.detach().norm(dim=1)
    assert_within_budget("balance", sides[0], sides[1], (S[:3].double() / layer.scaling).sqrt())


def test_olora_holds_orthonormal_columns_and_the_rows_of_r():
    base, model, _ = started("olora")
    B, A = model[0].lora_B.detach(), model[0].lora_A.detach()
    identity = torch.eye(3, dtype=torch.float64)
    assert_within_budget("BᵀB", B.t() @ B, torch.linalg.qr(B).Q.t() @ torch.linalg.qr(B).Q, identity)
    assert torch.equal(A, A.triu())
    # Q_r R_r is W's projection onto its own first r columns' span.
    W = base[0].weight.detach()
    columns = torch.linalg.qr(W.double()[:, :3]).Q
    projected = torch.linalg.qr(W[:, :3]).Q @ (torch.linalg.qr(W[:, :3]).Q.t() @ W)
    assert_within_budget("Q R", B @ A, projected, columns @ (columns.t() @ W.double()))


def test_the_randomized_start_is_as_near_to_the_truth_as_the_exact_one():
    base, random, _ = started("pissa-randomized")
    exact = apply_lora(copy.deepcopy(base), LoRAConfig(r=3, alpha=5.0))
    initialize(exact, "pissa")
    for index in (0, 2):
        ours, torchs = (m[index].lora_B.detach() @ m[index].lora_A.detach() for m in (random, exact))
        U, S, Vt = torch.linalg.svd(base[index].weight.detach().double(), full_matrices=False)
        truth = U[:, :3] * S[:3] @ Vt[:3] / exact[index].scaling
        # Twice: the drawn columns pass through a QR decomposition besides.
        assert_within_budget("B A", ours, torchs, truth, extra=2 * relative_error(torchs, truth))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merged", [False, True])
def test_switched_off_the_net_is_the_plain_one_after_training_too(start, dtype, merged):
    base, model, x = started(start, dtype)
    trained(model, x)
    if merged:
        fastlora.merge_lora(model)
    with torch.no_grad(), fastlora.lora_disabled(model):
        assert_within_budget("y", model(x), base(x), rescaled(base)(x.double()))
        assert relative_error(model[0].effective_weight(), base[0].weight) <= torch.finfo(dtype).eps
    assert relative_error(model(x).detach(), base(x).detach()) > torch.finfo(dtype).eps


def test_the_update_starts_anew_where_it_started():
    _, model, x = started("pissa")
    with torch.no_grad():
        first = model(x)
    trained(model, x)
    for _, layer in lora_layers(model):
        layer.reset_adapter()
    assert torch.equal(model(x), first)
    model[0].reset_parameters()
    assert model[0].start_A is None
    assert not model[0].lora_B.any()


def test_merging_and_removing_keep_the_trained_function():
    _, model, x = started("pissa")
    truth = rescaled(trained(model, x))(x.double()).detach()
    before = model(x).detach()
    left = model[0].weight.clone()
    fastlora.merge_lora(model)
    assert_within_budget("merged", model(x).detach(), before, truth)
    fastlora.unmerge_lora(model)
    assert torch.equal(model[0].weight, left)
    plain = fastlora.remove_lora(model, merge=True)
    assert type(plain[0]) is nn.Linear
    assert_within_budget("removed", plain(x).detach(), before, truth)


def test_what_needs_the_weights_from_before_is_refused(tmp_path):
    fastlora.save_pretrained(adapted(wide_mlp(), r=3), tmp_path)
    _, model, _ = started("pissa")
    before = copy.deepcopy(model.state_dict())
    for refused in (
        lambda: fastlora.remove_lora(model),
        lambda: fastlora.add_adapter(model, "fr", LoRAConfig(r=2)),
        lambda: fastlora.combine_adapters(model, {"default": 1.0}, "mix"),
        lambda: fastlora.load_pretrained(model, tmp_path),
        lambda: fastlora.load_pretrained(model, tmp_path, name="fr"),
        lambda: fastlora.hot_swap(model, tmp_path),
        lambda: initialize(model, "olora"),
    ):
        with pytest.raises((ValueError, fastlora.AdapterError), match="W of layer '0' must be whole"):
            refused()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert after.keys() == before.keys()


def spoiled(change):
    model = apply_lora(mlp(), LoRAConfig(r=2))
    return change(model) or model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp, "model must have LoRA layers"),
        (lambda: apply_lora(mlp(), LoRAConfig(r=4)), "r of layer '2' must be at most 3.*got 4 "),
        (lambda: apply_lora(mlp(), LoRAConfig(alpha=0.0, r=2)), "s of layer '0' must be positive.*got 0"),
        (lambda: adapted(mlp()), "B of layer '0' must be zero, not trained"),
        (lambda: spoiled(fastlora.merge_lora), "layer '0' must be unmerged"),
        (lambda: spoiled(lambda m: fastlora.add_adapter(m, "fr", LoRAConfig(r=2))), "must have one adapter"),
        (lambda: spoiled(lambda m: m[2].weight.data.fill_(torch.inf) is m), "W of layer '2'"),
        (lambda: spoiled(lambda m: m.to("meta")), "W of layer '0' must hold finite values"),
        (
            lambda: apply_lora(TiedLM(), LoRAConfig(r=2, target_modules=["lm_head"])),
            "lm_head.weight must belong to this layer alone to be started from; it is shared by embed.weight",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_started_from_w_is_named_and_left(model, message):
    model = model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize(model, "pissa")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(v.is_meta or torch.equal(after[key].nan_to_num(), v.nan_to_num()) for key, v in before.items())


def test_a_module_in_two_places_is_started_once():
    base = Shared()
    model = apply_lora(copy.deepcopy(base), LoRAConfig(r=2))
    initialize(model, "pissa")
    x = torch.randn(3, 4)
    assert_within_budget("y", model(x).detach(), base(x).detach(), rescaled(base)(x.double()).detach())


def test_names_of_starts_are_told_where_they_are_wrong():
    model = apply_lora(mlp(), LoRAConfig(r=2))
    with pytest.raises(ValueError, match="start must be one of pissa, pissa-randomized, olora; got 'svd'"):
        initialize(model, "svd")
    with pytest.raises(ValueError, match=r"got 'pissa' \(it changes W: call fastlora.initialize after"):
        LoRAConfig(init="pissa")
    with pytest.raises(ValueError, match="init must be one of gaussian, kaiming, orthogonal; got 'svd'"):
        FusedLoRALinear(3, 2, init="svd")
