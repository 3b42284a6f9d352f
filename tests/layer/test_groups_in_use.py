"""Groups where models are used: hooks, errors, checkpointing, compiled code, copies, threads."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastlora import (
    LoRAConfig,
    apply_lora,
    group_counts,
    group_projections,
    ungroup_projections,
)
from fastlora.layer import sharing
from tests.grouped import NAMES, Attention, assert_alike, assert_empty, attention, gradients, hidden
from tests.models import with_update


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
