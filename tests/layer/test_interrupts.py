"""Ctrl-C at any line of what changes a model leaves it as before or as after."""

import copy
import signal
import threading
from functools import partial

import pytest
import torch

from fastlora import (
    LoRAConfig,
    add_adapter,
    apply_lora,
    combine_adapters,
    delete_adapter,
    freeze,
    hot_swap,
    initialize,
    load_adapter,
    load_pretrained,
    lora_disabled,
    merge_lora,
    remove_lora,
    save_adapter,
    save_pretrained,
    set_adapter,
    set_lora_enabled,
    unfreeze,
    unmerge_lora,
    use_adapter,
)
from fastlora.layer import commits
from tests.interrupts import by_exception, by_signal, interrupted, lines_of, some
from tests.models import adapted, mlp, with_update
from tests.several_adapters import two

# An interrupt between open and with leaves a file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def state(model):
    """All of a model that an interrupt could leave in the middle of a change; bits, not values."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [
            (name, type(module), module.training, flags(module))
            for name, module in model.named_modules(remove_duplicate=False)
        ],
        "tensors": [
            (name, tensor.requires_grad, tensor.grad is None, tensor.detach().numpy().tobytes())
            for name, tensor in tensors
        ],
    }


def flags(module):
    """What was set on a module, hooks and containers aside."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, tuple, type(None))) and name != "training"
    } | {"in use": getattr(module, "adapter", None)}


def started():
    return apply_lora(mlp(), LoRAConfig(r=2))


def merged():
    model = adapted(mlp())
    merge_lora(model)
    return model


def merged_and_off():
    model = merged()
    set_lora_enabled(model, False)
    return model


def evaluated():
    return two(first={"target_modules": ["0"]}).eval()


def frozen():
    model = two()
    unfreeze(model)
    model(torch.randn(2, 6)).sum().backward()
    return model


def first_of_two():
    return two(first={"target_modules": ["0"]}, second={"target_modules": ["2"]})


def trained_head():
    return apply_lora(mlp(), LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]))


def disabled_for_a_while(model):
    with lora_disabled(model):
        pass


def used_for_a_while(model):
    with use_adapter(model, "fr"):
        pass


def applied(model):
    apply_lora(model, LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]))


CHANGES = {
    "apply": (mlp, applied),
    "merge": (lambda: adapted(mlp()), merge_lora),
    "unmerge": (merged, unmerge_lora),
    "remove": (merged, remove_lora),
    "remove-merged": (lambda: adapted(mlp()), lambda model: remove_lora(model, merge=True)),
    "remove-merged-before": (merged_and_off, lambda model: remove_lora(model, merge=True)),
    "merge-layer": (lambda: adapted(mlp()), lambda model: model[0].merge()),
    "unmerge-layer": (merged, lambda model: model[0].unmerge()),
    "reset-layer": (lambda: adapted(mlp()), lambda model: model[0].reset_adapter()),
    "set": (first_of_two, lambda model: set_adapter(model, "fr")),
    "use": (first_of_two, used_for_a_while),
    "add": (evaluated, lambda model: add_adapter(model, "de", LoRAConfig(r=1))),
    "delete": (first_of_two, lambda model: delete_adapter(model, "fr")),
    "combine": (two, lambda model: combine_adapters(model, {"default": 1, "fr": -2}, "sum")),
    "enable": (lambda: adapted(mlp()), lambda model: set_lora_enabled(model, False)),
    "disabled": (merged, disabled_for_a_while),
    "freeze": (frozen, freeze),
    "unfreeze": (two, unfreeze),
    "initialize": (started, lambda model: initialize(model, "olora")),
}


# The same with an adapter's files.
FILES = {
    "load": (mlp, lambda model, folder: load_pretrained(model, folder / "head")),
    "load-again": (trained_head, lambda model, folder: load_pretrained(model, folder / "head")),
    "load-further": (evaluated, lambda model, folder: load_pretrained(model, folder / "all", name="de")),
    "load-file": (lambda: adapted(mlp()), lambda model, folder: load_adapter(model, folder / "file")),
    "hot-swap": (lambda: adapted(mlp()), lambda model, folder: hot_swap(model, folder / "all")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    save_pretrained(with_update(trained_head()), path / "head")
    save_pretrained(adapted(mlp()), path / "all")
    save_adapter(adapted(mlp()), path / "file")
    return path


def assert_before_or_after(make, change, points, come=by_signal):
    torch.manual_seed(0)
    original = make()
    before = state(original)
    after = copy.deepcopy(original)
    torch.manual_seed(1)
    change(after)
    after = state(after)
    for at in points:
        model = copy.deepcopy(original)
        torch.manual_seed(1)
        interrupted(change, model, at, come)
        assert_locks_are_free()
        now = state(model)
        assert now in (before, after), (at, difference(now, before), difference(now, after))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if now == before:
            torch.manual_seed(1)
            change(model)
            assert state(model) == after, at


def assert_locks_are_free():
    """Whether another thread can take them, which this one always could."""
    taken = []

    def take():
        for lock in (commits._operations, commits._commits):
            taken.append(lock.acquire(timeout=10))
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert taken == [True, True]


def difference(one, other):
    return {key: [pair for pair in one[key] if pair not in other[key]] for key in one}


@pytest.mark.parametrize("name", CHANGES)
def test_a_signal_leaves_a_model_before_or_after_a_change(name):
    make, change = CHANGES[name]
    assert_before_or_after(make, change, some(lines_of(make, change), name))


@pytest.mark.parametrize("name", FILES)
def test_a_signal_leaves_a_model_before_or_after_files_are_read_into_it(folder, name):
    make, change = FILES[name][0], partial(FILES[name][1], folder=folder)
    assert_before_or_after(make, change, some(lines_of(make, change), name))


@pytest.fixture(autouse=True)
def _the_usual_handler():
    # A shell starts a command in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.exhaustive
@pytest.mark.parametrize("come", [by_signal, by_exception])
@pytest.mark.parametrize("name", [*CHANGES, *FILES])
def test_an_interrupt_at_any_line_leaves_a_model_before_or_after_a_change(folder, name, come):
    make, change = CHANGES[name] if name in CHANGES else FILES[name]
    change = change if name in CHANGES else partial(change, folder=folder)
    assert_before_or_after(make, change, range(1, lines_of(make, change, come) + 1), come)
