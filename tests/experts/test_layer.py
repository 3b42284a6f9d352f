"""A module of experts with LoRA: what it computes in every layout, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import fastlora
from fastlora import LoRAConfig, apply_lora, lora_layers, merge_lora, remove_lora
from fastlora.measuring.errors import assert_within_budget
from tests.experts.modules import (
    LAYOUTS,
    E,
    K,
    arguments,
    merged_plain,
    module,
    results,
    with_lora,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_with_w_and_the_update(layout):
    net, plain = module(layout)
    with_lora(net)
    given = arguments()
    wide = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in given]
    torchs = results(merged_plain(net, copy.deepcopy(plain)), given)
    truth = results(merged_plain(net.double(), plain.double()), wide)
    for name, mine, theirs, true in zip(
        ("y", "dx", "dw"), results(net.float()["experts"], given), torchs, truth, strict=True
    ):
        assert_within_budget(name, mine, theirs, true)


def test_one_parameter_alone_and_the_other_as_it_is():
    net, plain = module()
    with_lora(net, target_parameters=["down_proj"])
    given = arguments(torch.float64)
    want = results(merged_plain(net.double(), plain.double()), given)
    for mine, theirs in zip(results(net["experts"], given), want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_drops_in_training_alone_and_gradients_are_the_masks():
    net, _ = module()
    with_lora(net, dropout=0.5).double()
    given = arguments(torch.float64)
    net.eval()
    still = net["experts"](*given)
    assert torch.equal(still, net["experts"](*given))
    net.train()
    torch.manual_seed(1)
    moved = net["experts"](*given)
    assert not torch.equal(moved, net["experts"](*given))

    def seeded(x, weights):
        torch.manual_seed(1)
        return net["experts"](x, given[1], weights)

    assert torch.equal(seeded(given[0], given[2]), moved)
    assert torch.autograd.gradcheck(seeded, (given[0], given[2]), fast_mode=True)


def test_the_models_own_choice_of_implementation_stays_its_own():
    net, _ = module()
    config = net["experts"].config
    with_lora(net)
    given = arguments()
    want = net["experts"](*given)
    config._experts_implementation_internal = "batched_mm"
    assert torch.equal(net["experts"](*given), want)
    remove_lora(net)
    assert net["experts"].config is config


def test_trained_base_weights_are_told_and_get_no_gradient():
    net, _ = module()
    with_lora(net)
    net["experts"].down_proj.requires_grad_(True)
    with pytest.warns(UserWarning, match="down_proj of experts with LoRA requires a gradient, and gets none"):
        net["experts"](*arguments()).sum().backward()
    assert net["experts"].down_proj.grad is None


def test_a_merged_stack_is_not_trained_in_place_of_w():
    net, _ = module()
    with_lora(net).eval()
    given = arguments()
    merge_lora(net)
    y = net["experts"](*given)
    net.requires_grad_(True)
    with pytest.warns(UserWarning, match="requires_grad is True, but FusedLoRAExperts gives it no gradient"):
        again = net["experts"](*given)
    assert torch.equal(again, y)
    again.sum().backward()
    assert net["experts"].down_proj.grad is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda net: setattr(net["experts"], "_is_expert_parallel", True), TypeError, "expert parallelism"),
        (lambda net: setattr(net["experts"], "lora", nn.Linear(1, 1)), TypeError, "of its own called 'lora'"),
        (lambda net: setattr(net["experts"], "forward", print), TypeError, "must keep its class's forward"),
        (lambda net: with_lora(net), ValueError, "without LoRA; 'experts.down_proj' has"),
        (lambda net: setattr(net["experts"], "down_proj", None), ValueError, "must match a module"),
    ],
)  # fmt: skip
def test_what_takes_no_lora_is_named_and_stays_as_it_was(change, error, message):
    net, _ = module()
    change(net)
    before = list(net.state_dict())
    with pytest.raises(error, match=message):
        apply_lora(net, LoRAConfig(target_parameters=["down_proj"]))
    assert list(net.state_dict()) == before


def test_experts_spread_over_processes_later_are_refused_by_name():
    net, _ = module()
    with_lora(net)
    net["experts"]._is_expert_parallel = True
    with pytest.raises(TypeError, match="these are spread over processes"):
        net["experts"](*arguments())


def test_starts_from_w_and_analysis_are_refused_by_name():
    net, _ = module()
    with_lora(net)
    with pytest.raises(ValueError, match=r"must be linear to be started from W; 'experts\.gate_up_proj"):
        fastlora.initialize(net, "pissa")
    from fastlora.analysis.updates import layers_with

    with (
        pytest.warns(UserWarning, match="updates of experts and embeddings are not analyzed"),
        pytest.raises(ValueError, match="must be linear to be analyzed"),
    ):
        layers_with(net, None)


def test_excluded_experts_stay_plain():
    net = nn.ModuleDict({"experts": module()[0]["experts"], "router": nn.Linear(K, E)})
    apply_lora(net, LoRAConfig(exclude_modules=["experts"]))
    assert [name for name, _ in lora_layers(net)] == ["router"]
    with pytest.raises(ValueError, match="leaves none of target_parameters"):
        apply_lora(net, LoRAConfig(exclude_modules=["experts"], target_parameters=["down_proj"]))
