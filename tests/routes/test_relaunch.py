"""Kernels that were compiled before are launched again without a search, and only where they are the same."""

import pytest
import torch
from triton.compiler import CompiledKernel

from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import fused, relaunch
from fastlora.routes.relaunch import launch, on_16_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP16, FP32 = torch.float16, torch.float32


class Compiled(CompiledKernel):
    """What a launch of `Kernel` gives: it notes what it is launched with."""

    module = None

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda *arguments: self.launched.append((grid, arguments))


class Kernel:
    """A stand-in for a function of Triton's."""

    arg_names = ("x", "M", "BLOCK")

    def __init__(self, gives=Compiled):
        self.gives, self.searched, self.made = gives, [], []

    def __getitem__(self, grid):
        def search(**arguments):
            self.searched.append((grid, arguments))
            self.made.append(self.gives())
            return self.made[-1]

        return search


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(relaunch, "_compiled", {})


def test_the_second_launch_of_a_key_takes_what_was_compiled_with_parameters_in_the_kernels_order():
    kernel = Kernel()
    launch(kernel, 7, ("key",), {"x": 1, "M": 2, "BLOCK": 3}, {"num_warps": 4})
    assert kernel.searched == [((7,), {"x": 1, "M": 2, "BLOCK": 3, "num_warps": 4})]
    # Options are in what was compiled.
    launch(kernel, 9, ("key",), {"BLOCK": 3, "x": 10, "M": 20}, {"num_warps": 4})
    assert len(kernel.searched) == 1
    assert kernel.made[0].launched == [((9, 1, 1), (10, 20, 3))]


def test_another_key_and_another_kernel_are_searched_for():
    first, second = Kernel(), Kernel()
    arguments = {"x": 1, "M": 2, "BLOCK": 3}
    for kernel, key in ((first, (1,)), (first, (2,)), (second, (1,)), (first, (1,)), (second, (1,))):
        launch(kernel, 1, key, arguments, {})
    assert (len(first.searched), len(second.searched)) == (2, 1)
    assert [len(made.launched) for made in (*first.made, *second.made)] == [1, 0, 1]


@pytest.mark.parametrize("gives", [lambda: None, object])
def test_what_is_no_compiled_kernel_is_not_kept(gives):
    kernel = Kernel(gives)
    for _ in range(2):
        launch(kernel, 1, ("key",), {"x": 1, "M": 2, "BLOCK": 3}, {})
    assert len(kernel.searched) == 2
    assert not relaunch._compiled


def test_beyond_the_limit_all_are_forgotten(monkeypatch):
    monkeypatch.setattr(relaunch, "_MOST", 3)
    kernel, arguments = Kernel(), {"x": 1, "M": 2, "BLOCK": 3}
    for key in range(4):
        launch(kernel, 1, (key,), arguments, {})
    assert len(relaunch._compiled) == 1
    launch(kernel, 1, (3,), arguments, {})
    launch(kernel, 1, (0,), arguments, {})
    assert len(kernel.searched) == 5


def test_a_kernel_stays_as_long_as_its_key_so_that_no_other_has_its_id():
    launch(Kernel(), 1, ("key",), {"x": 1, "M": 2, "BLOCK": 3}, {})
    ((key, (_, _, kept)),) = relaunch._compiled.items()
    assert key == (id(kept), "key")


def test_pointers_on_16_bytes_are_told_apart():
    whole = torch.zeros(64, dtype=FP16, device=DEVICE)
    assert on_16_bytes(whole, whole[1:], None, whole[8:]) == (True, False, None, True)


def changed(**options):
    """Operands, and dy, of a call that differs from the usual one."""
    made = random_inputs(40, 72, 80, options.pop("r", 16), dtype=FP16, adapter_dtype=FP16, device=DEVICE)
    seed = torch.tensor([3], device=DEVICE)
    o = made.call(options.pop("dropout", 0.0), seed)
    for name, change in options.items():
        o = o._replace(**{name: change(getattr(o, name))})
    return o, made.dy


# What Triton compiles anew for.
CHANGES = {
    "rank": {"r": 24},
    "no bias": {"b": lambda b: None},
    "bias off 16 bytes": {"b": lambda b: torch.cat([b, b])[1 : len(b) + 1]},
    "x transposed": {"x": lambda x: x.t().contiguous().t()},
    "x padded": {"x": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]]},
    "A padded": {"A": lambda A: torch.cat([A, A], 1)[:, : A.shape[1]]},
    "fp32 adapters": {"A": lambda A: A.float(), "B": lambda B: B.float()},
    "dropout": {"dropout": 0.5},
}


@pytest.fixture
def noted(monkeypatch):
    """Of each launch of the kernels (kernel, key, arguments, options), none of which runs."""
    found = []
    monkeypatch.setattr(fused, "launch", lambda kernel, _, key, *rest: found.append((kernel, key, *rest)))
    return found


def passes(o, dy, needs=EVERYTHING):
    p = torch.empty(o.x.shape[0], o.A.shape[0], device=DEVICE)
    fused.forward(o)
    fused.backward(o, dy, p, needs)


def test_every_parameter_is_given_by_its_name(noted):
    passes(*changed())
    for kernel, _, arguments, options in noted:
        assert set(arguments) == set(kernel.arg_names)
        assert not set(options) & set(kernel.arg_names)


@pytest.mark.parametrize("name", CHANGES)
def test_calls_that_triton_compiles_apart_have_keys_apart(noted, name):
    for options in ({}, CHANGES[name], {}):
        passes(*changed(**options))
    for usual, other, again in zip(noted[:2], noted[2:4], noted[4:], strict=True):
        # The backward pass has no bias.
        is_backward = usual[0] is fused.backward_kernel
        assert (usual[1] == other[1]) == (is_backward and "bias" in name)
        assert usual[1] == again[1]


def test_pointers_of_equal_strides_on_and_off_16_bytes_have_keys_apart(noted):
    """Of x whose rows TMA cannot address, so that only the pointer decides."""

    def laid(at):
        return lambda x: torch.cat([x, x[:, :3]], 1)[:, at : x.shape[1] + at]

    for at in (0, 1, 0):
        passes(*changed(x=laid(at)))
    for first, second, again in zip(noted[:2], noted[2:4], noted[4:], strict=True):
        assert first[1] != second[1]
        assert first[1] == again[1]


def test_a_rate_that_rounds_to_none_is_no_dropout_to_a_kernel(noted):
    for rate in (2.0**-20, 0.5):
        passes(*changed(dropout=rate))
    assert [one[2]["seed_ptr"] is None for one in noted] == [True, True, False, False]
    assert noted[0][1] != noted[2][1]
    assert noted[1][1] != noted[3][1]


def test_gradients_that_are_not_needed_and_a_transposed_dy_have_keys_of_their_own(noted):
    o, dy = changed()
    for given in ((dy,), (dy.t().contiguous().t(),), (dy, Needs(True, False, True)), (dy, Needs(False))):
        passes(o, *given)
    assert len({one[1] for one in noted[1::2]}) == 4


def test_the_scaling_is_a_float_as_a_compiled_kernel_takes_no_integer_for_it(noted):
    o, dy = changed()
    passes(o._replace(s=1), dy)
    assert all(type(one[2]["s"]) is float for one in noted)
