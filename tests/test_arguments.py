"""Whatever is passed in an argument's place, one line names the argument, and nothing is changed."""

import inspect
import re

import numpy as np
import pytest
import torch

import fastlora
from fastlora import FusedLoRALinear, LoRAConfig, LoRAParametrization, ReferenceLoRALinear, lora_linear
from tests.models import adapted, mlp


class Rude:
    """Neither comparable nor printable."""

    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


JUNK = [
    -1,
    10**5000,
    1.5,
    "",
    "x" * 5000,
    "a\0b",
    [],
    {"a": 1},
    np.arange(3.0),
    torch.ones(3),
    Rude(),
    b"x",
    int,
]
SIZES = {"in_features": 4, "out_features": 3}

# Function, sound arguments, and of which of them each piece of junk above is refused.
CASES = [
    (
        fastlora.add_adapter,
        lambda: {"model": adapted(mlp()), "name": "de", "config": LoRAConfig()},
        ["model"],
    ),
    (fastlora.load_pretrained, lambda: {"model": mlp(), "directory": "nowhere"}, ["model"]),
    (fastlora.load_adapter, lambda: {"model": mlp(), "path": "nowhere"}, ["model"]),
    (fastlora.from_pretrained, lambda: {"model": mlp(), "repo_id": "./nowhere"}, ["model"]),
    (
        fastlora.save_pretrained,
        lambda: {"model": adapted(mlp()), "directory": "nowhere"},
        ["adapters", "task_type"],
    ),
    (fastlora.set_adapter, lambda: {"model": adapted(mlp())}, ["name"]),
    (fastlora.delete_adapter, lambda: {"model": adapted(mlp())}, ["name"]),
    (fastlora.combine_adapters, lambda: {"model": adapted(mlp()), "name": "new"}, ["weights"]),
    (fastlora.hot_swap, lambda: {"model": adapted(mlp()), "directory": "nowhere"}, ["name"]),
    (fastlora.initialize, lambda: {"model": adapted(mlp())}, ["start"]),
    (fastlora.set_backend, dict, ["name"]),
    (fastlora.explain, lambda: {"layer": adapted(mlp())[0], "x_shape": (2, 6)}, ["x_shape", "gpu"]),
    (LoRAConfig, dict, ["init", "task_type"]),
    (lambda merge: adapted(mlp())[0].to_linear(merge), dict, ["merge"]),
    (FusedLoRALinear, lambda: dict(SIZES), ["bias", "init", "rslora", "adapter_dtype"]),
    (ReferenceLoRALinear, lambda: dict(SIZES), ["bias", "rslora", "adapter_dtype"]),
]
CALLED_OTHERWISE = {(fastlora.set_backend, "name"): "backend", (fastlora.set_adapter, "name"): "adapter"}
CALLED_OTHERWISE[fastlora.delete_adapter, "name"] = "adapter"


@pytest.mark.parametrize(
    ("function", "sound", "argument"),
    [(function, sound, argument) for function, sound, arguments in CASES for argument in arguments],
    ids=lambda each: each if isinstance(each, str) else getattr(each, "__name__", ""),
)
def test_junk_is_refused_in_one_line_that_names_the_argument(function, sound, argument):
    name = CALLED_OTHERWISE.get((function, argument), argument)
    for junk in JUNK:
        with pytest.raises((TypeError, ValueError), match=name) as caught:
            function(**{**sound(), argument: junk})
        assert len(str(caught.value)) < 1000


PATHS = [None, 3, b"x", "", "a\0b", "\ud800", ["x"], np.arange(3.0), Rude()]


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (fastlora.load_pretrained, "directory"),
        (fastlora.load_adapter, "path"),
        (fastlora.from_pretrained, "repo_id"),
        (fastlora.hot_swap, "directory"),
        (fastlora.save_pretrained, "directory"),
        (fastlora.save_adapter, "path"),
    ],
)
def test_what_is_no_path_is_refused_by_name(function, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = adapted(mlp())
    for path in PATHS:
        with pytest.raises((TypeError, ValueError), match=f"{argument} must be a path"):
            function(model, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [FusedLoRALinear, ReferenceLoRALinear, LoRAParametrization])
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("in_features", [-1, 1.5, "4", None, True, np.arange(3)]),
        ("out_features", [-1, 1.5, "4", None, True, torch.ones(3)]),
        ("r", [0, -1, 1.5, "4", None]),
        ("alpha", [float("nan"), "4", np.arange(3), 10**5000]),
        ("dropout", [-0.1, 1, "0", None]),
    ],
)
def test_layers_are_not_made_from_other_numbers(cls, argument, values):
    if argument not in inspect.signature(cls).parameters:
        return
    for value in values:
        with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(argument)} must be"):
            cls(**{**SIZES, argument: value})


def test_a_scaling_beyond_any_float_is_refused():
    x, W, A, B = (torch.ones(shape) for shape in ((2, 4), (3, 4), (2, 4), (3, 2)))
    with pytest.raises(ValueError, match="s must be finite"):
        lora_linear(x, W, None, A, B, 10**5000)


def test_whole_numbers_of_other_types_are_sizes():
    assert FusedLoRALinear(np.int64(4), torch.tensor(3)).weight.shape == (3, 4)
