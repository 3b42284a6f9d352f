"""Mixtures with LoRA on their experts in training: checkpointing, compiling, autocast, the router's loss."""

import copy

import pytest
import torch

import fastlora
from fastlora import LoRAConfig, lora_layers
from fastlora.measuring.errors import assert_within_budget
from fastlora.segments import by_runs
from tests.experts.mixtures import EXPERTS, adapted, inputs_of, pair, tiny
from tests.experts.test_models import outcome

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def step(model, inputs):
    """The loss and every gradient, from a fixed seed."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_bits_with_dropout_too(reentrant):
    model = adapted(tiny(), dropout=0.3).train()
    inputs = inputs_of(model)
    want = step(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    got = step(model, inputs)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_the_routers_auxiliary_loss_is_pefts():
    model, theirs = pair()
    inputs = {**inputs_of(model), "output_router_logits": True}
    single = outcome(theirs, inputs)
    theirs.base_model.model.set_experts_implementation("eager")
    ours, truth = outcome(model.double(), inputs), outcome(theirs.double(), inputs)
    for what in truth:
        assert_within_budget(what, ours[what], single[what], truth[what])
    without = outcome(theirs, {**inputs, "output_router_logits": False})
    assert not torch.equal(without["loss"], truth["loss"])


def experts_of(model):
    """A module of experts, and arguments for it."""
    experts = model.model.layers[0].mlp.experts
    x = torch.randn(7, 32, requires_grad=True)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(7)])
    return experts, (x, index, torch.rand(7, 2))


def test_a_module_of_experts_compiles_into_one_graph():
    experts, given = experts_of(adapted(tiny()).train())
    want = torch.autograd.grad(experts(*given).sum(), given[0])
    compiled = torch.compile(experts, fullgraph=True, backend="eager")
    got = torch.autograd.grad(compiled(*given).sum(), given[0])
    torch.testing.assert_close(got, want)
    # Another distribution over experts is no other code.
    other = (given[0], given[1].flip(0), given[2])
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(*other), experts(*other))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_whole_mixture_compiles():
    model = adapted(tiny()).train()
    inputs = inputs_of(model)
    want = step(model, inputs)
    got = step(torch.compile(copy.deepcopy(model), backend="aot_eager"), inputs)
    for name, value in want.items():
        torch.testing.assert_close(got[name if name in got else f"_orig_mod.{name}"], value)


def test_autocast_leaves_the_experts_in_their_weights_dtype():
    experts, given = experts_of(adapted(tiny()))
    want = experts(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(experts(*given), want)
        assert experts(given[0].bfloat16(), *given[1:]).dtype == torch.bfloat16


def test_a_backward_pass_inside_autocast_changes_no_bit_of_experts_either():
    experts, given = experts_of(adapted(tiny()))
    given[2].requires_grad_()
    y = experts(*given)
    inputs = [given[2], *(p for p in experts.parameters() if p.requires_grad)]
    outside = torch.autograd.grad(y, inputs, torch.ones_like(y), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y, inputs, torch.ones_like(y))
    assert all(map(torch.equal, inside, outside))


def test_a_training_takes_the_loss_down_and_moves_the_updates_alone():
    torch.manual_seed(0)
    model = fastlora.apply_lora(tiny(), LoRAConfig(r=4, dropout=0.1, target_parameters=EXPERTS)).train()
    inputs, before = inputs_of(model), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_experts_without_tokens_get_zeros_and_others_are_untouched_by_it():
    model = adapted(tiny())
    experts, (x, _, weights) = experts_of(model)
    experts(x, torch.tensor([[1, 3]] * 7), weights).sum().backward()
    for name in ("gate_up_proj", "down_proj"):
        layer = dict(lora_layers(model))[f"model.layers.0.mlp.experts.{name}"]
        for factor in (layer.lora_A, layer.lora_B):
            assert [bool(grad.any()) for grad in factor.grad] == [False, True, False, True, False]


def test_generation_goes_on_token_by_token():
    model = adapted(tiny())
    tokens = inputs_of(model)["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False}
    with_cache = model.generate(tokens, **options, use_cache=True)
    assert torch.equal(with_cache, model.generate(tokens, **options, use_cache=False))


def test_nothing_of_the_size_of_a_stack_is_allocated():
    """Of many experts a few rows: every single allocation is smaller than one stack of weights."""
    model = adapted(tiny(num_experts=96), r=1)
    experts, given = experts_of(model)
    experts(*given)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        experts(*given).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < experts.down_proj.nbytes / 4


def test_each_pass_runs_once_for_a_projection(monkeypatch):
    calls = []
    for name in ("forward", "backward"):
        run = getattr(by_runs, name)
        monkeypatch.setattr(by_runs, name, lambda *a, run=run, name=name: calls.append(name) or run(*a))
    step(adapted(tiny()).train(), inputs_of(tiny()))
    assert calls == ["forward"] * 4 + ["backward"] * 4
