"""Threads that change a model while others change it or compute with it."""

import multiprocessing
import sys
import threading

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastlora import (
    LoRAConfig,
    add_adapter,
    load_pretrained,
    lora_layers,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    set_lora_enabled,
    unmerge_lora,
)
from fastlora.layer import commits
from tests.models import adapted
from tests.several_adapters import filled

ROUNDS = 150


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*works):
    """Run each in a thread of its own, and raise what one of them raised."""
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def model_of_two():
    model = adapted(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))
    add_adapter(model, "fr", LoRAConfig(r=3, alpha=50))
    return filled(model, "fr")


def test_threads_that_merge_and_unmerge_leave_every_weight_bit_for_bit():
    model = model_of_two()
    before = [layer.weight.clone() for _, layer in lora_layers(model)]

    def rounds():
        for _ in range(ROUNDS):
            merge_lora(model)
            unmerge_lora(model)

    together(rounds, rounds, rounds)
    assert not any(layer.merged for _, layer in lora_layers(model))
    for (_, layer), weight in zip(lora_layers(model), before, strict=True):
        assert torch.equal(layer.weight, weight)


def switched(model):
    for _ in range(ROUNDS):
        set_adapter(model, "fr")
        set_adapter(model, "default")


def merged(model):
    for _ in range(ROUNDS):
        merge_lora(model)
        unmerge_lora(model)


def enabled(model):
    for _ in range(ROUNDS):
        set_lora_enabled(model, False)
        set_lora_enabled(model, True)


def one_way(model, change):
    """Outputs of the first layer before and after the first half of a change."""
    first = {
        switched: lambda: set_adapter(model, "fr"),
        merged: lambda: merge_lora(model),
        enabled: lambda: set_lora_enabled(model, False),
    }
    back = {
        switched: lambda: set_adapter(model, "default"),
        merged: lambda: unmerge_lora(model),
        enabled: lambda: set_lora_enabled(model, True),
    }
    return first[change], back[change]


@pytest.mark.parametrize("change", [switched, merged, enabled])
def test_a_forward_beside_changes_gives_the_output_of_one_state(change):
    model, x = model_of_two(), torch.randn(3, 16)
    there, back = one_way(model, change)
    with torch.no_grad():
        wanted = [model[0](x)]
        there()
        wanted.append(model[0](x))
        back()
    assert not torch.equal(*wanted)
    others, over = [], threading.Event()

    def forwards():
        with torch.no_grad():
            while not over.is_set():
                y = model[0](x)
                if not any(torch.equal(y, each) for each in wanted):
                    others.append(y)

    def changes_then_over():
        try:
            change(model)
        finally:
            over.set()

    together(changes_then_over, forwards)
    assert not others


class Graphless(TorchFunctionMode):
    """Inside, nothing may be computed of a tensor that requires a gradient where autograd would note it."""

    # These ask about a tensor, or leave the graph.
    harmless = ("__get__", "__set__", "detach", "dim", "is_floating_point", "is_inference", "numel", "size")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if torch.is_grad_enabled() and function.__name__ not in self.harmless:
            assert not any(getattr(each, "requires_grad", False) for each in args), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dora", [False, True])
def test_no_change_makes_a_graph_of_parameters(dora, tmp_path):
    # torch 2.13 locks up where a parameter's first node is made beside another thread's call with it.
    model = adapted(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), dora=dora)
    with Graphless():
        add_adapter(model, "fr", LoRAConfig(r=3, dora=dora))
        for change in (switched, merged, enabled):
            there, back = one_way(model, change)
            there()
            back()
        save_pretrained(model, tmp_path)
        load_pretrained(model, tmp_path, name="de")
        model.load_state_dict(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).state_dict(), strict=False)
        remove_lora(model, merge=True)


def test_a_layer_that_a_forward_found_before_it_was_removed_adds_its_update_once():
    model, x = model_of_two(), torch.randn(3, 16)
    layer = model[0]
    remove_lora(model, merge=True)
    expected = model[0](x)
    assert torch.equal(layer(x), expected)


def test_an_error_of_a_forward_that_nothing_disturbed_is_raised():
    model = model_of_two()
    with pytest.raises(ValueError, match="x must have shape"):
        model[0](torch.randn(3, 5))


def locked_in_child(queue):
    model = adapted(nn.Sequential(nn.Linear(4, 4)))
    merge_lora(model)
    queue.put(commits.moved % 2)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_during_a_change_can_change_models_itself():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    held, over = threading.Event(), threading.Event()

    def hold():
        with commits.commit():
            held.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = context.Process(target=locked_in_child, args=(queue,))
    child.start()
    over.set()
    thread.join()
    assert queue.get(timeout=30) == 0
    child.join()


def test_a_save_beside_a_change_waits_for_its_end(tmp_path):
    model = adapted(nn.Sequential(nn.Linear(4, 4)))
    entered, saved = threading.Event(), threading.Event()

    def save():
        entered.wait()
        save_pretrained(model, tmp_path)
        saved.set()

    @commits.exclusive
    def change():
        entered.set()
        assert not saved.wait(0.2)

    together(save, change)
    assert saved.is_set()
