"""One computation for the members of a group: when a member takes its output, and when it computes alone."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastlora import (
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    group_counts,
    group_projections,
    merge_lora,
    set_adapter,
    set_backend,
    set_lora_enabled,
    ungroup_projections,
    use_adapter,
)
from fastlora.layer import sharing
from fastlora.measuring.errors import assert_within_budget
from tests.models import with_update

NAMES = ("q_proj", "k_proj", "v_proj")


class Attention(nn.Module):
    """Three projections of one x; `between` runs before the second."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, N) for N in (8, 4, 6))

    def forward(self, x, between=None):
        q = self.q_proj(x)
        other = None if between is None else between(x)
        x = x if other is None else other
        return torch.cat([q, self.k_proj(x), self.v_proj(x)], -1)


def attention(**options):
    model = with_update(apply_lora(Attention(), LoRAConfig(r=2, **options)))
    group_projections(model)
    return model


def hidden(rows=5):
    """An x as a model makes one: of an operation, so that nobody but its user holds it."""
    return torch.randn(rows, 8).requires_grad_() * 1


def gradients(model, x, run=None):
    model.zero_grad()
    y = (model if run is None else run)(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_within_budget("grouped", one, other, other.double())


def assert_empty():
    assert sharing._slot.held is None or sharing._slot.held.group is None


def test_all_are_computed_once_and_equal_to_alone():
    model, x = attention(), hidden()
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    assert_alike(gradients(model, x), gradients(apart, x.detach().requires_grad_()))
    counts = group_counts(model)
    assert (counts.groups, counts.rounds, counts.hits) == (1, 1, 2)
    assert not counts.misses
    assert not counts.alone
    assert group_counts(apart).groups == 0
    assert_empty()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model, x: x.clone(), "x is another tensor"),
        (lambda model, x: x.detach().add_(1) is None, "x was changed in place"),
        (lambda model, x: torch.set_grad_enabled(False) and None, "the grad mode changed"),
        (lambda model, x: x.detach_() is None, "x.requires_grad changed"),
        (lambda model, x: set_backend("torch") and None, "the backend setting changed"),
        (lambda model, x: set_adapter(model, "fr"), "the adapter or an option was changed"),
        (lambda model, x: model.eval() and None, "the adapter or an option was changed"),
        (lambda model, x: setattr(model.k_proj, "alpha", 7.0), "the adapter or an option was changed"),
        (lambda model, x: model.k_proj.lora_A.data.mul_(2) is None, None),
        (lambda model, x: model.k_proj.lora_A.detach().mul_(2) is None, "a parameter was changed in place"),
    ],
)
def test_what_changed_in_between_is_a_reason_to_compute_alone(change, why):
    model, x = attention(dropout=0.25), hidden()
    add_adapter(model, "fr", LoRAConfig(r=3))
    with torch.enable_grad():
        model(x, lambda x: other if isinstance(other := change(model, x), torch.Tensor) else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(hidden())  # the next round counts the last
    assert list(group_counts(model).misses) == ([] if why is None else [why])


def test_the_border_of_checkpointing_and_of_autocast_are_reasons_too():
    model = attention()
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    for circumstance in (pack, torch.autocast("cpu", torch.bfloat16)):
        x = hidden()
        model.q_proj(x)
        with circumstance:
            model.k_proj(x)
        model.v_proj(x)
        model(hidden())  # the next round counts the last
        model(hidden())
    assert sorted(group_counts(model).misses) == [
        "autocast changed",
        "the hooks on saved tensors changed, as at the border of activation checkpointing",
    ]


def test_a_miss_is_computed_as_alone():
    model, x = attention(), hidden()
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    between = lambda x: x * 2  # noqa: E731
    run = lambda net: lambda x: net(x, between)  # noqa: E731
    assert_alike(gradients(model, x, run(model)), gradients(apart, x.detach().requires_grad_(), run(apart)))


def test_two_misses_in_a_row_dissolve_a_group_and_name_it():
    model = attention()
    model(hidden(), lambda x: x * 2)
    model(hidden())
    model(hidden(), lambda x: x * 2)
    model(hidden(), lambda x: x * 2)
    with pytest.warns(
        UserWarning, match="q_proj, k_proj, v_proj are no longer computed together: x is another"
    ):
        model(hidden())
    counts = group_counts(model)
    assert counts.groups == 0
    assert counts.dissolved == {"q_proj, k_proj, v_proj": "x is another tensor"}
    assert "dissolved: q_proj" in str(counts)
    model(hidden())
    assert group_counts(model).rounds == counts.rounds


def test_members_that_are_not_called_are_named():
    model, x = attention(), hidden()
    model.q_proj(x), model.k_proj(x)
    model(hidden())
    assert dict(group_counts(model).misses) == {"v_proj not called with the same x": 1}


@pytest.mark.parametrize(
    ("state", "alone"),
    [
        (lambda model: model.k_proj.__setattr__("enabled", False), None),
        (lambda model: set_lora_enabled(model, False), None),
        (merge_lora, None),
        (lambda model: model.v_proj.lora_A.requires_grad_(False), None),
        (lambda model: model.k_proj.weight.requires_grad_(True), "k_proj: W or b requires a gradient"),
        (lambda model: nn.utils.parametrizations.weight_norm(model.k_proj), "k_proj: W is a NoneType"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:a merged FusedLoRALinear", "ignore:weight.requires_grad", "ignore:.*weight_norm"
)
def test_states_of_a_member(state, alone):
    model, x = attention(), hidden()
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    state(model), state(apart)
    run = lambda net: [net(x).detach()]  # noqa: E731
    assert_alike(run(model), run(apart))
    reasons = list(group_counts(model).alone)
    assert not reasons if alone is None else any(alone in reason for reason in reasons)


def test_several_adapters_of_different_ranks_and_one_without_a_part():
    model, x = attention(), hidden()
    add_adapter(model, "fr", LoRAConfig(r=3, alpha=1, target_modules=["q_proj", "v_proj"]))
    for name in ("q_proj", "v_proj"):
        nn.init.normal_(getattr(model, name).adapters["fr"].lora_B)
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    with use_adapter(model, "fr"), use_adapter(apart, "fr"):
        assert_alike(gradients(model, x), gradients(apart, x.detach().requires_grad_()))
    assert group_counts(model).hits == 2


def test_a_mixed_batch_computes_alone():
    model = attention().eval()
    add_adapter(model, "fr", LoRAConfig(r=2))
    with adapter_batch(model, ["fr", "default", None, "fr", "default"]):
        model(hidden())
    assert list(group_counts(model).alone) == ["in an adapter_batch, or just after one"]


def test_other_kinds_of_x_compute_alone():
    model = attention()
    with torch.inference_mode():
        model(torch.randn(2, 8))
    torch.func.vmap(model)(torch.randn(2, 3, 8))
    model(nn.Parameter(torch.randn(2, 8)))
    with pytest.raises(ValueError, match="x must have shape"):
        model(torch.randn(2, 5))
    assert set(group_counts(model).alone) == {
        "x is an inference tensor, whose changes cannot be seen",
        "a torch.func transform or forward-mode differentiation is at work",
        "x is not a plain tensor",
        "the operands do not fit together",
    }


def test_an_exception_between_members_leaves_nothing_behind():
    model, seen = attention(), []

    def fails(x):
        seen.append(weakref.ref(sharing._slot.held.ys[1]))
        raise KeyError("between")

    def run():
        x = hidden()
        with pytest.raises(KeyError):
            model(x, fails)

    run()
    gc.collect()
    assert_empty()
    assert seen[0]() is None
    model(hidden())
    assert group_counts(model).hits == 2


def test_hooks_of_members_run():
    model, seen = attention(), []
    for name in NAMES:
        getattr(model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model(hidden())
    assert tuple(seen) == NAMES
    model.k_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model(hidden()), model(hidden())
    assert list(group_counts(model).misses) == ["x is another tensor"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    model, x = attention(dropout=0.25), hidden()
    run = lambda x: checkpoint(model, x, use_reentrant=reentrant)  # noqa: E731
    torch.manual_seed(1)
    plain = gradients(model, x)
    torch.manual_seed(1)
    again = gradients(model, x.detach().requires_grad_() * 1, run)
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)
    counts = group_counts(model)
    # Without reentrance the second run stops at the last tensor that is to be saved, inside the computation.
    rounds = 3 if reentrant else 2
    assert (counts.rounds, counts.hits, dict(counts.misses)) == (rounds, 2 * rounds, {})
    assert_empty()


@pytest.mark.parametrize("checkpointed", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_whole(checkpointed):
    model = attention()

    def run(x):
        x = x * 2
        y = checkpoint(lambda x: model(x * 1), x, use_reentrant=False) if checkpointed else model(x)
        return y * 1

    x = torch.randn(5, 8, requires_grad=True)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_alike(gradients(model, x, compiled), gradients(model, x, run))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_code_refuses_an_x_that_is_changed_in_between():
    model = attention()

    def between(x):
        x.add_(1)

    def run(x):
        return model(x * 1, between)

    with pytest.raises(Exception, match="x must not be changed in place between projections"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(torch.randn(5, 8))


def test_copies_are_groups_of_their_own():
    model = attention()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(hidden())
        assert (group_counts(other).rounds, group_counts(other).hits) == (1, 2)
    assert group_counts(model).rounds == 0
    lone = copy.deepcopy(model.q_proj)
    x = hidden()
    assert torch.equal(lone(x), lone._computed(x))
    assert list(group_counts(lone).alone) == ["k_proj is gone"]
    twin = copy.copy(model.q_proj)
    twin(x)
    assert list(group_counts(twin).alone) == ["the layer is a copy of a member"]


def test_threads_do_not_take_each_others_outputs():
    model, wrong = attention(), []
    expected = {rows: model(x) for rows in (3, 4) for x in [torch.full((rows, 8), float(rows))]}

    def work(rows):
        for _ in range(30):
            y = model(torch.full((rows, 8), float(rows)))
            if not torch.equal(y, expected[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not group_counts(model).misses


def test_names_state_and_attributes_stay():
    model = with_update(apply_lora(Attention(), LoRAConfig(r=2)))
    before = [name for name, _ in model.named_modules()], list(model.state_dict()), dict(vars(model.q_proj))
    group_projections(model)
    assert ([name for name, _ in model.named_modules()], list(model.state_dict())) == before[:2]
    ungroup_projections(model)
    assert vars(model.q_proj).keys() == before[2].keys()
