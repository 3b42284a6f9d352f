"""A module of experts with LoRA: merged, several adapters, saved, copied, moved."""

import copy
import io

import pytest
import torch
from torch import nn

import fastlora
from fastlora import LoRAConfig, apply_lora, lora_layers, remove_lora
from tests.experts.modules import (
    INNER,
    LAYOUTS,
    E,
    K,
    arguments,
    merged_plain,
    module,
    with_lora,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_gives_that_weight_and_unmerging_w_bit_for_bit(layout):
    net, plain = module(layout)
    with_lora(net)
    given, before = arguments(), {n: p.detach().clone() for n, p in net.named_parameters()}
    merged = merged_plain(net, copy.deepcopy(plain))
    fastlora.merge_lora(net)
    assert torch.equal(net["experts"](*given), merged(*given))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    fastlora.unmerge_lora(net)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    remove_lora(net, merge=True)
    assert torch.equal(net["experts"](*given), merged(*given))
    assert list(net.state_dict()) == [f"experts.{name}" for name in plain.state_dict()]


def test_adapters_are_added_switched_combined_and_deleted():
    net, plain = module()
    with_lora(net)
    given = arguments()
    first = net["experts"](*given)
    fastlora.add_adapter(net, "small", LoRAConfig(r=1, target_parameters=["down_proj"]))
    layers = dict(lora_layers(net))
    nn.init.normal_(layers["experts.down_proj"].adapters["small"].lora_B)
    with fastlora.use_adapter(net, "small"):
        second = net["experts"](*given)
        assert layers["experts.gate_up_proj"].active is None
        assert [n for n, p in net.named_parameters() if p.requires_grad] == [
            f"experts.lora.down_proj.adapters.small.lora_{letter}" for letter in "AB"
        ]
    assert not torch.equal(first, second)
    fastlora.combine_adapters(net, {"default": 1.0, "small": 0.0}, "sum")
    fastlora.combine_adapters(net, {"default": 1.0}, "near", r=1)
    with fastlora.use_adapter(net, "sum"):
        torch.testing.assert_close(net["experts"](*given), first)
    assert layers["experts.down_proj"].adapters["near"].lora_A.shape == (E, 1, INNER)
    for name in ("small", "sum", "near"):
        fastlora.delete_adapter(net, name)
    assert torch.equal(net["experts"](*given), first)
    remove_lora(net)
    assert torch.equal(net["experts"](*given), plain(*given))


def test_an_adapter_may_reach_experts_that_had_no_lora_and_leaves_none_behind():
    net, plain = module()
    with_lora(net, target_parameters=["down_proj"])
    fastlora.add_adapter(net, "other", LoRAConfig(r=1, target_parameters=["gate_up_proj"]))
    assert [name for name, _ in lora_layers(net)] == ["experts.gate_up_proj", "experts.down_proj"]
    given = arguments()
    with fastlora.use_adapter(net, "other"):
        assert torch.allclose(net["experts"](*given), plain(*given))
    fastlora.delete_adapter(net, "other")
    assert [name for name, _ in lora_layers(net)] == ["experts.down_proj"]


def test_state_dicts_load_with_and_without_updates_merged_or_not():
    net, plain = module()
    with_lora(net)
    state, given = copy.deepcopy(net.state_dict()), arguments()
    want = net["experts"](*given)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    fastlora.merge_lora(net)
    net.load_state_dict(state)
    assert torch.equal(net["experts"](*given), want)
    # A checkpoint of the plain module leaves the updates.
    fastlora.merge_lora(net)
    net.load_state_dict({f"experts.{name}": value for name, value in plain.state_dict().items()})
    assert torch.equal(net["experts"](*given), want)
    # A and B alone leave W.
    fastlora.merge_lora(net)
    net.load_state_dict({name: value for name, value in state.items() if "lora_" in name}, strict=False)
    assert torch.equal(net["experts"](*given), want)


def test_inits_ranks_alphas_and_rslora_are_each_stacks():
    net, _ = module()
    options = {"rank_pattern": {"gate_up_proj": 4}, "alpha_pattern": {"down_proj": 5}, "rslora": True}
    apply_lora(
        net,
        LoRAConfig(
            r=2, alpha=3, init="orthogonal", target_parameters=["gate_up_proj", "down_proj"], **options
        ),
    )
    up, down = (dict(lora_layers(net))[f"experts.{name}"] for name in ("gate_up_proj", "down_proj"))
    assert up.lora_A.shape == (E, 4, K)
    assert down.lora_B.shape == (E, K, 2)
    assert (up.scaling, down.scaling) == (3 / 2, 5 / 2**0.5)
    for layer in (up, down):
        assert not (layer.lora_B @ layer.lora_A).any()
        assert layer.lora_A.flatten(1).any(1).all()
        assert layer.lora_B.flatten(1).any(1).all()
    up.reset_adapter()
    assert not (up.lora_B @ up.lora_A).any()


def test_copies_and_reports_count_every_expert():
    net, _ = module()
    with_lora(net)
    report = fastlora.parameter_report(net)
    up, down = report.layers
    assert (up.experts, up.r, up.base, up.lora) == (E, 2, E * K * 2 * INNER, E * 2 * (K + 2 * INNER))
    assert f"{E} x {INNER} -> {K}" in str(report)
    assert report.trainable == report.lora == up.lora + down.lora
    groups = fastlora.lora_plus_groups(net, 1e-3, 16)
    assert [len(group["params"]) for group in groups] == [2, 2]
    twin, given = copy.deepcopy(net), arguments()
    assert torch.equal(twin["experts"](*given), net["experts"](*given))
    nn.init.zeros_(dict(lora_layers(twin))["experts.down_proj"].lora_B)
    assert not torch.equal(twin["experts"](*given), net["experts"](*given))
    fastlora.merge_lora(twin)
    assert not torch.equal(twin["experts"].gate_up_proj, net["experts"].gate_up_proj)


def test_half_precision_and_devices_move_with_the_module():
    net, _ = module()
    apply_lora(net.bfloat16(), LoRAConfig(r=2, target_parameters=["down_proj"]))
    (layer,) = dict(lora_layers(net)).values()
    assert layer.lora_A.dtype == torch.float32
    assert net.to("meta") is net
    assert layer.lora_A.is_meta


def test_it_is_saved_by_torch():
    net, _ = module()
    with_lora(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = with_lora(module()[0])
    other.load_state_dict(torch.load(file))
    given = arguments()
    assert torch.equal(other["experts"](*given), net["experts"](*given))
